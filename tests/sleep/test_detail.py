"""Source ``detail``: the flattest parts of the picture sleep first, on a lattice."""

from __future__ import annotations

import pytest
import torch
from drawing import clock, philox_in_python
from torch import Tensor

import drowsy  # noqa: F401  (its operators)
from drowsy.sleep import SleepSpec, detail_map, lattice_tables, levels, simplest

ODD = [(7, 9), (1, 1), (13, 5), (24, 31), (60, 44)]


def pictures(count: int = 3, size: tuple[int, int] = (50, 70)) -> Tensor:
    """Noise whose strength differs from place to place, and from picture to picture."""
    generator = torch.Generator().manual_seed(7)
    strength = torch.rand((count, 1, 5, 6), generator=generator) ** 3
    strength = torch.nn.functional.interpolate(strength, size)
    return torch.randn((count, 3, *size), generator=generator) * strength


def half_flat(height: int, width: int) -> Tensor:
    """A picture that is flat on the left and textured on the right."""
    picture = torch.zeros(1, 3, height, width)
    picture[..., width // 2 :] = torch.randn(1, 3, height, width - width // 2)
    return picture


# --- what is seen --------------------------------------------------------------------------------


def order_in_python(picture: Tensor) -> list[int]:
    """The ranks of the parts of one picture, straight from the definition."""
    height, width = picture.shape[1:]
    down, across = (min(n, max(16, min(n // 8, 256))) for n in (height, width))
    exponent = 12 - int(torch.frexp(picture.float().abs().max()).exponent)
    pixels = (picture.double() * 2.0**exponent).round().long().tolist()

    def change(y: int, x: int) -> int:
        above = sum(abs(c[y][x] - c[y - 1][x]) for c in pixels) if y else 0
        left = sum(abs(c[y][x] - c[y][x - 1]) for c in pixels) if x else 0
        return above + left

    changes = [[change(y, x) for x in range(width)] for y in range(height)]

    def weights(part: int, parts: int, length: int) -> list[int]:
        near = [min(max(part + away, 0), parts - 1) for away in (-1, 0, 1)]
        return [
            sum(
                max(0, min((p + 1) * length, (i + 1) * parts) - max(p * length, i * parts))
                for p in near
            )
            for i in range(length)
        ]

    def seen(part: int) -> int:
        rows = weights(part // across, down, height)
        columns = weights(part % across, across, width)
        return sum(
            rows[y] * sum(c * w for c, w in zip(changes[y], columns, strict=True))
            for y in range(height)
            if rows[y]
        )

    found = [(seen(part), part) for part in range(down * across)]
    return [sorted(found).index(each) for each in found]


@pytest.mark.parametrize("size", [(20, 33), (3, 5), (1, 40), (47, 140)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 3e8])
def test_parts_are_in_order_of_what_there_is_to_see(size: tuple[int, int], scale: float) -> None:
    given = pictures(2, size) * scale
    assert detail_map(given).flatten(1).tolist() == [order_in_python(each) for each in given]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_pictures_of_any_type_are_seen_as_their_float32(dtype: torch.dtype) -> None:
    given = (pictures() * 40).abs().to(dtype)
    assert torch.equal(detail_map(given), detail_map(given.float()))


def test_autocast_rounds_nothing_of_what_is_seen() -> None:
    given = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.ops.drowsy.detail(given), detail_map(given))


def test_the_operator_passes_torchs_own_checks() -> None:
    for given in (pictures(), pictures(1).half(), torch.ones(0, 3, 40, 9)):
        torch.library.opcheck(
            torch.ops.drowsy.detail.default,
            (given,),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_what_is_seen_of_a_picture_depends_on_nothing_else() -> None:
    given = pictures(5)
    whole = detail_map(given)
    assert whole.dtype == torch.int32
    for parts in ([1] * 5, [2, 3]):
        assert torch.equal(torch.cat([detail_map(part) for part in given.split(parts)]), whole)
    assert torch.equal(detail_map(given.flip(0)), whole.flip(0))
    assert torch.equal(detail_map(given.contiguous(memory_format=torch.channels_last)), whole)
    assert torch.equal(detail_map(given * 4), whole)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_a_picture_that_is_not_finite_is_flat_everywhere(value: float) -> None:
    given = pictures()
    given[1] = value if value == 0 else given[1]
    given[1, 2, 5, 9] = value
    found = detail_map(given)
    assert torch.equal(found[1].flatten(), torch.arange(found[1].numel(), dtype=torch.int32))
    assert torch.equal(found[::2], detail_map(given[::2]))


def test_sums_over_many_channels_are_exact() -> None:
    """Changes are as large as can be, and differ by less than float32 would hold of their sum."""
    sign = 1 - 2 * ((torch.arange(16)[:, None] + torch.arange(17)) % 2)
    given = (sign * torch.tensor(4095.0)).expand(1, 1100, -1, -1).clone()
    given[:, :2] -= sign * torch.randint(2, (2, 16, 17))
    assert detail_map(given / 4096).flatten().tolist() == order_in_python(given[0] / 4096)


def test_no_pictures() -> None:
    assert detail_map(torch.ones(0, 3, 64, 80)).shape == (0, 16, 16)
    assert detail_map(torch.ones(2, 3, 0, 80)).shape == (2, 0, 16)


# --- maps ----------------------------------------------------------------------------------------


def draw(
    grain: str,
    k: int,
    shape: tuple[int, int, int, int],
    seen: Tensor,
    phase: int = 0,
    seed: int = 5,
) -> Tensor:
    return levels(SleepSpec("detail", grain, k, 3, phase), shape, clock(seed, 41), seen)


@pytest.mark.parametrize("k", [2, 3, 8, 13])
def test_every_level_follows_its_definition(k: int) -> None:
    height, width, channels, seen = 9, 14, 5, detail_map(pictures(2, (20, 33)))
    down, across = seen.shape[1:]
    start = ((philox_in_python(0, 0, 3, 2, 5)[0] >> 16) * k) >> 16
    tile, shifts = lattice_tables(k)
    first = 3 * k // 4
    turns = [range(max(first, 1))]
    while turns[-1].stop < k:
        turns.append(range(turns[-1].stop, k - (k - turns[-1].stop) // 2))
    drawn = draw("neuron", k, (2, channels, height, width), seen)
    for image in range(2):
        for channel in range(channels):
            below, right = shifts[(start + channel) % k].tolist()
            keys = []
            for p in range(height * width):
                y, x = divmod(p, width)
                level = int(tile[(y + below) % len(tile), (x + right) % len(tile)])
                turn = next(i for i, each in enumerate(turns) if level in each)
                part = (2 * y + 1) * down // (2 * height), (2 * x + 1) * across // (2 * width)
                keys.append((turn, int(seen[image][part]), p))
            for rank, (*_, p) in enumerate(sorted(keys)):
                level = max(j for j in range(k) if height * width * j // k <= rank)
                assert drawn[image, p, channel] == level


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("grain", ["neuron", "position", "position:3"])
@pytest.mark.parametrize("phase", [0, 1])
def test_as_many_sleep_as_the_rate_says(grain: str, size: tuple[int, int], phase: int) -> None:
    seen, positions = detail_map(pictures()), size[0] * size[1]
    for k in (2, 3, 8, 13, 256):
        drawn = draw(grain, k, (3, 11, *size), seen, phase)
        for j in range(k):
            assert ((drawn < j).sum(1) == positions * j // k).all()


def test_a_map_is_a_function_of_the_picture_seed_and_stream() -> None:
    given, spec = pictures(4), SleepSpec("detail", "position:2", stream=3)
    shape, seen = (4, 6, 12, 17), detail_map(given)
    whole = levels(spec, shape, clock(5, 41), seen)
    assert torch.equal(levels(spec, shape, clock(5, 7), seen), whole)
    assert torch.equal(levels(spec, shape, clock(5), seen.flip(0)), whole.flip(0))
    parts = [levels(spec, (2, *shape[1:]), clock(5), part) for part in seen.split(2)]
    assert torch.equal(torch.cat(parts), whole)
    assert (
        len({levels(spec, shape, clock(seed), seen).sum(2).flatten()[:9] for seed in range(9)}) > 1
    )
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize(("j", "flattest"), [(1, 6), (2, 3), (3, 2), (4, 1.5)])
def test_the_flattest_part_sleeps_on_the_lattice_of_three_quarters(j: int, flattest: float) -> None:
    """A sixth of the map at 1/8, a third at 1/4, a half at 3/8, two thirds at 1/2."""
    side = 32
    ramp = torch.arange(side * 8.0) ** 3
    picture = (torch.rand(1, 1, side * 8, side * 8) * ramp).expand(1, 3, -1, -1)
    drawn = draw("position", 8, (1, 4, side, side), detail_map(picture)).view(side, side)
    columns = (drawn < j).sum(0)
    inside = int(side / flattest) - 3
    assert (columns[:inside].view(-1) + columns[1 : inside + 1] == side * 3 // 2).all()
    assert not columns[int(side / flattest) + 4 :].any()


@pytest.mark.parametrize("size", [(15, 21), (32, 32), (60, 88)])
@pytest.mark.parametrize("grain", ["position", "neuron"])
def test_a_textured_half_is_awake_at_a_quarter(size: tuple[int, int], grain: str) -> None:
    seen = detail_map(half_flat(96, 120))
    drawn = draw(grain, 8, (1, 9, *size), seen).view(*size, -1)
    assert not (drawn[:, size[1] // 2 :] < 2).any()
    assert (drawn < 2).sum((0, 1)).unique().tolist() == [size[0] * size[1] // 4]
    # At 1/2 two thirds of the map take part: some of the texture, all of the flat.
    assert (drawn[:, size[1] // 2 + 1 :] < 4).any()


@pytest.mark.parametrize("size", [(24, 32), (60, 20)])
def test_sleepers_have_awake_neighbours_up_to_three_quarters(size: tuple[int, int]) -> None:
    drawn = draw("position", 8, (3, 4, *size), detail_map(pictures())).view(3, 1, *size)
    for j in range(1, 7):
        awake = torch.nn.functional.max_pool2d((drawn >= j).float(), 3, 1, 1)
        assert (awake == 1).all()


def test_only_rate_zero_is_simpler() -> None:
    spec = SleepSpec("detail", "position:4", 8, 3, 1)
    assert simplest(spec, 0).source.name == "lattice"
    assert all(simplest(spec, j) == spec for j in range(1, 8))
