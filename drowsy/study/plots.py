"""The paper's Figures 4 to 7 for any network, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drowsy.files.pictures import (
    LABELS,
    by_depth,
    label_axes,
    label_ends,
    nested,
    new_figure,
    save_figure,
)
from drowsy.files.tables import Row
from drowsy.knob.metrics import METRICS, judged_by

# Layers that have a colour.
_COLOURED = 6
_UNIFORM_STYLE = {
    "rescale": ("rescaled", "tab:blue", "o"),
    "zero": ("non-rescaled", "tab:orange", "s"),
    "nearest": ("nearest awake neighbour", "tab:purple", "D"),
    "interpolate": ("interpolated", "tab:brown", "v"),
    "stencil": ("predicted from neighbours", "tab:pink", "P"),
    "auto": ("as convert chooses", "tab:green", "^"),
}


def plot_sensitivity(rows: Sequence[Row], path: str | os.PathLike[str], title: str) -> Path:
    """Fig. 4: accuracy against the rate of one layer alone; a line per layer, named at its end.

    The layers that lose most have colours of their own; the others are grey, and named while there
    is room.

    Rows need ``layer``, ``rate`` (a number), the measured columns (0 to 1) and their ``_std`` where
    known, which is drawn as a band.
    """
    panels = _measured(rows)
    figure, axes = new_figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _draw_layers(axis, rows, panel, "dropout rate of the layer", METRICS[panel].axis)
    return save_figure(figure, path, title)


def plot_savings(rows: Sequence[Row], path: str | os.PathLike[str], title: str) -> Path:
    """Fig. 5: multiplications saved by one layer, as a share of the network's, against its rate.

    Rows need ``layer``, ``rate`` and ``saving`` (0 to 1, of the network's multiplications).
    """
    figure, (axis,) = new_figure(1)
    shown = "multiplications saved (% of the network's)"
    _draw_layers(axis, rows, "saving", "dropout rate of the layer", shown)
    return save_figure(figure, path, title)


def plot_uniform(rows: Sequence[Row], path: str | os.PathLike[str], title: str) -> Path:
    """Fig. 6: accuracy against saving at one rate for all layers; a line per fill.

    Rows need ``fill``, ``saving``, the measured columns (0 to 1) and their ``_std`` where known,
    which is drawn as a band.
    """
    panels = _measured(rows)
    figure, axes = new_figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _draw_uniform(axis, rows, panel, "-")
        label_axes(axis, "multiplications saved (%)", METRICS[panel].axis)
    axes[0].legend(frameon=False)
    return save_figure(figure, path, title)


def plot_nonuniform(
    rows: Sequence[Row],
    frontiers: Mapping[str, Sequence[Row]],
    uniform: Sequence[Row],
    path: str | os.PathLike[str],
    title: str,
) -> Path:
    """Fig. 7: every setting as a dot, the optimal ones as a solid line, uniform ones dashed.

    Args:
        rows: every measured setting, with ``saving`` and the measured columns.
        frontiers: measured column -> rows of its Pareto-optimal settings, by saving.
        uniform: rows of ``plot_uniform``.
    """
    panels = [panel for panel in _measured(rows) if panel in frontiers]
    figure, axes = new_figure(len(panels))
    # Tens of thousands of dots: small and translucent, so that their density shows.
    many = len(rows) > 2000
    for axis, panel in zip(axes, panels, strict=True):
        axis.scatter(
            [100 * row["saving"] for row in rows],
            [100 * row[panel] for row in rows],
            s=3 if many else 12,
            color="0.45",
            alpha=0.3 if many else 0.6,
            linewidths=0,
            rasterized=True,
            label=f"each of {len(rows):,} settings",
        )
        _draw_uniform(axis, uniform, panel, "--")
        axis.plot(
            [100 * row["saving"] for row in frontiers[panel]],
            [100 * row[panel] for row in frontiers[panel]],
            color="tab:red",
            linewidth=2,
            zorder=3,
            label="non-uniform, Pareto-optimal",
        )
        label_axes(axis, "multiplications saved (%)", METRICS[panel].axis)
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        frameon=False,
        ncols=2 if len(panels) == 1 else 4,
    )
    # The dots in the picture are too small and too pale for a legend.
    legend.legend_handles[0].set(sizes=[16], alpha=0.8)
    return save_figure(figure, path, title)


def _measured(rows: Sequence[Row]) -> list[str]:
    """Accuracy panels where there are labels, agreement where there are none."""
    if not rows:
        raise ValueError("rows: got none, allowed: one or more")
    return judged_by(name for name, figure in rows[0].items() if figure is not None)


def _draw_layers(axis: Any, rows: Sequence[Row], column: str, x: str, y: str) -> None:
    """A line per layer of ``column`` against the rate, those that move least at the back."""
    names = list(dict.fromkeys(row["layer"] for row in rows))
    of = {name: [row for row in rows if row["layer"] == name] for name in names}
    moved = {name: sum(abs(r[column] - mine[0][column]) for r in mine) for name, mine in of.items()}
    order = sorted(names, key=moved.__getitem__, reverse=True)
    colours = dict(zip(order[:_COLOURED], by_depth(_COLOURED), strict=False))
    labels: dict[str, tuple[float, float, Any]] = {}
    for name in reversed(order):
        colour, mine = colours.get(name, "0.6"), of[name]
        width = 1.6 if name in colours else 0.8
        _draw_line(axis, mine, "rate", 1, column, "-", "o", colour, name, width)
        labels[name] = mine[-1]["rate"], 100 * mine[-1][column], colours.get(name, "0.4")
    label_axes(axis, x, y)
    _eighths(axis)
    if len(order) > LABELS:
        rest = order[LABELS - 1 :]
        middle = sorted(rest, key=lambda name: labels[name][1])[len(rest) // 2]
        at = labels[middle]
        labels = {name: labels[name] for name in order[: LABELS - 1]}
        labels[f"{len(rest)} more, in grey"] = at
    label_ends(axis, labels)


def _draw_uniform(axis: Any, rows: Sequence[Row], panel: str, line: str) -> None:
    """A line per fill; where two are one, the one behind shows on both sides."""
    there = [fill for fill in _UNIFORM_STYLE if any(row["fill"] == fill for row in rows)]
    for fill, width in zip(there, nested(len(there)), strict=True):
        label, colour, marker = _UNIFORM_STYLE[fill]
        mine = [row for row in rows if row["fill"] == fill]
        label = f"uniform, {label}"
        _draw_line(axis, mine, "saving", 100, panel, line, marker, colour, label, width)


def _draw_line(
    axis: Any,
    rows: Sequence[Row],
    x_column: str,
    x_unit: float,
    column: str,
    line: str,
    marker: str,
    colour: Any,
    label: str,
    width: float = 1.5,
) -> None:
    """A line in per cent, with a band of one standard deviation where ``column``_std is known."""
    x, y = [x_unit * row[x_column] for row in rows], [100 * row[column] for row in rows]
    axis.plot(
        x,
        y,
        line,
        marker=marker,
        markersize=2 + width,
        linewidth=width,
        color=colour,
        label=label,
        clip_on=False,
        # Dashes over what is solid: both are seen.
        zorder=4 if line == "--" else 2,
    )
    spread = [std for row in rows if (std := row.get(f"{column}_std")) is not None]
    if len(spread) == len(rows):
        low = [v - 100 * s for v, s in zip(y, spread, strict=True)]
        high = [v + 100 * s for v, s in zip(y, spread, strict=True)]
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _eighths(axis: Any) -> None:
    axis.set_xticks([i / 8 for i in range(8)], ["0", *(f"{i}/8" for i in range(1, 8))])
