"""The paper's Figures 4 to 7 for any network, and comparisons of methods, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drowsy._optional import require
from drowsy.files.atomic import replacing

Row = Mapping[str, Any]
_PANELS = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)", "agreement": "agreement (%)"}
# As many layers as there are colours that nobody confuses.
_DISTINCT = 10
_UNIFORM_STYLE = {
    "rescale": ("rescaled", "tab:blue", "o"),
    "zero": ("non-rescaled", "tab:orange", "s"),
    "nearest": ("nearest awake neighbour", "tab:purple", "D"),
    "interpolate": ("interpolated", "tab:brown", "v"),
    "stencil": ("predicted from neighbours", "tab:pink", "P"),
    "auto": ("as convert chooses", "tab:green", "^"),
}


def plot_sensitivity(rows: Sequence[Row], path: str | os.PathLike[str], title: str) -> Path:
    """Fig. 4: accuracy against the rate of one layer alone; a line per layer.

    Rows need ``layer``, ``rate`` (a number), the measured columns (0 to 1) and their ``_std`` where
    known, which is drawn as a band.
    """
    panels = _measured(rows)
    figure, axes = _figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _draw_layers(axis, rows, panel)
        _label(axis, "dropout rate of the layer", _PANELS[panel])
        _eighths(axis)
    _legend(figure, axes[-1])
    return _save(figure, path, title)


def plot_savings(rows: Sequence[Row], path: str | os.PathLike[str], title: str) -> Path:
    """Fig. 5: multiplications saved by one layer, as a share of the network's, against its rate.

    Rows need ``layer``, ``rate`` and ``saving`` (0 to 1, of the network's multiplications).
    """
    figure, (axis,) = _figure(1)
    _draw_layers(axis, rows, "saving")
    _label(axis, "dropout rate of the layer", "multiplications saved (% of the network's)")
    _eighths(axis)
    _legend(figure, axis)
    return _save(figure, path, title)


def plot_uniform(rows: Sequence[Row], path: str | os.PathLike[str], title: str) -> Path:
    """Fig. 6: accuracy against saving at one rate for all layers; a line per flavour.

    Rows need ``fill``, ``saving``, the measured columns (0 to 1) and their ``_std`` where known,
    which is drawn as a band.
    """
    panels = _measured(rows)
    figure, axes = _figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _draw_uniform(axis, rows, panel, "-")
        _label(axis, "multiplications saved (%)", _PANELS[panel])
    axes[0].legend(frameon=False)
    return _save(figure, path, title)


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
    figure, axes = _figure(len(panels))
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
        _label(axis, "multiplications saved (%)", _PANELS[panel])
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
    return _save(figure, path, title)


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
    panels = [name for name in _PANELS if f"{name}_lost" in rows[0]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = _figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        reach: list[float] = [0.0, 1.0]
        for i, (method, colour) in enumerate(zip(methods, _by_depth(len(methods)), strict=True)):
            mine = [r for r in rows if r["method"] == method and r["saving_reached"] is not None]
            lost, spread = ([row[f"{panel}_{part}"] for row in mine] for part in ("lost", "std"))
            axis.errorbar(
                [100 * row["saving_reached"] for row in mine],
                lost,
                spread,
                marker="osD^vPX"[i % 7],
                markersize=5,
                capsize=3,
                linestyle="--" if method == rival else "-",
                color="black" if method == rival else colour,
                zorder=4 if method == rival else 3,
                label=method,
                clip_on=False,
            )
            reach += [y + sign * s for y, s in zip(lost, spread, strict=True) for sign in (-1, 1)]
        name = _PANELS[panel].removesuffix(" (%)")
        _label(axis, "multiplications saved (%)", f"{name} lost (points)")
        axis.autoscale(axis="x")
        _square_roots(axis, min(reach), max(reach))
    _legend(figure, axes[-1])
    return _save(figure, path, title)


# --- shared --------------------------------------------------------------------------------------


def _measured(rows: Sequence[Row]) -> list[str]:
    """Accuracy panels where there are labels, agreement where there are none."""
    if not rows:
        raise ValueError("rows: got none, allowed: one or more")
    found = [name for name in ("top1", "top5") if rows[0].get(name) is not None]
    return found or ["agreement"]


def _draw_layers(axis: Any, rows: Sequence[Row], column: str) -> None:
    """A line per layer of ``column`` against the rate."""
    names = list(dict.fromkeys(row["layer"] for row in rows))
    for i, (name, colour) in enumerate(zip(names, _by_depth(len(names)), strict=True)):
        mine = [row for row in rows if row["layer"] == name]
        # Neighbours in depth have like colours when there are many layers; markers tell them apart.
        marker = "o" if len(names) <= _DISTINCT else "osD^v"[i % 5]
        _draw_line(axis, mine, "rate", 1, column, "-", marker, colour, name)


def _draw_uniform(axis: Any, rows: Sequence[Row], panel: str, line: str) -> None:
    for fill, (label, colour, marker) in _UNIFORM_STYLE.items():
        mine = [row for row in rows if row["fill"] == fill]
        if not mine:
            continue
        _draw_line(axis, mine, "saving", 100, panel, line, marker, colour, f"uniform, {label}")


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
) -> None:
    """A line in per cent, with a band of one standard deviation where ``column``_std is known."""
    x, y = [x_unit * row[x_column] for row in rows], [100 * row[column] for row in rows]
    axis.plot(x, y, line, marker=marker, markersize=4, color=colour, label=label, clip_on=False)
    spread = [std for row in rows if (std := row.get(f"{column}_std")) is not None]
    if len(spread) == len(rows):
        low = [v - 100 * s for v, s in zip(y, spread, strict=True)]
        high = [v + 100 * s for v, s in zip(y, spread, strict=True)]
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    # A Figure without pyplot: no global state, no display needed.
    figure = require("matplotlib.figure", "plot").Figure(
        figsize=(5.2 * panels + 1.2, 4.2), layout="constrained"
    )
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _by_depth(count: int) -> list[Any]:
    """Distinct colours for a few layers; a sequence from first to last for many."""
    maps = require("matplotlib", "plot").colormaps
    if count <= _DISTINCT:
        return [maps["tab10"](i) for i in range(count)]
    return [maps["viridis"](0.95 * i / (count - 1)) for i in range(count)]


def _label(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _eighths(axis: Any) -> None:
    axis.set_xticks([i / 8 for i in range(8)], ["0", *(f"{i}/8" for i in range(1, 8))])


def _square_roots(axis: Any, low: float, high: float) -> None:
    """A scale of square roots, signed, with ticks where small and large losses can be read."""
    axis.set_yscale(
        "function",
        functions=(lambda y: np.sign(y) * np.sqrt(np.abs(y)), lambda r: np.sign(r) * np.square(r)),
    )
    axis.set_ylim(low, high)
    losses = (0, 1, 2, 5, 10, 20, 30, 40, 60, 80, 100)
    ticks = sorted({-t for t in losses} | set(losses))
    axis.set_yticks([t for t in ticks if low <= t <= high], minor=False)
    axis.yaxis.set_major_formatter("{x:g}")
    if low < 0:
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=1)


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    small = len(labels) > _DISTINCT
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=6.5 if small else 9,
        ncols=2 if len(labels) > 30 else 1,
    )


def _save(figure: Any, path: str | os.PathLike[str], title: str) -> Path:
    figure.suptitle(title, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return Path(path)
