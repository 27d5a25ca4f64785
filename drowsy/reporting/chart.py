"""The points of a knob as a picture: what they lose against what they cost, labelled in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from drowsy.files.pictures import apart, root, round_losses, unroot
from drowsy.reporting.markup import tag
from drowsy.reporting.words import number

# Pixels between neighbouring labels, and between neighbouring ticks.
_LINE, _TICK = 17.0, 26.0
_TOP, _BOTTOM, _LEFT = 40.0, 44.0, 40.0
_RADIUS = 6.0


@dataclass(frozen=True)
class Mark:
    """A point in the picture.

    Args:
        name: its number in the page's tables; empty for one that is none of the knob's points.
        cost, loss, low, high: its place, and its loss's interval where there is one.
        turned: words on what each lever does, by lever; none for the network awake.
        present: whether it is in force, and ringed.
    """

    name: str
    cost: float
    loss: float
    low: float | None
    high: float | None
    turned: dict[str, str]
    present: bool = False


@dataclass(frozen=True)
class Shape:
    """Sizes of a picture in pixels: its width, where the plot ends, whether labels are words."""

    width: float
    right: float
    worded: bool


# For screens of a desk, and of a phone.
WIDE, NARROW = Shape(900, 440, True), Shape(350, 300, False)


def chart(marks: Sequence[Mark], x_title: str, y_title: str, shape: Shape) -> Element:
    """Loss against cost, from a cost of 0 on; losses on a scale of square roots, signed."""
    named = [mark for mark in marks if mark.name]
    height = max(330.0, _TOP + _BOTTOM + _LINE * len(named))
    floor = height - _BOTTOM
    low = min(min(_ends(mark)) for mark in marks)
    high = max(max(_ends(mark)) for mark in marks)
    bottom, top = root(min(low, 0.0)), root(high)
    # Where nothing is lost, a point's worth of room.
    span = (top - bottom) * 1.04 or 1.0
    most = 1.05 * max(mark.cost for mark in marks) or 1.0

    def x(cost: float) -> float:
        return _LEFT + (shape.right - _LEFT) * cost / most

    def y(loss: float) -> float:
        return floor - (floor - _TOP) * (root(loss) - bottom) / span

    drawn = [_grid(x, y, most, (unroot(bottom), unroot(bottom + span)), shape.right, floor)]
    drawn += [_mark(mark, x, y) for mark in marks if not mark.name]
    drawn += _labels(named, x, y, shape, floor)
    drawn += [_mark(mark, x, y) for mark in named]
    drawn.append(tag("text", y_title, x=4, y=16, class_="axis"))
    across = (_LEFT + shape.right) / 2
    drawn.append(tag("text", x_title, x=across, y=height - 6, class_="axis", text_anchor="middle"))
    return tag(
        "svg",
        tag("title", f"{y_title} against {x_title}, {len(named)} points"),
        drawn,
        viewBox=f"0 0 {shape.width:g} {height:g}",
        class_=f"chart {'wide' if shape.worded else 'narrow'}",
        role="img",
    )


def dot(x: float, y: float, levers: Iterable[str], radius: float = _RADIUS) -> Element:
    """A disc with an equal slice for each lever at work; a ring where there is none."""
    found = list(levers)
    if len(found) < 2:
        kind = f"dot {found[0]}" if found else "dot awake"
        return tag("circle", cx=x, cy=y, r=radius, class_=kind)
    slices = []
    for n, lever in enumerate(found):
        ends = [2 * math.pi * (m / len(found) - 0.25) for m in (n, n + 1)]
        (x0, y0), (x1, y1) = ((x + radius * math.cos(a), y + radius * math.sin(a)) for a in ends)
        path = f"M{x:.2f} {y:.2f}L{x0:.2f} {y0:.2f}A{radius:g} {radius:g} 0 0 1 {x1:.2f} {y1:.2f}Z"
        slices.append(tag("path", d=path, class_=f"dot {lever}"))
    return tag("g", slices)


def _ends(mark: Mark) -> tuple[float, float, float]:
    low, high = (mark.loss if end is None else end for end in (mark.low, mark.high))
    return low, mark.loss, high


def _grid(
    x: Callable[[float], float],
    y: Callable[[float], float],
    most: float,
    losses: tuple[float, float],
    right: float,
    floor: float,
) -> Element:
    """Ticks and their lines; the line of no loss is the strongest."""
    drawn = []
    for loss in round_losses(*losses, _TICK / (floor - _TOP)):
        kind = "zero" if loss == 0 else "grid"
        drawn.append(tag("line", x1=_LEFT, x2=right, y1=y(loss), y2=y(loss), class_=kind))
        drawn.append(
            tag("text", number(loss), x=_LEFT - 6, y=y(loss) + 4, class_="tick", text_anchor="end")
        )
    for cost in _round_costs(most, (right - _LEFT) / 70):
        drawn.append(
            tag("text", number(cost), x=x(cost), y=floor + 18, class_="tick", text_anchor="middle")
        )
        drawn.append(tag("line", x1=x(cost), x2=x(cost), y1=floor, y2=floor + 4, class_="zero"))
    return tag("g", drawn)


def _round_costs(most: float, count: float) -> list[float]:
    """Multiples of a round number up to ``most``, about ``count`` of them."""
    power = 10.0 ** math.floor(math.log10(most / count))
    step = next(f * power for f in (1, 2, 5, 10) if most / (f * power) <= count)
    return [n * step for n in range(int(most / step) + 1)]


def _mark(mark: Mark, x: Callable[[float], float], y: Callable[[float], float]) -> Element:
    at, up = x(mark.cost), y(mark.loss)
    told = ", ".join(mark.turned.values()) or "awake"
    drawn = [tag("title", f"{mark.name} {told}: {number(mark.cost)}, lost {number(mark.loss)}")]
    if mark.present:
        drawn.append(tag("circle", cx=at, cy=up, r=2 * _RADIUS, class_="present"))
    if not mark.name:
        return tag("g", drawn, tag("circle", cx=at, cy=up, r=3, class_="spare"))
    if mark.low is not None and mark.high is not None and mark.low != mark.high:
        drawn.append(tag("line", x1=at, x2=at, y1=y(mark.low), y2=y(mark.high), class_="whisker"))
    return tag("g", drawn, dot(at, up, mark.turned))


def _labels(
    marks: Sequence[Mark],
    x: Callable[[float], float],
    y: Callable[[float], float],
    shape: Shape,
    floor: float,
) -> list[Element]:
    """Labels beside the plot, in the order of their points, and lines that lead there."""
    # Of equal losses the cheaper point stands above, so that no line passes another's point.
    ordered = sorted(marks, key=lambda mark: (y(mark.loss), mark.cost))
    span = floor - _TOP
    places = apart([(y(mark.loss) - _TOP) / span for mark in ordered], _LINE / span)
    drawn = []
    for mark, part in zip(ordered, places, strict=True):
        place = _TOP + span * part
        start, end = x(mark.cost), shape.right + 12
        path = f"M{start:.2f} {y(mark.loss):.2f}L{end:.2f} {place:.2f}"
        drawn.append(tag("path", d=path, class_="lead"))
        words = [tag("tspan", mark.name, class_="name")]
        if shape.worded:
            for m, (lever, told) in enumerate(mark.turned.items()):
                words.append(tag("tspan", " \u00b7 " if m else "\u2002", class_="name"))
                words.append(tag("tspan", told, class_=lever))
            if not mark.turned:
                words.append(tag("tspan", "\u2002awake", class_="name"))
        kind = "label present" if mark.present else "label"
        drawn.append(tag("text", words, x=end + 5, y=place + 4, class_=kind))
    return drawn
