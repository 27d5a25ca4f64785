"""What knobs of both kinds are asked for: one wish, or one of their points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn, TypeVar

from drowsy.files.messages import quoted

Point = TypeVar("Point")


def the_request(method: str, point: Any, wishes: Mapping[str, float | None]) -> tuple[str, Any]:
    """The name and value of the only request to a method: ``point``, or one of ``wishes``.

    Raises:
        ValueError: none, or several.
    """
    given = {name: value for name, value in wishes.items() if value is not None}
    if (point is not None) + len(given) != 1:
        told = ", ".join([*(["a point"] if point is not None else []), *given]) or "nothing"
        raise ValueError(f"{method}: got {told}, allowed: a point, or one of {', '.join(wishes)}")
    return ("point", point) if point is not None else given.popitem()


def point_asked_for(asked: Any, points: Sequence[Point], known: Sequence[Point]) -> Point:
    """One of a knob's own points.

    Args:
        asked: its place among ``points``, or a point equal to one of ``known``.

    Raises:
        ValueError: there is none.
    """
    if isinstance(asked, Real):
        places = f"0 to {len(points) - 1}, or a point"
        if isinstance(asked, bool) or not isinstance(asked, Integral):
            named = f"a number to keep to by its name: saving={quoted(asked)}"
            raise ValueError(f"point: got {quoted(asked)}, allowed: {places}; {named}")
        place = int(asked)
        if not -len(points) <= place < len(points):
            raise ValueError(f"point: got {place}, allowed: {places}")
        return points[place]
    # Of equal points the knob's own, which the network knows.
    for own in known:
        if own == asked:
            return own
    raise ValueError("point: got one that this knob does not have, allowed: one of its points")


def refuse_pickling(knob: object) -> NoReturn:
    """Raise TypeError, which tells how a knob goes elsewhere."""
    raise TypeError(
        f"{type(knob).__name__}: got pickled (pickle, torch.save or another process), allowed: "
        "knob.save(path), and drowsy.load(path, model) there"
    )
