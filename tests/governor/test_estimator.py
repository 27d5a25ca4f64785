"""The estimator against worlds whose every number is known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from drowsy.governor.estimator import Estimator

RECORDED = np.array([20.0, 16.0, 12.0])


def learn(
    estimator: Estimator, point: int, figure: float, times: int, noise: float = 0.0, seed: int = 0
) -> None:
    chance = random.Random(seed)
    for _ in range(times):
        estimator.observe(point, RECORDED[point], figure * (1 + chance.gauss(0, noise)))


def test_what_is_learned_at_one_point_tells_of_all() -> None:
    estimator = Estimator(3)
    learn(estimator, 1, 1.3 * 16.0, 200, noise=0.02)
    mean, doubt = estimator.expect(RECORDED, 1.0)
    assert mean == pytest.approx(1.3 * RECORDED, rel=0.02)
    # Points that were not visited are less certain.
    assert doubt[0] / mean[0] > doubt[1] / mean[1]


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
def test_noise_is_learned(noise: float) -> None:
    estimator = Estimator(3)
    learn(estimator, 0, 20.0, 1000, noise=noise)
    assert estimator.noise == pytest.approx(noise, rel=0.3)


def test_a_point_of_its_own_is_told_from_a_device_that_is_slower() -> None:
    """The point's figure is 8% above its recording; the device is as recorded."""
    estimator = Estimator(3)
    learn(estimator, 0, 20.0, 300, noise=0.01)
    learn(estimator, 1, 16.0 * 1.04, 20, noise=0.01)
    mean, _ = estimator.expect(RECORDED, 0.0)
    assert mean[1] == pytest.approx(16.0 * 1.04, rel=0.01)
    assert mean[0] == pytest.approx(20.0, rel=0.035)
    assert estimator.own[1] > 0.01


def test_one_far_measurement_is_no_step_and_two_dear_ones_are() -> None:
    estimator = Estimator(3)
    learn(estimator, 0, 20.0, 200, noise=0.02)
    before = estimator.mean(0, 20.0)
    estimator.observe(0, 20.0, 60.0)
    assert estimator.mean(0, 20.0) == before
    estimator.observe(0, 20.0, 60.0)
    assert estimator.mean(0, 20.0) == pytest.approx(60.0, rel=0.05)


def far(estimator: Estimator, times: int) -> Estimator:
    for _ in range(times):
        estimator.observe(0, 20.0, 60.0)
    return estimator


def test_where_far_ones_come_alone_it_takes_three() -> None:
    estimator = Estimator(3)
    for seed in range(10):
        learn(estimator, 0, 20.0, 20, noise=0.02, seed=seed)
        far(estimator, 1)
    learn(estimator, 0, 20.0, 20, noise=0.02)
    assert far(estimator, 2).mean(0, 20.0) == pytest.approx(20.0, rel=0.02)
    assert far(estimator, 1).mean(0, 20.0) == pytest.approx(60.0, rel=0.05)


def test_where_far_ones_are_followed_by_more_the_first_is_believed() -> None:
    estimator = Estimator(3)
    for seed in range(15):
        learn(estimator, 0, 20.0, 20, noise=0.02, seed=seed)
        far(estimator, 6)
    learn(estimator, 0, 20.0, 20, noise=0.02)
    assert far(estimator, 1).mean(0, 20.0) == pytest.approx(60.0, rel=0.05)


@pytest.mark.parametrize(("cheap", "needed"), [(10.0, 4), (22.0, 8)])
def test_good_news_takes_longer(cheap: float, needed: int) -> None:
    estimator = Estimator(3, cheap=cheap)
    learn(estimator, 0, 20.0, 200)
    for _ in range(needed - 1):
        estimator.observe(0, 20.0, 10.0)
    assert estimator.mean(0, 20.0) == pytest.approx(20.0, rel=0.02)
    estimator.observe(0, 20.0, 10.0)
    assert estimator.mean(0, 20.0) == pytest.approx(10.0, rel=0.05)


def test_small_steps_add_up() -> None:
    """Half a standard deviation beyond what is learned from at once, five times."""
    estimator = Estimator(3, offset_doubt=1.0)
    learn(estimator, 0, 40.0, 400, noise=0.05)
    slow = estimator.mean(0, 20.0)
    learn(estimator, 0, 46.0, 6, noise=0.0)
    assert estimator.mean(0, 20.0) > slow + 0.75 * (46.0 - slow)


def test_offset_and_slope_are_told_apart_by_changes_of_the_point() -> None:
    """Others draw 25 W, and our work 0.7 of what was recorded."""
    estimator = Estimator(3, offset_doubt=1.0, scales=(0.6, 1.7))
    for turn in range(60):
        point = turn % 3
        learn(estimator, point, 25 + 0.7 * RECORDED[point], 10, noise=0.01, seed=turn)
    assert estimator.scale == pytest.approx(0.7, abs=0.1)
    assert estimator.offset == pytest.approx(25.0, abs=2.0)


def test_own_corrections_fade() -> None:
    estimator = Estimator(3)
    learn(estimator, 0, 20.0, 300)
    learn(estimator, 1, 16.0 * 1.05, 30)
    own = estimator.own[1]
    assert own > 0.01
    learn(estimator, 0, 20.0, 60_000)
    assert estimator.own[1] < 0.2 * own


def test_numbers_stay_sound_after_many_measurements() -> None:
    estimator = Estimator(3, offset_doubt=1.0, scales=(0.6, 1.7))
    chance = random.Random(1)
    for turn in range(50_000):
        point = turn // 500 % 3
        figure = (30 + 10 * (turn // 3500 % 2) + RECORDED[point]) * (1 + chance.gauss(0, 0.02))
        estimator.observe(point, RECORDED[point], figure)
    mean, doubt = estimator.expect(RECORDED, 0.0)
    assert np.isfinite(mean).all()
    assert (doubt > 0).all()
    assert (doubt < 0.1 * mean).all()
