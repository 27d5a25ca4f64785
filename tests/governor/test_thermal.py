"""The thermal model against first-order devices: foretelling, rounding, faults."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from drowsy.governor.thermal import LEAST_AHEAD, Thermal

AMBIENT, RESISTANCE = 28.0, 0.55


class Device:
    """A resistance and a capacity, read every 0.2 s."""

    def __init__(self, constant: float, rounding: float = 1.0) -> None:
        self.constant, self.rounding = constant, rounding
        self.celsius = AMBIENT
        self.model = Thermal(90.0)
        self.refused = 0
        self._chance = random.Random(0)

    def run(
        self,
        seconds: float,
        watts: Callable[[float], float],
        heard: Callable[[float], float] = lambda celsius: celsius,
    ) -> None:
        for i in range(int(seconds / 0.2)):
            power = watts(0.2 * i)
            settled = AMBIENT + RESISTANCE * power
            self.celsius = settled + (self.celsius - settled) * math.exp(-0.2 / self.constant)
            self.model.advance(0.2, power)
            told = self.celsius + self._chance.gauss(0, 0.05)
            told = round(told / self.rounding) * self.rounding
            self.refused += not self.model.observe(heard(told))


def square(low: float, high: float, period: float) -> Callable[[float], float]:
    return lambda t: high if t % period < period / 2 else low


@pytest.mark.parametrize("constant", [8.0, 30.0, 120.0])
@pytest.mark.parametrize("rounding", [1.0, 0.125])
def test_the_time_constant_is_learned(constant: float, rounding: float) -> None:
    device = Device(constant, rounding)
    device.run(8 * constant, square(30, 80, 2 * constant))
    assert 0.5 <= device.model.time_constant / constant <= 2.0
    assert device.model.celsius == pytest.approx(device.celsius, abs=0.6)
    assert device.refused <= 2  # of noise five deviations wide


@pytest.mark.parametrize("constant", [8.0, 30.0, 120.0])
def test_what_may_be_drawn_stays_below_the_limit_and_near_it(constant: float) -> None:
    """A device that draws just what it may for as long as it may."""
    device = Device(constant)
    device.run(4 * constant, square(40, 70, 2 * constant))
    limit = 65.0
    hottest, total = 0.0, 0.0
    watts = 40.0
    for _ in range(int(4 * constant)):
        device.run(1.0, lambda t: watts)  # noqa: B023
        hottest, total = max(hottest, device.celsius), total + watts
        watts = min(max(device.model.most_watts(limit, 0.05), 20.0), 100.0)
    assert hottest <= limit + 0.25
    assert total / int(4 * constant) > 0.93 * (limit - AMBIENT) / RESISTANCE


def test_more_may_be_drawn_for_a_shorter_time_and_when_it_is_cold() -> None:
    device = Device(30.0)
    device.run(200, square(30, 80, 60))
    model = device.model
    assert model.most_watts(75, 0.05) > model.most_watts(75, 0.2) > model.most_watts(70, 0.2)
    assert model.most_watts(75, 0.2) > model.most_watts(75, 0.2, margin=2.0)
    assert LEAST_AHEAD > 0.2  # longer than what passes between readings


def test_a_stuck_reading_is_found_by_power_that_must_have_heated() -> None:
    device = Device(30.0)
    device.run(300, square(40, 70, 60))
    device.run(100, lambda t: 40.0)
    held = round(device.celsius)
    device.refused = 0
    device.run(60, lambda t: 75.0, heard=lambda celsius: held)
    assert device.refused > 200
    assert device.model.celsius == pytest.approx(device.celsius, abs=2.5)
    assert device.model.celsius > held + 8


def test_a_cold_leap_is_refused_and_a_hot_one_is_believed() -> None:
    device = Device(30.0)
    device.run(300, square(40, 70, 60))
    before = device.model.celsius
    device.refused = 0
    device.run(10, lambda t: 60.0, heard=lambda celsius: celsius - 30)
    assert device.refused == 50
    assert device.model.celsius > before - 5
    device.run(5, lambda t: 60.0, heard=lambda celsius: celsius + 15)
    assert device.model.celsius == pytest.approx(device.celsius + 15, abs=2)


def test_a_cold_reading_that_stays_is_believed_in_the_end() -> None:
    """A fan that was stuck: what a first-order model cannot foretell, and is true."""
    device = Device(30.0)
    device.run(300, square(40, 70, 60))
    device.celsius -= 20
    device.run(120, lambda t: 60.0)
    assert device.model.celsius == pytest.approx(device.celsius, abs=1.0)


def test_half_an_hour_without_change_leaves_it_as_it_was() -> None:
    device = Device(30.0)
    device.run(300, square(40, 70, 60))
    device.run(400, lambda t: 60.0)
    allowed = device.model.most_watts(70, 0.05)
    device.run(1_500, lambda t: 60.0)
    assert device.model.most_watts(70, 0.05) == pytest.approx(allowed, rel=0.25)
    assert (device.model._covariance[:, 1, 1] <= 15.0**2 + 1).all()
