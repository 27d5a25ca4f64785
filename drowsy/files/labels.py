"""Names beside the points of a panel: over no other name, no point and no interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from drowsy._optional import require

_FONT = 7.5
# Room about a point and between names, in points of type.
_DOT, _GAP = 4.0, 1.5
# A name is so many half lines farther off for not being over a line, nor its own over another's.
_DETOUR = 6


class Label(NamedTuple):
    """A point of a panel, what it is called, and in which colour."""

    text: str
    x: float
    y: float
    colour: Any


def label_points(
    axis: Any,
    labels: Sequence[Label],
    intervals: Sequence[tuple[float, float, float]],
    lines: Sequence[Sequence[tuple[float, float]]],
) -> None:
    """Name points beside them, in a panel that is laid out (``pictures.lay_out``).

    A name stands where it is over nothing, as near to its point as can be; a thin line leads there
    where that is not beside it, across no other such line where there is room. Only where the panel
    has no such place is it over something.

    Args:
        axis: its limits and its place in the figure are final.
        labels: points to name, those with the least room first.
        intervals: ``(x, low, high)`` of what is drawn upright.
        lines: points that are joined, each marked; names may cross lines, where the way around is
            long, but never cover a point.
    """
    room = _Room(axis)
    for label in labels:
        room.fill((label.x, label.y), (label.x, label.y))
    for x, low, high in intervals:
        room.fill((x, low), (x, high))
    for line in lines:
        room.join(line)
    texts = require("matplotlib.text", "plot").Text
    stroke = require("matplotlib.patheffects", "plot").withStroke
    for label in labels:
        name = axis.annotate(
            label.text,
            (label.x, label.y),
            (0, 0),
            textcoords="axes fraction",
            va="bottom",
            fontsize=_FONT,
            color=label.colour,
            zorder=3,
            path_effects=[stroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6},
        )
        extent = texts.get_window_extent(name)
        box, beside = room.take((label.x, label.y), extent.width, extent.height)
        name.arrow_patch.set_visible(not beside)
        name.xyann = axis.transAxes.inverted().transform((box.x0, box.y0))


class _Room:
    """What is drawn in a panel, in pixels."""

    def __init__(self, axis: Any) -> None:
        self._box = require("matplotlib.transforms", "plot").Bbox
        self._path = require("matplotlib.path", "plot").Path
        self._pixels = axis.transData.transform
        self._panel = axis.bbox
        self._unit = axis.figure.dpi / 72
        self._taken: list[Any] = []
        self._lines: list[Any] = []
        self._leads: list[Any] = []

    def fill(self, low: tuple[float, float], high: tuple[float, float]) -> None:
        """A mark from one point of the panel up to another."""
        ends = self._box([self._pixels(low), self._pixels(high)])
        self._taken.append(ends.padded(_DOT * self._unit))

    def join(self, line: Sequence[tuple[float, float]]) -> None:
        """A line from mark to mark."""
        for point in line:
            self.fill(point, point)
        self._lines += [self._path([self._pixels(a), self._pixels(b)]) for a, b in pairwise(line)]

    def take(self, point: tuple[float, float], width: float, height: float) -> tuple[Any, bool]:
        """The best place for a name of a point, and whether that is right beside it."""
        x, y = self._pixels(point)
        places = self._places(x, y, width, height)
        away, box = next(places)
        over = self._over(box)
        least = over, away + _DETOUR * self._crossed(x, y, away, box)
        for other, candidate in places:
            # The nearest come first: further off none can do less harm.
            if least <= (0, other):
                break
            over = self._over(candidate)
            # What takes longest to tell, only where it can matter.
            if (over, other) >= least:
                continue
            harm = over, other + _DETOUR * self._crossed(x, y, other, candidate)
            if harm < least:
                least, away, box = harm, other, candidate
        self._taken.append(box.padded(_GAP * self._unit))
        if away > 1:
            self._leads.append(self._lead(x, y, box))
        return box, away < 2

    def _places(self, x: float, y: float, width: float, height: float) -> Iterator[tuple[int, Any]]:
        """Boxes right, left, above and below, with how many half lines away each is."""
        beside = (_DOT + 2 * _GAP) * self._unit
        half = height / 2 + _GAP * self._unit
        steps = int(self._panel.height / half) + 1
        for step in sorted(range(-steps, steps + 1), key=abs):
            low = y - height / 2 + step * half
            for left in (x + beside, x - beside - width, x - width / 2):
                yield abs(step), self._box.from_bounds(left, low, width, height)

    def _over(self, box: Any) -> int:
        """How much a name there would be over."""
        inside = self._panel.x0 <= box.x0 and box.x1 <= self._panel.x1
        inside = inside and self._panel.y0 <= box.y0 and box.y1 <= self._panel.y1
        return box.count_overlaps(self._taken) + (0 if inside else len(self._taken))

    def _crossed(self, x: float, y: float, away: int, box: Any) -> int:
        """How many lines a name there would be over, and what its own would cross."""
        lines = (*self._lines, *self._leads)
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        if away > 1:
            lead = self._lead(x, y, box)
            others = (mark for mark in self._taken if not mark.contains(x, y))
            crossed += sum(lead.intersects_bbox(mark, filled=False) for mark in others)
            crossed += sum(lead.intersects_path(other, filled=False) for other in self._leads)
        return crossed

    def _lead(self, x: float, y: float, box: Any) -> Any:
        """From a point to its name."""
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        return self._path([(x, y), middle])
