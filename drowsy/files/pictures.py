"""What all pictures share: figures without a display, axes, colours, legends, files.

A picture is ``new_figure``, a line ``by_depth`` for each layer, ``label_axes``, ``draw_legend`` and
``save_figure``, in this order. Figures and axes are matplotlib's own (extra ``plot``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from drowsy._optional import require
from drowsy.files.atomic import replacing

# As many layers as there are colours that nobody confuses.
DISTINCT = 10


def new_figure(panels: int, across: int | None = None) -> tuple[Any, list[Any]]:
    """``(figure, axes)`` of panels of 5.2 by 4.2 inches, with room for a legend.

    They stand side by side, or in rows of ``across``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    columns = min(panels, across or panels)
    rows = -(-panels // columns)
    # A Figure without pyplot: no global state, no display needed.
    figure = require("matplotlib.figure", "plot").Figure(
        figsize=(5.2 * columns + 1.2, 4.2 * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[panels:]:
        spare.remove()
    return figure, list(axes[:panels])


def by_depth(count: int) -> list[Any]:
    """Colours of ``count`` layers: distinct for up to ``DISTINCT``, a sequence for more."""
    maps = require("matplotlib", "plot").colormaps
    if count <= DISTINCT:
        return [maps["tab10"](i) for i in range(count)]
    return [maps["viridis"](0.95 * i / (count - 1)) for i in range(count)]


def label_axes(axis: Any, x: str, y: str) -> None:
    """Name a panel's axes, let both begin at 0, and draw a grid behind what is in it."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_legend(figure: Any, axis: Any) -> None:
    """A legend of what one panel shows, for all of them, to the right of the last."""
    handles, labels = axis.get_legend_handles_labels()
    small = len(labels) > DISTINCT
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=6.5 if small else 9,
        ncols=2 if len(labels) > 30 else 1,
    )


def square_roots(axis: Any, low: float, high: float) -> None:
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


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places as near to these as can be, in their order and at least ``gap`` from each other.

    Least squares: neighbours that are too near stand evenly about the mean of theirs.

    Args:
        places: rising.
        gap: 0 or more.
    """
    # Less their own gaps, places must only not fall: neighbours that do are pooled.
    pools: list[list[float]] = []
    for n, place in enumerate(places):
        pools.append([place - n * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [fmean(pool) for pool in pools for _ in pool]
    return [each + n * gap for n, each in enumerate(level)]


def save_figure(figure: Any, path: str | os.PathLike[str], title: str) -> Path:
    """Write a titled figure, whole or not at all, in the format of the path's ending; 150 dpi."""
    figure.suptitle(title, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return Path(path)
