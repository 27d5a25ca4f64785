"""A comparison of methods as a PNG file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drowsy.files.pictures import (
    by_depth,
    draw_legend,
    label_axes,
    nested,
    new_figure,
    save_figure,
    square_roots,
)
from drowsy.files.tables import Row
from drowsy.knob.metrics import METRICS, objectives


def plot_comparison(
    rows: Sequence[Row], path: str | os.PathLike[str], title: str, rival: str | None = None
) -> Path:
    """Points of accuracy lost against saving; a line per method, bars of one standard deviation.

    Rows need ``method``, ``saving_reached`` (0 to 1), and ``NAME_lost`` and ``NAME_std`` in points
    for top1 and top5, or for agreement. Rows without figures (None) are left out. The ``rival``, a
    method that the others are to beat, is drawn dashed and black. Losses are drawn on a scale of
    square roots, since some methods lose one point where others lose all.
    """
    if not rows:
        raise ValueError("rows: got none, allowed: one or more")
    panels = [name for name in objectives() if f"{name}_lost" in rows[0]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = new_figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        reach: list[float] = [0.0, 1.0]
        looks = zip(methods, by_depth(len(methods)), nested(len(methods)), strict=True)
        for i, (method, colour, width) in enumerate(looks):
            mine = [r for r in rows if r["method"] == method and r["saving_reached"] is not None]
            lost, spread = ([row[f"{panel}_{part}"] for row in mine] for part in ("lost", "std"))
            axis.errorbar(
                [100 * row["saving_reached"] for row in mine],
                lost,
                spread,
                marker="osD^vPX"[i % 7],
                markersize=5 if method == rival else 3.5 + width,
                linewidth=1.5 if method == rival else width,
                elinewidth=1.5,
                capsize=3,
                linestyle="--" if method == rival else "-",
                color="black" if method == rival else colour,
                zorder=4 if method == rival else 3,
                label=method,
                clip_on=False,
            )
            reach += [y + sign * s for y, s in zip(lost, spread, strict=True) for sign in (-1, 1)]
        label_axes(axis, "multiplications saved (%)", f"{METRICS[panel].title} lost (points)")
        axis.autoscale(axis="x")
        square_roots(axis, min(reach), max(reach))
    draw_legend(figure, axes[-1])
    return save_figure(figure, path, title)


def plot_clips(rows: Sequence[Row], damage: str, path: str | os.PathLike[str], title: str) -> Path:
    """Bars of every way to spend less on clips, at every saving, with intervals over clips.

    Rows are the table of ``drowsy.comparison.clips.compare_clips``. Bars that leave the picture, of
    ways that err several times as much as those that use earlier frames, end in their figure.
    """
    panels = {
        damage: METRICS[damage].axis,
        f"worst_{damage}": "worst of four frames",
        "moving_error": "feature error where it moves",
    }
    figure, axes = new_figure(len(panels))
    names = [f"{row['way']}, {row['saving']}" for row in rows]
    # In blue what bounds the work of every frame.
    colours = ["tab:blue" if row["peak"] < 1 else "tab:orange" for row in rows]
    places = range(len(rows))
    for axis, (column, name) in zip(axes, panels.items(), strict=True):
        values = [row[column] or 0.0 for row in rows]
        near = [v for v, row in zip(values, rows, strict=True) if row["way"] not in _FAR]
        edge = min(1.7 * max(near), 1.1 * max(values)) or 1.0
        axis.barh(places, values, color=colours)
        for place, row in zip(places, rows, strict=True):
            low, high = row[f"{column}_low"], row[f"{column}_high"]
            if row[column] is not None and row[column] > edge:
                text = f"{row[column]:.2g}"
                axis.text(0.98 * edge, place, text, ha="right", va="center", color="white")
            elif low is not None:
                axis.plot([low, high], [place, place], color="0.3", linewidth=1.5)
        label_axes(axis, name, "")
        axis.set_yticks(places, names if axis is axes[0] else [""] * len(rows))
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlim(0, edge)
    return save_figure(figure, path, f"{title}; orange: full work in some frames")


# Ways that know nothing of earlier frames.
_FAR = ("spatial fill", "scaled down")
