"""The settings that a page tells of: every point of a knob, and what else was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drowsy.knob.point import OperatingPoint
from drowsy.reporting.words import saves, slower
from drowsy.tuning.knob import Knob


@dataclass(frozen=True)
class Setting:
    """A point, and how a page calls it.

    Args:
        name: what ``knob.set`` takes for it; ``A`` for the network awake where that is none of the
            knob's points; empty for a point that is not worth having.
        point: what was measured.
        turned: words on what each lever does, by lever.
        saved: fraction of the knob's cost, None where it was not measured.
        loss: of the objective.
        slower: whether it took longer than the network awake.
    """

    name: str
    point: OperatingPoint
    turned: dict[str, str]
    saved: float | None
    loss: float
    slower: bool

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.point.interval


def settings_of(knob: Knob) -> list[Setting]:
    """Awake, the knob's points by what they save, then the others that its file holds."""
    numbers = {id(point): str(n) for n, point in enumerate(knob.points)}
    numbers.setdefault(id(knob.awake), "A")
    rest = [point for point in knob.contents.points if id(point) not in numbers]
    worth = [knob.awake, *(point for point in knob.points if point is not knob.awake)]
    return [
        Setting(
            numbers.get(id(point), ""),
            point,
            knob.turned(point),
            _saved(knob, point),
            _loss(knob, point),
            slower(knob, point),
        )
        for point in (*worth, *rest)
    ]


def _saved(knob: Knob, point: OperatingPoint) -> float | None:
    try:
        return knob.saved(point)
    except ValueError:  # of nothing, nothing can be saved
        return None


def _loss(knob: Knob, point: OperatingPoint) -> float:
    if point.loss is not None:
        return point.loss
    whole, part = (each.figure(knob.objective) for each in (knob.awake, point))
    return whole - part


@dataclass(frozen=True)
class Axis:
    """A cost that points are drawn by: ``of`` tells a point's."""

    title: str
    of: Callable[[OperatingPoint], float | None]


def axes(knob: Knob) -> list[Axis]:
    """What a knob saves, and milliseconds where that is another thing and they are known."""
    time = Axis(f"milliseconds for a batch of {knob.batch}", lambda point: point.latency_ms)
    own = {
        "latency": time,
        "joules": Axis("joules an image", lambda point: point.joules),
        "macs": Axis(f"{saves('macs')}, % of awake", lambda point: 100 * (1 - point.saving)),
    }[knob.cost]
    return [
        axis
        for axis in dict.fromkeys((own, time))
        if all(axis.of(point) is not None for point in knob.contents.points)
    ]
