"""The settings that a page tells of: every point of a knob, and what else was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drowsy.images.view import View
from drowsy.reporting.words import AnyKnob, AnyPoint, saves, slower
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.clips.point import VideoPoint


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
        view: what the network is shown; None for whole pictures as they are.
        slower: whether it took longer than the network awake.
    """

    name: str
    point: Any
    turned: dict[str, str]
    saved: float | None
    loss: float
    view: View | None
    slower: bool

    @property
    def interval(self) -> tuple[float, float] | None:
        found: tuple[float, float] | None = self.point.interval
        return found


def settings_of(knob: AnyKnob) -> list[Setting]:
    """Awake, the knob's points by what they save, then the others that its file holds."""
    numbers = {id(point): str(n) for n, point in enumerate(knob.points)}
    numbers.setdefault(id(knob.awake), "A")
    rest = [point for point in knob.contents.points if id(point) not in numbers]
    worth = [knob.awake, *(point for point in knob.points if point is not knob.awake)]
    return [
        Setting(
            numbers.get(id(point), ""),
            point,
            knob.turned(point),  # type: ignore[arg-type]
            _saved(knob, point),
            _loss(knob, point),
            _view(knob, point),
            slower(knob, point),
        )
        for point in (*worth, *rest)
    ]


def _saved(knob: AnyKnob, point: AnyPoint) -> float | None:
    try:
        return knob.saved(point)  # type: ignore[arg-type]
    except ValueError:  # of nothing, nothing can be saved
        return None


def _view(knob: AnyKnob, point: AnyPoint) -> View | None:
    if not isinstance(point, VideoPoint):
        return point.view
    full = knob.contents.image[1:]
    return None if point.way.size is None else View(full, full, point.way.size)


def _loss(knob: AnyKnob, point: AnyPoint) -> float:
    if point.loss is not None:
        return point.loss
    whole, part = (each.figure(knob.objective) for each in (knob.awake, point))
    return whole - part


@dataclass(frozen=True)
class Axis:
    """A cost that points are drawn by: ``of`` tells a point's."""

    title: str
    of: Callable[[Any], float | None]


def axes(knob: AnyKnob) -> list[Axis]:
    """What a knob saves, and milliseconds where that is another thing and they are known.

    Of video always the mean and the slowest frame: who skips frames saves nothing of that.
    """
    if isinstance(knob, VideoKnob):
        known = {
            "latency": Axis("milliseconds a frame, the mean", lambda point: point.latency_ms),
            "slowest": Axis("milliseconds of the slowest frame", lambda point: point.slowest_ms),
        }
        if knob.cost == "macs":
            work = Axis(
                f"{saves('macs')} of a frame, % of awake, the mean", lambda point: 100 * point.work
            )
            known = {"macs": work, **known}
        own = known.pop(knob.cost)
        return _known(knob, [own, *known.values()])
    time = Axis(f"milliseconds for a batch of {knob.batch}", lambda point: point.latency_ms)
    own = {
        "latency": time,
        "joules": Axis("joules an image", lambda point: point.joules),
        "macs": Axis(f"{saves('macs')}, % of awake", lambda point: 100 * (1 - point.saving)),
    }[knob.cost]
    return _known(knob, list(dict.fromkeys((own, time))))


def _known(knob: AnyKnob, wanted: list[Axis]) -> list[Axis]:
    """Those that every point was measured by."""
    points = knob.contents.points
    return [axis for axis in wanted if all(axis.of(point) is not None for point in points)]
