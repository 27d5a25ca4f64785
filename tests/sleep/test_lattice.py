"""Source ``lattice``: regular patterns, their tables and phases."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest
import torch
from drawing import SIGMAS, chi_square_sigmas, draw, nearest_awake, pair_table
from torch import Tensor

from drowsy.sleep import MAX_K, lattice_tables


def test_lattice_of_half_rate_is_a_checkerboard() -> None:
    drawn = draw("lattice", "position", shape=(20, 12, 6, 10))
    assert drawn.shape == (20, 60, 1)
    asleep = (drawn < 4).view(20, 6, 10)
    y, x = torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")
    black = (x + y) % 2 == 0
    starts = [bool(image[0, 0]) for image in asleep]
    assert set(starts) == {True, False}
    for image, start in zip(asleep, starts, strict=True):
        assert torch.equal(image, black if start else ~black)


def test_lattice_of_a_quarter_is_every_fourth_diagonal() -> None:
    asleep = (draw("lattice", "position", shape=(20, 12, 8, 8)) < 2).view(20, 8, 8)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    for image in asleep:
        assert len(set(((x + y) % 4)[image].tolist())) == 1
        assert image.sum() == 16


def test_lattice_of_three_quarters_is_awake_in_every_second_row_and_column() -> None:
    drawn = draw("lattice", "position", shape=(60, 12, 8, 8)).view(60, 8, 8)
    starts = set()
    for awake in drawn >= 6:
        y, x = awake.nonzero()[0].tolist()
        assert awake[y::2, x::2].all()
        assert awake.sum() == 16
        starts.add((y, x))
    assert starts == {(0, 0), (0, 1), (1, 0), (1, 1)}


def shortest(points: Tensor) -> int:
    """Squared distance between the nearest two of a periodic map's points."""
    reach = range(-5, 6)
    return min(
        down**2 + across**2
        for down, across in itertools.product(reach, reach)
        if (down, across) != (0, 0) and (points & points.roll((down, across), (0, 1))).any()
    )


