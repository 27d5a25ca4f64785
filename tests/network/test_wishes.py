"""What the knob is asked for, as one wish a layer; no network is needed to tell."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import LayerSetting, Schedule
from drowsy.network.wishes import Wish, wishes

PRESENT = {"a": 1, "b": 2, "c": 3}
SCHEDULE = Schedule(
    8, {"c": LayerSetting("3/8", "position", "nearest", 5, 1), "a": LayerSetting(0.25)}
)
OF_SCHEDULE = {
    "a": Wish(2, "zero", "neuron"),
    "b": Wish(0),
    "c": Wish(3, "nearest", "position", 5, 1),
}


@dataclass
class Another:
    """Whatever has a schedule."""

    schedule: Schedule


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (0, {"a": Wish(0), "b": Wish(0), "c": Wish(0)}),
        (0.5, {"a": Wish(4), "b": Wish(4), "c": Wish(4)}),
        (Fraction(7, 8), {"a": Wish(7), "b": Wish(7), "c": Wish(7)}),
        ({}, {"a": Wish(1), "b": Wish(2), "c": Wish(3)}),
        ({"c": 0.5, "a": Fraction(0)}, {"a": Wish(0), "b": Wish(2), "c": Wish(4)}),
        (SCHEDULE, OF_SCHEDULE),
        (OperatingPoint(SCHEDULE, 0.25), OF_SCHEDULE),
        (Another(SCHEDULE), OF_SCHEDULE),
    ],
    ids=["awake", "rate", "fraction", "nothing", "some", "schedule", "point", "another"],
)
def test_every_form_is_a_wish_a_layer_in_their_order(setting: Any, wanted: dict[str, Wish]) -> None:
    found = wishes(setting, PRESENT, 8)
    assert found == wanted
    assert list(found) == list(PRESENT)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        (0.3, ValueError, "rate: got 0.3, allowed: multiples of 1/8"),
        (10**400, ValueError, "rate: got 10+, allowed: multiples of 1/8"),
        ("half", TypeError, "rate: got 'half', allowed: a number"),
        (None, TypeError, "rate: got None, allowed: a number"),
        ({"a": 1.0}, ValueError, "rate: got 1.0, allowed: multiples of 1/8"),
        ({"a": 0, "x": 0, "y": 0}, ValueError, "layer: 'x', 'y' unknown; there are a, b, c"),
        (Schedule(8, {"x": LayerSetting()}), ValueError, "layer: 'x' unknown; there are a, b, c"),
        (Schedule(4), ValueError, "schedule: has k = 4, the network has k = 8"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_no_layer_can_have_is_refused(
    setting: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wishes(setting, PRESENT, 8)
