"""What all pictures share: figures without a display, axes, colours, legends, files.

A picture is ``new_figure``, lines, ``label_axes``, ``draw_legend`` or ``label_ends``, and
``save_figure``, in this order. Figures and axes are matplotlib's own (extra ``plot``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from drowsy._optional import require
from drowsy.files.atomic import replacing

# As many layers as there are colours that nobody confuses.
DISTINCT = 10
# Of figures and files alike: text of another resolution is wider or narrower.
DPI = 150
# As many lines as can be named beside a panel.
LABELS = 30


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
        figsize=(5.2 * columns + 1.2, 4.2 * rows), dpi=DPI, layout="constrained"
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
    draw_grid(axis, "0.9")


def draw_grid(axis: Any, colour: str = "0.92") -> None:
    """A grid behind what is in a panel, which is open above and to the right."""
    axis.grid(color=colour, linewidth=0.8)
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
    """A scale of square roots, signed, with ticks where small and large losses can be read.

    Args:
        axis: of the panel; its height is scaled.
        low, high: ends of what is drawn, which stands off the panel's edges.
    """
    axis.set_yscale("function", functions=(root, unroot))
    margin = 0.04 * (root(high) - root(low))
    low, high = unroot(root(low) - margin), unroot(root(high) + margin)
    axis.set_ylim(low, high)
    axis.set_yticks(round_losses(low, high, 0.08), minor=False)
    axis.yaxis.set_major_formatter("{x:g}")
    if low < 0:
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=1)


def root(loss: Any) -> Any:
    """The square root of a loss, or of many, with its sign."""
    return np.sign(loss) * np.sqrt(np.abs(loss))


def unroot(height: Any) -> Any:
    """The loss whose ``root`` that is."""
    return np.sign(height) * np.square(height)


def round_losses(low: float, high: float, gap: float) -> list[float]:
    """0, and round numbers as far apart as can be read on a scale of square roots, the large first.

    Args:
        low, high: ends of the scale; 0 lies within.
        gap: between neighbours at least, as a part of the scale.
    """
    least, far = gap * (root(high) - root(low)), max(-low, high) / 4
    tens = [10.0**power for power in range(4, -5, -1)]
    losses = [digit * ten for ten in tens for digit in (1, 2, 5)]
    # Large losses are far from each other.
    losses += [digit * ten for ten in tens for digit in (8, 6, 4, 3) if digit * ten > far]
    found = [0.0]
    for loss in (sign * loss for loss in losses for sign in (1, -1)):
        if low <= loss <= high and all(abs(root(loss) - root(t)) >= least for t in found):
            found.append(loss)
    return sorted(found)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places between 0 and 1 as near to these as can be, at least ``gap`` from each other.

    Least squares: neighbours that are too near stand evenly about the mean of theirs.

    Args:
        places: rising, at most as many as have room.
        gap: 0 or more.
    """
    # Less their own gaps, places must only not fall: neighbours that do are pooled.
    most = max(1 - gap * (len(places) - 1), 0.0)
    pools: list[list[float]] = []
    for n, place in enumerate(places):
        pools.append([min(max(place - n * gap, 0.0), most)])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [fmean(pool) for pool in pools for _ in pool]
    return [each + n * gap for n, each in enumerate(level)]


def label_ends(axis: Any, labels: Mapping[str, tuple[float, float, Any]]) -> None:
    """Name lines where they end, to the right of a panel whose limits are final.

    Args:
        axis: with linear scales.
        labels: of each line its last ``(x, y)`` and its colour; at most ``LABELS``.
    """
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    axis.set(xlim=(left, right), ylim=(low, high))
    order = sorted(labels, key=lambda text: labels[text][1])
    ends = {
        t: ((x - left) / (right - left), (y - low) / (high - low))
        for t, (x, y, _) in labels.items()
    }
    for text, height in zip(
        order, apart([ends[each][1] for each in order], 1 / LABELS), strict=True
    ):
        axis.annotate(
            text,
            ends[text],
            (1.06, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=6.5,
            color=labels[text][2],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": labels[text][2],
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 1,
                "relpos": (0, 0.5),
            },
        )


def nested(count: int) -> list[float]:
    """Widths of lines in the order that they are drawn in: each shows behind those after it."""
    return [1.2 + min(1.1, 3 / count) * n for n in range(count)][::-1]


def lay_out(figure: Any, title: str) -> None:
    """Title a figure and find all parts of it their places, which are final."""
    figure.suptitle(title, fontsize=11)
    figure.draw_without_rendering()


def save_figure(figure: Any, path: str | os.PathLike[str], title: str) -> Path:
    """Write a titled figure, whole or not at all, in the format of the path's ending."""
    lay_out(figure, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
    return Path(path)
