"""Loss against milliseconds as a PNG file: a knob's points, labelled, and its rivals as lines."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drowsy._optional import require
from drowsy.files.labels import Label, label_points
from drowsy.files.messages import legible
from drowsy.files.pictures import draw_grid, lay_out, new_figure, save_figure, square_roots
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
# Names in a row below, which the longest fit in.
_ACROSS = 6


def check_drawable(rows: Sequence[Row]) -> None:
    """Raise ValueError for rows that ``plot_losses`` cannot draw."""
    if not rows:
        raise ValueError("rows: got none, allowed: one or more")
    if any(row["latency_ms"] is None for row in rows):
        raise ValueError("rows: got some without milliseconds, allowed: rows that were timed")
    if any(row[name] is None for row in rows for name in ("loss", "loss_low", "loss_high")):
        raise ValueError("rows: got some without losses, allowed: rows with losses and intervals")
    for row in rows:
        for name in ("latency_ms", "loss", "loss_low", "loss_high"):
            if not math.isfinite(row[name]):
                raise ValueError(
                    f"rows: {name}: got {row[name]} at {legible(row['setting'])}, allowed: a "
                    "finite number, as a picture has no place for others"
                )


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
        ValueError: no rows, or rows that were not timed, or whose losses are not known or not
            finite.
    """
    check_drawable(rows)
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
    axis.set_xlabel(f"milliseconds for a batch of {batch} (log scale)")
    axis.set_ylabel(f"{metric.title} {metric.lost}, scale of square roots")
    draw_grid(axis)
    _name_marks(figure, axis, [row["levers"] for row in knob])
    lay_out(figure, title)
    _label(axis, rows, rivals, scale)
    return save_figure(figure, path, title)


def _scale_axes(axis: Any, rows: Sequence[Row], scale: float) -> None:
    """Milliseconds by ratio, losses by their square roots: small and large ones can be read."""
    times = [row["latency_ms"] for row in rows]
    ends = [scale * row["loss"] for row in rows]
    knob = [row for row in rows if row["series"] == _KNOB]
    ends += [scale * row[end] for row in knob for end in ("loss_low", "loss_high")]
    square_roots(axis, min(0.0, *ends), max(1e-3, *ends))
    axis.set_xscale("log")
    # Room for labels on both sides.
    axis.set_xlim(min(times) / 1.6, max(times) * 1.25)
    ticks = [m * 10.0**e for e in range(-3, 7) for m in (1, 1.5, 2, 3, 4, 6, 8)]
    axis.set_xticks([t for t in ticks if min(times) / 1.6 <= t <= max(times) * 1.25], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")


def _label(axis: Any, rows: Sequence[Row], rivals: Sequence[str], scale: float) -> None:
    """Say of every point of the knob what it is, and where every rival ends."""
    knob = sorted((row for row in rows if row["series"] == _KNOB), key=lambda row: row["loss"])
    lines = [[row for row in rows if row["series"] == series] for series in rivals]

    def place(row: Row) -> tuple[float, float]:
        return row["latency_ms"], scale * row["loss"]

    names = [Label(row["setting"], *place(row), _COLOURS[row["levers"]]) for row in knob]
    for series, line in zip(rivals, lines, strict=True):
        last = max(line, key=lambda row: row["loss"])
        names.append(Label(f"{series}, {last['setting']}", *place(last), "0.25"))
    intervals = [
        (row["latency_ms"], *(scale * row[e] for e in ("loss_low", "loss_high"))) for row in knob
    ]
    label_points(axis, names, intervals, [[place(row) for row in line] for line in lines])


def _name_marks(figure: Any, axis: Any, levers: Sequence[str]) -> None:
    """Below, which colour is which lever, and which line is which rival."""
    lines = require("matplotlib.lines", "plot").Line2D
    there = [name for name in _COLOURS if name in levers]
    marks = [lines([], [], color=_COLOURS[name], marker="o", linestyle="") for name in there]
    rivals, names = axis.get_legend_handles_labels()
    figure.legend(
        [*marks, *rivals],
        [*there, *names],
        loc="outside lower center",
        ncols=_ACROSS,
        columnspacing=1,
        handletextpad=0.3,
        frameon=False,
        fontsize=8,
    )
