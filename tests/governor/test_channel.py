"""What is believed of a sensor's readings."""

from __future__ import annotations

import logging
import math
import random

import pytest

from drowsy.governor.channel import Channel


def channel(**options: bool) -> Channel:
    return Channel("watts", 0, 5000, **options)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "cannot be read"),
        (math.nan, "no number"),
        (math.inf, "believed: from 0 to 5000"),
        (-3.0, "believed: from 0 to 5000"),
        (0.0, "believed: from 0 to 5000"),
        (1e9, "believed: from 0 to 5000"),
        ("40", "no number"),
        (True, "no number"),
    ],
)
def test_what_cannot_be_is_no_news(
    value: object, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert channel().take(value) is None
    assert told in caplog.text


def test_an_outage_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "drowsy.governor")
    watts = channel()
    for _ in range(50):
        watts.take(None, "no such device")
    assert [each.getMessage() for each in caplog.records] == [
        "watts: no such device; the last estimate stands, with a growing margin"
    ]
    assert watts.take(40.0) == 40.0
    watts.believe(10.0)
    assert [each.getMessage() for each in caplog.records][1:] == ["watts: is told again"]


def test_a_sensor_that_varies_and_then_repeats_itself_stalls() -> None:
    watts = channel()
    chance = random.Random(0)
    for _ in range(500):
        assert watts.take(chance.gauss(40, 1)) is not None
    taken = [watts.take(41.5) for _ in range(20)]
    assert taken[:4] == [41.5] * 4
    assert taken[12:] == [None] * 8
    assert watts.take(41.6) == 41.6


def test_a_coarse_sensor_repeats_itself_and_is_sound() -> None:
    watts = channel()
    chance = random.Random(0)
    taken = [watts.take(float(round(chance.gauss(40, 0.35)))) for _ in range(5000)]
    assert None not in taken


def test_one_that_is_never_taken_for_stalled() -> None:
    celsius = channel(stalls=False)
    assert [celsius.take(40.0) for _ in range(500)] == [40.0] * 500


def test_quiet_grows_from_the_last_news() -> None:
    watts = channel()
    watts.take(40.0)
    watts.believe(100.0)
    assert watts.quiet(101.0) == 0
    assert watts.quiet(112.0) == 10
    watts.take(None)
    assert watts.quiet(122.0) == 20


def test_what_is_less_than_it_can_be_for_another_reason() -> None:
    watts = channel()
    assert watts.take(20.0, least=25.0) is None
    assert watts.take(30.0, least=25.0) == 30.0
