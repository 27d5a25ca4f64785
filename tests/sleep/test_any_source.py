"""What maps of every source and grain have in common, and their phases."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from drawing import MAPS, SOURCES, clock, draw

from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import Grain, SleepSpec, expand_cells, levels


@pytest.mark.parametrize("k", [2, 8, 255, 256])
@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_map_has_one_level_for_every_cell(source: str, grain: str, k: int) -> None:
    n, channels, height, width = shape = (2, 10, 6, 7)
    drawn = draw(source, grain, k, shape=shape)
    cell_p, cell_c = {
        "neuron": (1, 1),
        "position": (1, 10),
        "position:3": (1, 3),
        "channel": (42, 1),
        "channel:3": (42, 3),
        "tile:4x2": (4, 2),
        "tile:7x64": (7, 64),
    }[grain]
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (n, math.ceil(height * width / cell_p), math.ceil(channels / cell_c))
    assert int(drawn.max()) < k

    neurons = expand_cells(drawn, shape, Grain.parse(grain))
    assert neurons.shape == shape
    for p, c in itertools.product(range(height * width), range(channels)):
        y, x = divmod(p, width)
        assert torch.equal(neurons[:, c, y, x], drawn[:, p // cell_p, c // cell_c])


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3)])
@pytest.mark.parametrize("source", SOURCES)
def test_empty_output_has_an_empty_map(source: str, shape: tuple[int, int, int, int]) -> None:
    n, channels, height, width = shape
    assert draw(source, shape=shape).shape == (n, height * width, channels)


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_split_into_batches_does_not_matter(source: str, grain: str) -> None:
    whole = draw(source, grain, shape=(7, 10, 6, 7), image=100)
    for sizes in ([1] * 7, [3, 4], [6, 1]):
        starts = itertools.accumulate([100, *sizes[:-1]])
        parts = [
            draw(source, grain, shape=(size, 10, 6, 7), image=start)
            for start, size in zip(starts, sizes, strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("source", SOURCES)
def test_large_batch_is_drawn_as_its_images_are(source: str) -> None:
    # 5 x 40 x 60 x 60 cells are more than are drawn at a time.
    whole = draw(source, shape=(5, 40, 60, 60))
    assert torch.equal(whole[4:], draw(source, shape=(1, 40, 60, 60), image=4))


@pytest.mark.parametrize("source", SOURCES)
def test_image_index_wraps_at_32_bits(source: str) -> None:
    across = draw(source, shape=(4, 6, 5, 5), image=2**32 - 2)
    assert torch.equal(across[2:], draw(source, shape=(2, 6, 5, 5), image=0))
    assert not torch.equal(across[:2], across[2:])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_last_images_of_a_clock_sleep_as_any(source: str, rate: float) -> None:
    layer = DrowsyConv2d(16, 16, 1, sleep=SleepSpec(source, "position"), rate=rate)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(5, 16, 8, 8).to(memory_format=torch.channels_last)
    for image in (2**63 - 3, 2**63 - 1, 2**32 - 3):
        layer.control.reseed(1, image)
        drawn = draw(source, "position", shape=(10, 16, 8, 8), seed=1, image=image)
        with torch.inference_mode():
            # The second batch begins where the first one ended: past the end, below 0.
            y, awake = torch.cat([layer(x), layer(x)]), layer.awake(x)
        asleep = (drawn < rate * 8).view(10, 1, 8, 8)
        torch.testing.assert_close(y, torch.cat([awake, awake]).masked_fill(asleep, 0))
        assert torch.equal(
            drawn, draw(source, "position", shape=(10, 16, 8, 8), seed=1, image=image % 2**32)
        )


@pytest.mark.parametrize("source", ["bernoulli", "stratified", "bluenoise"])
def test_image_seed_and_stream_all_change_the_map(source: str) -> None:
    shape = (1, 8, 8, 8)
    settings = [
        {"seed": seed, "image": image, "stream": stream}
        for seed in (0, 1, 2**32, 2**63 - 1)
        for image in (0, 1, 2**31)
        for stream in (0, 1, 2**31)
    ]
    maps = {bytes(draw(source, shape=shape, **setting).flatten().tolist()) for setting in settings}
    assert len(maps) == len(settings)
    assert torch.equal(draw(source, shape=shape, seed=5), draw(source, shape=shape, seed=5))


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_higher_rate_only_adds_sleepers(source: str, grain: str) -> None:
    layer = DrowsyConv2d(2, 10, 1, sleep=SleepSpec(source, grain))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    before = torch.zeros(3, 10, 6, 7, dtype=torch.bool)
    for j in range(8):
        layer.set(rate=Fraction(j, 8))
        layer.control.reseed(3)
        with torch.inference_mode():
            asleep = layer(torch.randn(3, 2, 6, 7)) == 0
        assert not (before & ~asleep).any()
        before = asleep
    assert before.any()
    assert not before.all()


@pytest.mark.parametrize("k", [2, 4, 8, 16])
@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_odd_phases_complement_even_ones(source: str, grain: str, k: int) -> None:
    shape = (3, 20, 8, 8)
    even, odd = (
        levels(SleepSpec(source, grain, k, 5, phase), shape, clock(7, 2)) for phase in (2, 3)
    )
    for j in range(k):
        both = (even < j) & (odd < j)
        either = (even < j) | (odd < j)
        if 2 * j <= k:
            assert not both.any()
        elif not source.startswith("lfsr"):
            assert either.all()
        else:
            # The register's middle state is its own complement.
            assert either.sum() >= either.numel() * (1 - 2 / 2**3)


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_phases_of_a_parity_share_a_map_except_of_lattices(source: str, grain: str) -> None:
    shape = (3, 20, 8, 8)
    first, third, ninth = (
        levels(SleepSpec(source, grain, 8, 5, phase), shape, clock()) for phase in (1, 3, 9)
    )
    assert torch.equal(first, ninth)
    assert torch.equal(first, third) == (source not in ("lattice", "fovea"))


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("source", SOURCES)
def test_phases_sleep_at_the_same_rate(source: str, k: int) -> None:
    shape, many = (7, 64, 63, 64), clock(3)
    counts = [
        torch.bincount(
            levels(SleepSpec(source, "neuron", k, 1, phase), shape, many).flatten().long(),
            minlength=k,
        )
        for phase in (0, 1)
    ]
    # Upside down, states of the register and ranks of the tile, not levels, change places.
    tolerance = 0.002 if source == "bernoulli" else 0.0005
    torch.testing.assert_close(
        counts[1] / sum(counts[1]), counts[0] / sum(counts[0]), rtol=0, atol=tolerance
    )
