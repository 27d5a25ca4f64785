"""Live lines: the last minute of each figure, drawn small, or words on why there is none."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element

from drowsy.reporting.markup import tag
from drowsy.reporting.words import number

SECONDS = 60.0
# Pixels of a line, and of the room for its scale.
_WIDTH, _HEIGHT, _SCALE, _EDGE = 300.0, 76.0, 44.0, 7.0
# Readings kept for a line; more of them are told as a mean each.
_MOST = 240
# Points further apart than this are not joined.
_GAP = 5.0
_ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


class Track:
    """The last minute of one figure, at most so many readings of it."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self._sum, self._count = 0.0, 0

    def note(self, at: float, value: float | None) -> None:
        """A reading; None is none. Within a step of time the mean is kept."""
        if value is None:
            return
        last = self._readings[-1] if self._readings else None
        if last is not None and at - last[0] < SECONDS / _MOST:
            self._sum, self._count = self._sum + value, self._count + 1
            self._readings[-1] = last[0], self._sum / self._count
        else:
            self._sum, self._count = value, 1
            self._readings.append((at, value))

    def since(self, now: float) -> list[tuple[float, float]]:
        """``(seconds ago, value)`` of the last minute, the oldest first."""
        return [(now - at, value) for at, value in self._readings if now - at <= SECONDS]


@dataclass(frozen=True)
class Line:
    """What is drawn of one figure.

    Args:
        name: for tests and styles.
        title: what it is, with its unit.
        value: now, in words.
        told: beside the value.
        readings: as ``Track.since`` gives them.
        budget: drawn across, where there is one.
        span: from where to where the scale goes at least.
        why: why there are no readings.
    """

    name: str
    title: str
    value: str
    told: str
    readings: Sequence[tuple[float, float]]
    budget: float | None = None
    span: tuple[float, float | None] = (0.0, None)
    why: str = ""


def tile(line: Line) -> Element:
    """A line with its title and value."""
    called = f"line-{line.name}"
    if line.why:
        title = tag("h3", f"{line.title}: not measured")
        return tag(
            "section",
            title,
            tag("p", f"{line.why[:1].upper()}{line.why[1:]}.", class_="why"),
            class_="tile none",
            id=called,
        )
    value = tag("div", line.value or "\u2026", tag("span", line.told), class_="value")
    return tag("section", tag("h3", line.title), value, _drawn(line), class_="tile", id=called)


def _drawn(line: Line) -> Element:
    low, high = _scale(line)

    def x(ago: float) -> float:
        return _SCALE + (_WIDTH - _SCALE - _EDGE) * (1 - ago / SECONDS)

    def y(value: float) -> float:
        return _EDGE + (_HEIGHT - 2 * _EDGE) * (high - value) / (high - low)

    parts = []
    for level in (low, high):
        parts.append(
            tag("line", x1=_SCALE, x2=_WIDTH - _EDGE, y1=y(level), y2=y(level), class_="grid")
        )
        parts.append(
            tag(
                "text",
                number(level),
                x=_SCALE - 6,
                y=y(level) + 4,
                class_="tick",
                text_anchor="end",
            )
        )
    if line.budget is not None:
        parts.append(
            tag(
                "line",
                tag("title", f"budget {number(line.budget)}"),
                x1=_SCALE,
                x2=_WIDTH - _EDGE,
                y1=y(line.budget),
                y2=y(line.budget),
                class_="budget",
            )
        )
    for run in _runs(line.readings):
        path = "L".join(f"{x(ago):.1f} {y(value):.1f}" for ago, value in run)
        parts.append(tag("path", d=f"M{path}", class_="run"))
    if line.readings:
        ago, value = line.readings[-1]
        parts.append(tag("circle", cx=x(ago), cy=y(value), r=3.5, class_="now"))
    return tag(
        "svg",
        tag("title", f"{line.title}, the last {SECONDS:g} seconds: now {line.value}"),
        parts,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
    )


def _scale(line: Line) -> tuple[float, float]:
    """From where to where a line goes: what is read, what is bound, and the least span."""
    values = [value for _, value in line.readings]
    if line.budget is not None:
        values.append(line.budget)
    low, high = line.span
    low, high = min([low, *values]), max([*values, high or low])
    if high <= low:
        return low, low + 1.0
    if line.span[1] is None and high > 0:
        high = _round_up(high)
    return low, high


def _round_up(value: float) -> float:
    """The next round number."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(part * power for part in _ROUND if part * power >= value * (1 - 1e-9))


def _runs(readings: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Readings without a gap among them."""
    runs = [list(readings[:1])] if readings else []
    for before, after in pairwise(readings):
        if before[0] - after[0] > _GAP:
            runs.append([])
        runs[-1].append(after)
    return runs
