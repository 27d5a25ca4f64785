"""Loss against milliseconds as a PNG file: a knob's points, labelled, and its rivals as lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from drowsy._optional import require
from drowsy.files.pictures import draw_grid, new_figure, save_figure, square_roots
from drowsy.files.tables import Row
from drowsy.knob.metrics import METRICS

# Colours of a point by its levers; they differ in lightness too.
_COLOURS = {
    "awake": "black",
    "view": "tab:blue",
    "format": "tab:green",
    "view + format": "tab:cyan",
    "sleep": "tab:red",
    "view + sleep": "tab:purple",
    "sleep + format": "tab:orange",
    "view + sleep + format": "tab:brown",
}
_KNOB = "knob"
_FONT = 7.5
# Height of a line of labels, width of a letter and room beside a dot, in parts of the panel.
_LINE, _LETTER, _GAP = 0.042, 0.0082, 0.018
# A label stands at most so many half lines above or below its point.
_AWAY = 6


def plot_losses(
    rows: Sequence[Row], objective: str, batch: int, path: str | os.PathLike[str], title: str
) -> Path:
    """What each point loses against what it takes.

    Args:
        rows: as ``drowsy.study.knobs`` makes them. Those of series ``knob`` are dots in the colours
            of their levers, every one labelled, with bars of their intervals; of every other series
            a dashed line, labelled at its end.
        objective: the metric that is lost.
        batch: images a batch, of which the milliseconds are.
        path: of the picture.
        title: above it.

    Raises:
        ValueError: no rows, or rows that were not timed.
    """
    if not rows:
        raise ValueError("rows: got none, allowed: one or more")
    if any(row["latency_ms"] is None for row in rows):
        raise ValueError("rows: got some without milliseconds, allowed: rows that were timed")
    metric = METRICS[objective]
    scale = 100 if metric.is_fraction else 1
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(8.4, 4.6)
    knob = [row for row in rows if row["series"] == _KNOB]
    _scale_axes(axis, rows, scale)
    rivals = list(dict.fromkeys(row["series"] for row in rows if row["series"] != _KNOB))
    for series, colour, marker in zip(rivals, ("0.35", "0.55", "0.7"), "sDv", strict=False):
        mine = [row for row in rows if row["series"] == series]
        axis.plot(
            [row["latency_ms"] for row in mine],
            [scale * row["loss"] for row in mine],
            linestyle="--",
            marker=marker,
            markersize=4,
            color=colour,
            zorder=2,
            label=series,
        )
    for row in knob:
        loss, low, high = (scale * row[name] for name in ("loss", "loss_low", "loss_high"))
        axis.errorbar(
            [row["latency_ms"]],
            [loss],
            [[max(loss - low, 0)], [max(high - loss, 0)]],
            marker="o",
            markersize=6,
            capsize=2,
            elinewidth=0.8,
            color=_COLOURS[row["levers"]],
            zorder=4,
            clip_on=False,
        )
    _label(axis, rows, rivals, scale)
    axis.set_xlabel(f"milliseconds for a batch of {batch}")
    axis.set_ylabel(f"{metric.title} {metric.lost}")
    draw_grid(axis)
    _name_colours(figure, [row["levers"] for row in knob])
    return save_figure(figure, path, title)


def _scale_axes(axis: Any, rows: Sequence[Row], scale: float) -> None:
    """Milliseconds by ratio, losses by their square roots: small and large ones can be read."""
    times = [row["latency_ms"] for row in rows]
    ends = [scale * row[name] for row in rows for name in ("loss", "loss_low", "loss_high")]
    square_roots(axis, min(0.0, *ends), max(1e-3, *ends) * 1.1)
    axis.set_xscale("log")
    # Room for labels on both sides.
    axis.set_xlim(min(times) / 1.6, max(times) * 1.25)
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 1.5, 2, 3, 4, 6, 8)]
    axis.set_xticks([t for t in ticks if min(times) / 1.6 <= t <= max(times) * 1.25], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")


def _label(axis: Any, rows: Sequence[Row], rivals: Sequence[str], scale: float) -> None:
    """Say of every point what it is, beside it and over as little as can be."""

    def place(row: Row, of: str = "loss") -> tuple[float, float]:
        at = axis.transData.transform((row["latency_ms"], scale * row[of]))
        x, y = axis.transAxes.inverted().transform(at)
        return float(x), float(y)

    knob = sorted((row for row in rows if row["series"] == _KNOB), key=lambda row: place(row)[1])
    drawn = [(place(row, "loss_low"), place(row, "loss_high")) for row in knob]
    for series in rivals:
        drawn += pairwise([place(row) for row in rows if row["series"] == series])
    taken: list[Box] = []
    stroke = require("matplotlib.patheffects", "plot").withStroke
    for row in knob:
        (x, y), text = place(row), row["setting"]
        box = _free(x, y, _LETTER * len(text), drawn, taken)
        taken.append(box)
        left, height = box.last < x, (box.low + box.high) / 2
        axis.annotate(
            text,
            (x, y),
            (box.last if left else box.first, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="right" if left else "left",
            va="center",
            fontsize=_FONT,
            color=_COLOURS[row["levers"]],
            # Behind what is drawn, but readable over the grid.
            zorder=1,
            path_effects=[stroke(linewidth=2, foreground="white")],
            arrowprops=(
                {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}
                if abs(height - y) > _LINE / 2
                else None
            ),
        )
    for series in rivals:
        last = max((row for row in rows if row["series"] == series), key=lambda row: row["loss"])
        x, y = place(last)
        right = x < 0.75
        axis.annotate(
            f"{series}, {last['setting']}",
            (x, y),
            (6 if right else -6, 2),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom",
            fontsize=_FONT,
            color="0.25",
            zorder=5,
        )


class Box(NamedTuple):
    """Where a label is, in parts of the panel."""

    first: float
    last: float
    low: float
    high: float

    def meets(self, other: Box) -> bool:
        apart = self.last < other.first or other.last < self.first
        return not (apart or self.high <= other.low or other.high <= self.low)

    def holds(self, x: float, y: float) -> bool:
        return self.first < x < self.last and self.low < y < self.high


def _free(
    x: float,
    y: float,
    width: float,
    drawn: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    taken: Sequence[Box],
) -> Box:
    """The place of a label beside a point that is over least, and nearest of those."""
    steps = sorted(range(-_AWAY, _AWAY + 1), key=abs)
    boxes = [
        Box(first, first + width, y + step * _LINE / 2 - _LINE / 2, y + (step + 1) * _LINE / 2)
        for step in steps
        for first in (x - _GAP - width, x + _GAP)
    ]
    inside = [b for b in boxes if b.first > 0 and b.last < 1 and b.low > 0 and b.high < 1] or boxes

    def over(box: Box) -> tuple[int, int]:
        points = ((a, b, n / 40) for a, b in drawn for n in range(41))
        lines = sum(
            box.holds(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for a, b, t in points
        )
        return sum(map(box.meets, taken)), lines

    return min(inside, key=over)


def _name_colours(figure: Any, levers: Sequence[str]) -> None:
    """A line below that tells which colour is which lever."""
    lines = require("matplotlib.lines", "plot").Line2D
    there = [name for name in _COLOURS if name in levers]
    marks = [lines([], [], color=_COLOURS[name], marker="o", linestyle="") for name in there]
    figure.legend(
        marks, there, loc="outside lower center", ncols=len(there), frameon=False, fontsize=8
    )
