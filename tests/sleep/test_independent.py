"""Sources ``bernoulli`` and ``stratified``: the statistics that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from drawing import SIGMAS, assert_binomial, chi_square_sigmas, draw, pair_table
from torch import Tensor

from drowsy.sleep import MASK32, SOURCES, SleepSpec, asleep, levels, philox
from drowsy.sleep.counters import halves, halves_on_cpu


@pytest.mark.parametrize(
    ("counters", "images"), [(5, 3), (1 << 14, 1), ((1 << 14) + 3, 2), (3000, 13)]
)
def test_the_cpu_draws_what_philox_draws(counters: int, images: int) -> None:
    """Part by part, whichever way the counters fall into parts."""
    indices = torch.arange(2**32 - 2, 2**32 - 2 + images) & MASK32
    for seed in (torch.tensor(-(77 << 32) - 5), torch.tensor(2**63 - 1)):
        found = np.zeros((images, counters, 8), np.int64)
        for which, part, half in halves_on_cpu(counters, indices, 2**32 - 1, 3, seed):
            assert half.dtype == np.uint16
            found[which, part] += half
        words = philox(torch.arange(counters), indices[:, None], 2**32 - 1, 3, seed)
        assert torch.equal(torch.from_numpy(found), torch.stack(list(halves(words)), dim=-1))


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "detail"])
@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("k", [3, 8, 256])
def test_sleepers_are_the_cells_below_the_threshold(source: str, phase: int, k: int) -> None:
    spec, clock = SleepSpec(source, "neuron", k, 7, phase), torch.tensor([2**40 + 3, 2**32 - 2])
    for shape in ((3, 20, 9, 7), (0, 8, 4, 4), (5, 3, 1, 1)):
        drawn = levels(spec, shape, clock)
        for j in sorted({0, 1, k // 2, k - 1}):
            assert torch.equal(asleep(spec, shape, j, clock), drawn < j)


@pytest.mark.parametrize("k", [3, 5, 8, 10])
def test_bernoulli_sleeps_at_the_rate_asked_for(k: int) -> None:
    drawn = draw(k=k, shape=(40, 40, 16, 16), seed=9)
    for j in range(1, k):
        # 16 random bits: exact for k = 8, within 2**-16 of j / k for the others.
        p = math.ceil(j * 65536 / k) / 65536
        assert p == pytest.approx(j / k, abs=2**-16)
        assert_binomial(int((drawn < j).sum()), drawn.numel(), p)


@pytest.mark.parametrize("grain", ["position", "channel", "tile:4x2"])
def test_bernoulli_cells_of_any_grain_sleep_at_the_rate_asked_for(grain: str) -> None:
    drawn = draw(grain=grain, shape=(800, 32, 8, 8), seed=9)
    for j in range(1, 8):
        assert_binomial(int((drawn < j).sum()), drawn.numel(), j / 8)


def test_bernoulli_rate_is_even_over_channels_positions_and_images() -> None:
    drawn = draw(shape=(64, 64, 8, 8), seed=1) < 3
    for dim in range(3):
        others = [d for d in range(3) if d != dim]
        assert_binomial(drawn.sum(others), drawn.numel() // drawn.shape[dim], 3 / 8)


def _neighbours() -> dict[str, tuple[Tensor, Tensor]]:
    drawn = draw(shape=(60, 40, 8, 8), seed=4)
    square = drawn.view(60, 8, 8, 40)
    # Lags 1 and 8 cross the lanes of one Philox word and of one call.
    pairs = {f"channel+{lag}": (drawn[..., lag:], drawn[..., :-lag]) for lag in (1, 2, 3, 8, 16)}
    pairs |= {
        "right": (square[:, :, 1:], square[:, :, :-1]),
        "below": (square[:, 1:], square[:, :-1]),
        "next image": (drawn[1:], drawn[:-1]),
        "image + 2**16": (drawn, draw(shape=(60, 40, 8, 8), seed=4, image=2**16)),
        "next seed": (drawn, draw(shape=(60, 40, 8, 8), seed=5)),
        "seed + 2**32": (drawn, draw(shape=(60, 40, 8, 8), seed=4 + 2**32)),
        "next stream": (drawn, draw(shape=(60, 40, 8, 8), seed=4, stream=1)),
        "stream as image": (
            draw(shape=(1, 40, 32, 32), image=1),
            draw(shape=(1, 40, 32, 32), stream=1),
        ),
    }
    return pairs


@pytest.mark.parametrize("pair", _neighbours().items(), ids=lambda pair: pair[0])
def test_bernoulli_neighbours_are_independent(pair: tuple[str, tuple[Tensor, Tensor]]) -> None:
    first, second = pair[1]
    assert abs(chi_square_sigmas(pair_table(first, second, 8))) < SIGMAS
    for j in (1, 4, 7):
        bits = torch.stack([(first < j).flatten(), (second < j).flatten()]).double()
        assert abs(torch.corrcoef(bits)[0, 1]) * math.sqrt(bits.shape[1]) < SIGMAS


def test_chi_square_notices_dependence() -> None:
    drawn = draw(shape=(60, 40, 8, 8))
    assert chi_square_sigmas(pair_table(drawn, drawn, 8)) > 100
    rigged = torch.where(
        draw(shape=(60, 40, 8, 8), seed=1) == 0, drawn, draw(shape=(60, 40, 8, 8), seed=2)
    )
    assert chi_square_sigmas(pair_table(drawn, rigged, 8)) > SIGMAS


@pytest.mark.parametrize(
    ("grain", "shape"),
    [
        ("neuron", (5, 6, 7, 13)),
        ("position", (5, 6, 7, 13)),
        ("tile:2x4", (5, 16, 4, 23)),
        ("channel", (5, 47, 7, 13)),
        ("channel:3", (5, 47 * 3, 7, 13)),
        ("neuron", (5, 47, 1, 1)),
    ],
)
@pytest.mark.parametrize("k", [3, 8, 10])
def test_stratified_has_exactly_j_sleepers_in_every_full_run(
    grain: str, shape: tuple[int, int, int, int], k: int
) -> None:
    drawn = draw("stratified", grain, k, shape=shape)
    runs = drawn if drawn.shape[1] > 1 else drawn.transpose(1, 2)
    whole = runs.shape[1] // k * k
    assert whole < runs.shape[1], "the shape also tests a last run that is cut short"
    full = runs[:, :whole].unflatten(1, (-1, k))
    for j in range(k):
        assert ((full < j).sum(2) == j).all()
    # A run that is cut short still has no level twice.
    rest = runs[:, whole:].sort(dim=1).values
    assert (rest[:, 1:] > rest[:, :-1]).all()


@pytest.mark.parametrize(
    ("grain", "shape"), [("neuron", (40, 8, 16, 16)), ("channel", (4000, 32, 2, 2))]
)
def test_stratified_places_every_level_everywhere_equally_often(
    grain: str, shape: tuple[int, int, int, int]
) -> None:
    drawn = draw("stratified", grain, shape=shape, seed=2)
    runs = drawn if drawn.shape[1] > 1 else drawn.transpose(1, 2)
    places = runs.unflatten(1, (-1, 8)).transpose(1, 2).transpose(0, 1).flatten(1)
    for level in range(8):
        assert_binomial((places == level).sum(1), places.shape[1], 1 / 8)


def test_stratified_orders_of_a_run_are_equally_likely() -> None:
    drawn = draw("stratified", k=3, shape=(50, 8, 9, 9), seed=2).unflatten(1, (27, 3)).long()
    code = drawn[:, :, 0] * 3 + drawn[:, :, 1]
    counts = torch.bincount(code.flatten(), minlength=9)
    assert counts[[0, 4, 8]].sum() == 0
    assert abs(chi_square_sigmas(counts[counts > 0].double())) < SIGMAS


@pytest.mark.parametrize("neighbour", ["run", "channel", "image", "seed", "stream"])
def test_stratified_runs_are_independent(neighbour: str) -> None:
    shape = (40, 8, 32, 32)
    drawn = draw("stratified", shape=shape, seed=2).unflatten(1, (128, 8))
    first, second = {
        "run": (drawn[:, 1:], drawn[:, :-1]),
        "channel": (drawn[..., 1:], drawn[..., :-1]),
        "image": (drawn[1:], drawn[:-1]),
        "seed": (drawn, draw("stratified", shape=shape, seed=3).unflatten(1, (128, 8))),
        "stream": (drawn, draw("stratified", shape=shape, seed=2, stream=1).unflatten(1, (128, 8))),
    }[neighbour]
    for place, other in ((0, 0), (0, 7), (3, 4)):
        table = pair_table(first[:, :, place], second[:, :, other], 8)
        assert abs(chi_square_sigmas(table)) < SIGMAS
