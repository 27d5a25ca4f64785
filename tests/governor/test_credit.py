"""Who may rise, and how far."""

from __future__ import annotations

import numpy as np

from drowsy.governor.credit import Credit

NONE, FIRST, ALL = (np.array(each) for each in ([False] * 3, [True, False, False], [True] * 3))


def measured(credit: Credit, over: np.ndarray, times: int, at: int = 2) -> Credit:
    for _ in range(times):
        credit.measure(over, at)
    return credit


def test_a_point_is_looked_at_three_times_first() -> None:
    credit = measured(Credit(3), NONE, 2)
    assert credit.highest(2) == 2
    assert measured(credit, NONE, 1).highest(2) == 0
    credit.turned()
    assert credit.highest(1) == 1


def test_credit_that_ran_out_is_saved_up_to_several_tries() -> None:
    """From 5 to -1, and a sixtieth a measurement up to 3; the first would have been over."""
    credit = measured(Credit(3), FIRST, 6, at=0)
    assert credit.over == 6
    assert credit.highest(2) == 1
    # The first point would have been over too often: hindsight does not let it through.
    rare = [FIRST] + [NONE] * 49
    for turn in range(239):
        credit.measure(rare[turn % 50], 2)
    assert credit.highest(2) == 1
    assert measured(credit, NONE, 2).highest(2) == 0
    # Two more tries are in it.
    for _ in range(2):
        assert measured(credit, FIRST, 1, at=0).highest(2) == 0
    assert measured(credit, FIRST, 1, at=0).highest(2) == 1


def test_a_point_that_held_nearly_all_of_late_needs_no_credit() -> None:
    """Five in 179 fade to 1%; by then 2.9 of the credit of 3 are saved up again."""
    credit = measured(Credit(3), FIRST, 5, at=0)
    assert measured(credit, NONE, 160).highest(2) == 1
    assert measured(credit, NONE, 14).highest(2) == 0


def test_what_no_point_would_have_held_counts_for_nothing() -> None:
    credit = measured(Credit(3), ALL, 50)
    assert (credit.measured, credit.over) == (50, 50)
    assert credit.highest(2) == 0


def test_points_above_the_floor_do_not_count() -> None:
    """What only a point above the floor would have held is nobody's fault."""
    credit = measured(Credit(2), np.array([True, True, False]), 50, at=1)
    assert credit.highest(1) == 0
