"""Intervals hold what they say as often as they say, and tell points apart image by image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from drowsy.evaluation.intervals import (
    Interval,
    as_good,
    expected_loss,
    grouped,
    interval,
    paired,
)

DRAWN: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(3, 2, n), 3.0),
    "skewed": (lambda rng, n: rng.exponential(1, n), 1.0),
    "an accuracy": (lambda rng, n: (rng.random(n) < 0.7).astype(np.float32), 0.7),
}


@pytest.mark.parametrize("name", DRAWN)
def test_95_of_100_intervals_hold_the_true_mean(name: str) -> None:
    draw, mean = DRAWN[name]
    rng, trials = np.random.default_rng(7), 300
    found = [interval(draw(rng, 150)) for _ in range(trials)]
    held = sum(each.low <= mean <= each.high for each in found)
    # Of 300 intervals of 95%, 285 do, give or take 3.8; three times that, and a little for skew.
    assert 0.91 * trials <= held <= 0.99 * trials


def test_95_of_100_paired_intervals_hold_the_true_difference() -> None:
    rng, trials, held, apart = np.random.default_rng(7), 300, 0, 0
    for _ in range(trials):
        hard = rng.normal(0, 1, 150)  # what images have in common for both
        one, other = hard + rng.normal(0.05, 0.1, 150), hard + rng.normal(0, 0.1, 150)
        low, high = paired(one, other)[1:]
        held += low <= 0.05 <= high
        apart += low > 0
        mine, theirs = interval(one), interval(other)
        assert mine.low < theirs.high  # by themselves they are not told apart
    assert 0.91 * trials <= held <= 0.99 * trials
    assert apart > 0.9 * trials


def test_of_many_images_it_is_twice_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, 4000)
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.mean())
    error = 1.96 * values.std() / 4000**0.5
    assert (mean - low, high - mean) == pytest.approx((error, error), rel=0.1)


def test_it_repeats_and_follows_every_value() -> None:
    values = np.random.default_rng(0).random(30)
    assert interval(values) == interval(list(values))
    changed = values.copy()
    changed[3] += 1
    assert interval(changed) != interval(values)
    mean, low, high = interval(values)
    shifted = interval(2 * values - 1)
    assert shifted == pytest.approx((2 * mean - 1, 2 * low - 1, 2 * high - 1))


def test_seeds_are_averaged_first() -> None:
    values = np.random.default_rng(0).random((3, 40))
    assert interval(values) == interval(values.mean(axis=0))
    assert paired(values, values[0]) == paired(values.mean(axis=0), values[0])


def test_small_cases() -> None:
    assert interval([0.25]) == Interval(0.25, 0.25, 0.25)
    assert interval([1.0] * 9) == Interval(1, 1, 1)
    assert paired([1.0, 2, 3], [1.0, 2, 3]) == Interval(0, 0, 0)
    # Of two images, a quarter of the draws has only the one, a quarter only the other.
    assert interval([0.0, 1.0]) == Interval(0.5, 0, 1)
    assert str(Interval(0.75, 0.5, 1.0)) == "0.75 (0.5 to 1)"


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_any_number_of_images(count: int) -> None:
    mean, low, high = interval(np.arange(count))
    assert low <= mean <= high
    assert mean == (count - 1) / 2


def test_values_that_come_in_groups_are_drawn_group_by_group() -> None:
    # Two groups that are alike within: both of one kind half of the time.
    assert grouped([np.zeros(50), np.ones(50)]) == Interval(0.5, 0.0, 1.0)
    # Every entry weighs the same.
    found = grouped([np.zeros(9), np.ones(3)])
    assert found.mean == 0.25
    assert (found.low, found.high) == (0, 1)
    values = np.random.default_rng(1).normal(size=40)
    assert grouped([values]) == interval(values)
    with pytest.raises(ValueError, match="groups: got none, allowed: one or more"):
        grouped([])
    with pytest.raises(ValueError, match=r"group 1: got shape \(0,\)"):
        grouped([np.ones(3), np.ones(0)])


def test_95_of_100_intervals_of_groups_hold_the_true_mean() -> None:
    rng = np.random.default_rng(3)
    held, alone = 0, 0
    for _ in range(200):
        groups = [rng.normal(5 + rng.normal(0, 2), 1, size) for size in rng.integers(4, 12, 30)]
        found, plain = grouped(groups), interval(np.concatenate(groups))
        held += found.low <= 5 <= found.high
        alone += plain.low <= 5 <= plain.high
    assert held >= 180
    # Taken for unrelated, they seem far surer than they are.
    assert alone < 150


def test_as_good_is_within_a_standard_error() -> None:
    best = np.array([1.0, 3.0, 1.0, 3.0])
    # Losses of 0 and 1 by turns: their mean is 0.5, its standard error 0.25.
    assert not as_good(best - np.array([0.0, 1.0, 0.0, 1.0]), best)
    # Of -1 and 1.8: 0.4 and 0.7.
    assert as_good(best - np.array([-1.0, 1.8, -1.0, 1.8]), best)


@pytest.mark.parametrize("mean", [-0.5, -0.03, 0.0, 0.02, 0.1, 5.0])
def test_the_expected_loss_is_that_of_losses_that_look_so(mean: float) -> None:
    """Of many sets of images of no gain, those that show this loss have this one on average."""
    lost = mean + np.array([0.3, -0.3] * 50)
    error = 0.03
    drawn = np.linspace(0, max(mean, 0) + 10 * error, 200_001)
    likely = np.exp(-(((drawn - mean) / error) ** 2) / 2 + (min(mean, 0) / error) ** 2 / 2)
    wanted = (drawn * likely).sum() / likely.sum()
    assert expected_loss(1 - lost, np.ones(100)) == pytest.approx(wanted, rel=0.02)


def test_what_changes_nothing_loses_nothing() -> None:
    best = np.arange(4.0)
    assert expected_loss(best, best) == 0
    assert expected_loss(best + 1, best) == 0
    assert expected_loss(best - 0.5, best) == 0.5
