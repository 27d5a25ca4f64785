"""The policy, a pure function: limits and a point in, a point and a reason out."""

from __future__ import annotations

import numpy as np
import pytest

from drowsy.governor.policy import CERTAINTY, Limit, choose

EXPECTED = np.array([20.0, 18.0, 16.0, 14.0, 12.0, 10.0])


def limit(
    budget: float, doubt: float = 0.0, rise: float | None = None, name: str = "watts"
) -> Limit:
    doubts = np.full(len(EXPECTED), doubt)
    return Limit(name, budget, budget if rise is None else rise, EXPECTED, doubts)


def test_stays_where_it_fits_and_nothing_better_does() -> None:
    choice = choose([limit(16.5)], 2, 6, highest=0)
    assert (choice.point, choice.reason, choice.feasible) == (2, "", True)


def test_falls_at_once_to_the_most_accurate_that_fits() -> None:
    choice = choose([limit(12.5)], 0, 6, highest=5)
    assert (choice.point, choice.limit, choice.feasible) == (4, "watts", True)
    assert choice.reason == "over budget: watts 20 + 0 of 12.5"


def test_doubt_counts() -> None:
    assert choose([limit(16.5, doubt=0.2)], 2, 6, highest=5).point == 2
    assert choose([limit(16.5, doubt=0.6 / CERTAINTY)], 2, 6, highest=5).point == 3


def test_rises_half_of_the_way() -> None:
    points = [5]
    while (choice := choose([limit(30.0)], points[-1], 6, highest=0)).reason:
        assert choice.reason.startswith("room for more: watts")
        points.append(choice.point)
    assert points == [5, 2, 1, 0]


def test_rises_only_when_it_may_and_into_the_smaller_budget() -> None:
    assert choose([limit(30.0)], 5, 6, highest=5).point == 5
    assert choose([limit(14.5, rise=13.9)], 4, 6, highest=0).point == 4
    assert choose([limit(14.5, rise=14.1)], 4, 6, highest=0).point == 3


def test_rises_no_higher_than_it_may() -> None:
    assert choose([limit(30.0)], 5, 6, highest=3).point == 4
    assert choose([limit(30.0)], 4, 6, highest=3).point == 3
    assert choose([limit(30.0)], 3, 6, highest=3).point == 3


def test_every_limit_must_hold() -> None:
    both = [limit(30.0, name="watts"), limit(15.0, name="latency_ms")]
    choice = choose(both, 0, 6, highest=0)
    assert (choice.point, choice.limit) == (3, "latency_ms")


def test_where_none_fits_it_is_the_nearest() -> None:
    choice = choose([limit(9.0)], 1, 6, highest=0)
    assert (choice.point, choice.feasible) == (5, False)
    assert choice.reason == "no point holds watts 10 + 0 of 9: the nearest"
    assert choose([limit(10.1, doubt=0.5)], 1, 6, highest=0).feasible is None


def test_the_floor_holds_budgets_or_not() -> None:
    assert choose([limit(9.0)], 1, 3, highest=0).point == 2
    assert choose([limit(12.5)], 5, 3, highest=0).point == 2


def test_points_that_cost_more_though_they_are_less_accurate_are_passed_over() -> None:
    expected = np.array([20.0, 15.0, 17.0, 12.0])
    crooked = Limit("watts", 16.0, 16.0, expected, np.zeros(4))
    assert choose([crooked], 0, 4, highest=5).point == 1
    assert choose([crooked], 2, 4, highest=5).point == 3
    assert choose([crooked], 3, 4, highest=0).point == 1


@pytest.mark.parametrize("present", range(6))
@pytest.mark.parametrize("budget", [8.0, 11.0, 15.0, 40.0])
def test_choosing_again_comes_to_rest(present: int, budget: float) -> None:
    seen = [present]
    for _ in range(10):
        seen.append(choose([limit(budget)], seen[-1], 6, highest=0).point)
    assert len(set(seen[5:])) == 1