def test_lattice_of_k_8_is_as_good_as_any_nested_lattice() -> None:
    """Of the 15 lattices that every eighth position can form, with any nested order of levels.

    The mean squared distance from a sleeper to its nearest awake neighbour, given that 1/2 is a
    checkerboard, is the least possible up to rate 3/4; the awake lie as far apart as they can.
    """
    level = draw("lattice", "position", shape=(1, 1, 8, 8)).view(8, 8)
    far = [nearest_awake(level >= j)[level < j].double().mean().item() for j in range(1, 8)]
    assert far == pytest.approx([1, 1, 1, 1, 6 / 5, 4 / 3, 12 / 7])
    assert [shortest(level < j) for j in (1, 2, 4)] == [8, 2, 2]
    assert [shortest(level >= j) for j in (4, 6, 7)] == [2, 4, 8]
    best = [math.inf] * 8
    for rows in (1, 2, 4, 8):
        for skew in range(8 // rows):
            y, x = torch.arange(8)[:, None], torch.arange(8)
            coset = y % rows * (8 // rows) + (x - skew * (y // rows)) % (8 // rows)
            for j in (4, 5, 6):
                for awake in itertools.combinations(range(8), 8 - j):
                    left = torch.isin(coset, torch.tensor(awake))
                    if j == 4 or left[(y + x) % 2 == 0].sum() in (0, left.sum()):
                        mean = nearest_awake(left)[~left].double().mean().item()
                        best[j] = min(best[j], mean)
    assert far[3:6] == pytest.approx(best[4:7])


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8, 10, 16])
@pytest.mark.parametrize("grain", ["neuron", "position", "channel", "tile:2x2"])
def test_lattice_meets_every_level_once_in_k_steps(grain: str, k: int) -> None:
    channels, height, width = 2 * k, 2 * k, 2 * k
    drawn = draw("lattice", grain, k, shape=(3, channels, height, width)).long()
    lines = [drawn]  # along the channels
    if grain in ("neuron", "position"):
        square = drawn.unflatten(1, (height, width))
        if k in (3, 5, 10):
            lines += [square.movedim(1, 3), square.movedim(2, 3)]
        period = len(lattice_tables(k)[0])
        for block in square.unfold(1, period, period).unfold(2, period, period).unbind(1):
            counts = torch.stack([(block == level).sum((-1, -2)) for level in range(k)])
            assert (counts * k == period**2).all()
    elif grain == "tile:2x2":
        lines += [drawn.transpose(1, 2)]
    for line in lines:
        length = line.shape[-1] // k * k
        runs = line[..., :length].unflatten(-1, (-1, k)).sort(dim=-1).values
        assert (runs == torch.arange(k)).all()
    whole = drawn[:, : drawn.shape[1] // k * k] if drawn.shape[1] > 1 else drawn
    if whole.shape[1] * whole.shape[2] % k == 0:
        for j in range(k):
            assert ((whole < j).sum((1, 2)) * k == j * whole[0].numel()).all()


@pytest.mark.parametrize("k", [3, 8, 10])
def test_lattice_phase_is_uniform_over_images_seeds_and_streams(k: int) -> None:
    images = draw("lattice", k=k, shape=(4000, 1, 1, 1)).flatten().long()
    seeds = torch.stack([draw("lattice", k=k, shape=(1, 1, 1, 1), seed=s) for s in range(1000)])
    streams = torch.stack([draw("lattice", k=k, shape=(1, 1, 1, 1), stream=s) for s in range(1000)])
    for drawn in (images, seeds.flatten().long(), streams.flatten().long()):
        assert abs(chi_square_sigmas(torch.bincount(drawn, minlength=k).double())) < SIGMAS
    assert abs(chi_square_sigmas(pair_table(images[1:], images[:-1], k))) < SIGMAS


@pytest.mark.parametrize("k", [8, 10])
def test_lattice_is_one_pattern_shifted_by_a_phase(k: int) -> None:
    drawn = draw("lattice", k=k, shape=(50, k, 2 * k, 2 * k)).unflatten(1, (2 * k, 2 * k))
    for image in drawn:
        # The channels of one position meet all phases.
        start = int((drawn[0, 0, 0] == image[0, 0, 0]).nonzero()[0])
        assert torch.equal(image, drawn[0].roll(-start, 2))
        down, across = (image[..., 0] == drawn[0, 0, 0, 0]).nonzero()[0].tolist()
        assert torch.equal(image[..., 0], drawn[0, ..., 0].roll((down, across), (0, 1)))


@pytest.mark.parametrize("k", [*range(2, 34), 255, 256])
def test_lattice_phases_meet_every_level_at_every_position(k: int) -> None:
    tile, shifts = lattice_tables(k)
    period = len(tile)
    assert tile.shape == (period, period)
    counts = torch.bincount(tile.flatten().long(), minlength=k)
    assert (counts * k == period**2).all()
    met = torch.stack([tile.roll((-down, -across), (0, 1)) for down, across in shifts.tolist()])
    assert torch.equal(met.sort(dim=0).values, torch.arange(k)[:, None, None].expand_as(met))


def spread_in_python(k: int) -> list[int]:
    """Phases in the order of their levels: each the farthest from those before it."""
    chosen = [0]
    while len(chosen) < k:

        def crowding(phase: int) -> tuple[int, float, int]:
            gaps = [min((phase - other) % k, (other - phase) % k) for other in chosen]
            near = 0.0
            for gap in gaps:
                near += 1 / gap**2
            return -min(gaps), near, phase

        chosen.append(min(set(range(k)).difference(chosen), key=crowding))
    return chosen


def slope_in_python(k: int) -> int:
    """Of ``x + slope * y``, with the points of a level as far apart as can be; the least such."""

    def spacing(slope: int) -> int:
        return min(
            x * x + y * y
            for y, x in itertools.product(range(k), range(-k, k + 1))
            if (x + slope * y) % k == 0 and (x, y) != (0, 0)
        )

    coprime = [slope for slope in range(1, k) if math.gcd(slope, k) == 1]
    return max(coprime, key=lambda slope: (spacing(slope), -slope))


@pytest.mark.parametrize("k", [*range(2, 25), 36, 49])
def test_lattice_tables_follow_their_definition(k: int) -> None:
    tile, shifts = lattice_tables(k)
    order = spread_in_python(k)
    # The phases meet, at the first position, the levels in this order.
    assert [int(tile[y, x]) for y, x in shifts.tolist()] == [order.index(p) for p in range(k)]
    for level, place in zip(tile[shifts[:, 0].long(), shifts[:, 1].long()], shifts, strict=True):
        first = (tile == level).nonzero()[0]
        assert torch.equal(place.long(), first)
    if k & (k - 1):
        slope = slope_in_python(k)
        for y, x in itertools.product(range(k), range(k)):
            assert int(tile[y, x]) == order.index((x + slope * y) % k)


def test_lattice_tables_of_every_k_stay_as_they_are() -> None:
    digest = hashlib.sha256()
    for k in range(2, MAX_K + 1):
        for table in lattice_tables(k):
            digest.update(table.numpy().tobytes())
    expected = "47943ee4a9a1453a12728d9828ec73a88b3674b657d59ba1a7aafdd064c920ce"
    assert digest.hexdigest() == expected
