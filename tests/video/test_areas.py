"""Which areas are awake: they meet without gaps, take turns, and follow change."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from drowsy.video.areas import REFRESH, WHOLE, Bands, Box, Change, Quads, rectangles

FRAME = torch.zeros(3, 56, 56)


def painted(boxes: tuple[Box, ...], size: tuple[int, int]) -> torch.Tensor:
    """How often each position of a map is awake."""
    count = torch.zeros(size, dtype=torch.int64)
    for box in boxes:
        top, bottom, left, right = box.at(size)
        count[top:bottom, left:right] += 1
    return count


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (2, 3), (13, 5), (56, 56), (45, 60), (3, 224)])
@pytest.mark.parametrize("grid", [(2, 1), (2, 2), (3, 1), (7, 7), (8, 1)])
def test_cells_meet_without_gaps_on_maps_of_any_size(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    cells = [Box((r, r + 1), (c, c + 1), grid) for r in range(grid[0]) for c in range(grid[1])]
    assert painted(tuple(cells), size).eq(1).all()


def test_seven_rows_in_halves() -> None:
    upper, lower = Box((0, 1), (0, 1), (2, 1)), Box((1, 2), (0, 1), (2, 1))
    assert upper.at((7, 7)) == (0, 4, 0, 7)
    assert lower.at((7, 7)) == (4, 7, 0, 7)


def test_rectangles_hold_the_cells_and_no_others(generator: torch.Generator) -> None:
    for _ in range(50):
        mask = torch.rand(5, 4, generator=generator) < 0.5
        cells = [(int(r), int(c)) for r, c in mask.nonzero()]
        assert painted(rectangles(cells, (5, 4)), (5, 4)).equal(mask.long())


def test_rectangles_are_few() -> None:
    assert rectangles([(r, c) for r in range(3) for c in range(2)], (3, 2)) == (WHOLE,)
    assert rectangles([(1, 1), (2, 1), (1, 2), (2, 2)], (4, 4)) == (Box((1, 3), (1, 3), (4, 4)),)
    assert rectangles([(0, 0), (2, 0)], (3, 1)) == (
        Box((0, 1), (0, 1), (3, 1)),
        Box((2, 3), (0, 1), (3, 1)),
    )


@pytest.mark.parametrize(
    ("refresh", "rate"),
    [
        *(("bands", rate) for rate in ("1/2", "1/4", "5/8", "2/3", "7/8")),
        *(("quads", rate) for rate in ("1/4", "1/2", "3/4")),
        *(("change", rate) for rate in ("1/2", "3/4", "7/8", "1/8")),
    ],
)
def test_everything_is_awake_once_a_cycle(
    refresh: str, rate: str, generator: torch.Generator
) -> None:
    areas = REFRESH[refresh](Fraction(rate))
    areas.refreshed(FRAME)
    size = (56, 56)
    last = torch.zeros(size, dtype=torch.int64)
    for time in range(1, 4 * areas.cycle):
        frame = FRAME.clone()
        # Something moves in a corner all the time, which must not starve the rest.
        frame[:, :16, :16] = torch.rand(3, 16, 16, generator=generator)
        last[painted(areas.next(frame), size).bool()] = time
        assert (time - last).max() < areas.cycle


@pytest.mark.parametrize("rate", [Fraction(1, 2), Fraction(3, 4), Fraction(1, 4)])
def test_quads_are_quarters_and_bands_slabs(rate: Fraction) -> None:
    for areas in (Bands(rate), Quads(rate)):
        assert areas.share == 1 - rate
        for _ in range(5):
            assert painted(areas.next(FRAME), (8, 8)).sum().item() == (1 - rate) * 64


def test_a_slab_is_one_box() -> None:
    assert [Bands(Fraction(3, 4)).next(FRAME)] == [(Box((0, 1), (0, 1), (4, 1)),)]
    turns = Quads(Fraction(1, 2))
    assert [len(turns.next(FRAME)) for _ in range(4)] == [1] * 4


@pytest.mark.parametrize(("rate", "awake"), [("1/2", 24), ("3/4", 12), ("7/8", 6), ("1/8", 42)])
def test_change_wakes_exactly_a_share_of_the_blocks(
    rate: str, awake: int, generator: torch.Generator
) -> None:
    areas = Change(Fraction(rate))
    for _ in range(6):
        frame = torch.rand(3, 56, 56, generator=generator)
        assert painted(areas.next(frame), (7, 7)).sum() == awake


def test_change_wakes_what_changed() -> None:
    areas = Change(Fraction(7, 8))
    areas.refreshed(FRAME)
    frame = FRAME.clone()
    frame[:, 16:24, 8:24] = 1
    awake = painted(areas.next(frame), (7, 7))
    assert awake[2, 1] == awake[2, 2] == 1
    # What was awake is seen as it is now.
    again = painted(areas.next(frame), (7, 7))
    assert again[2, 1] == again[2, 2] == 0


def test_change_compares_with_what_a_block_showed_when_it_was_awake() -> None:
    """Slow change, frame by frame too little to be noticed, adds up."""
    areas = Change(Fraction(7, 8))
    areas.refreshed(FRAME)
    frame = FRAME.clone()
    frame[:, 48:, 48:] += 0.5
    frame[:, :8] += 1
    areas.next(frame)  # six of the seven blocks of the upper row
    frame[:, :8] += 0.1
    assert painted(areas.next(frame), (7, 7))[6, 6] == 1


def test_change_breaks_ties_by_age() -> None:
    areas = Change(Fraction(7, 8))
    areas.refreshed(FRAME)
    seen = torch.zeros(7, 7, dtype=torch.int64)
    for _ in range(8):
        seen += painted(areas.next(FRAME), (7, 7))
    assert seen.sum() == 48
    assert seen.max() == 1


@pytest.mark.parametrize(
    ("refresh", "rate", "allowed"),
    [
        ("bands", 0.55, r"m/k in \[0, 1\) with k up to 8"),
        ("bands", 1, "less than 1"),
        ("bands", -0.5, "0 and more"),
        ("quads", 0.3, "0, 1/4, 1/2, 3/4"),
        ("quads", 0.99, "0, 1/4, 1/2, 3/4"),
        ("change", 0.3, "multiples of 1/8"),
        ("change", 0.9999999, "multiples of 1/8"),
    ],
)
def test_other_rates_are_refused(refresh: str, rate: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        REFRESH[refresh].check(rate)


def test_a_rate_is_a_number() -> None:
    with pytest.raises(TypeError, match=r"rate: got True, allowed: a number in \[0, 1\)"):
        Bands.check(True)


def test_rates_are_exact() -> None:
    assert Bands.check(2 / 3) == Fraction(2, 3)
    assert Quads.check(0.75) == Fraction(3, 4)
    assert Change.check(Fraction(5, 8)) == Fraction(5, 8)
    assert Bands.check(0) == 0
