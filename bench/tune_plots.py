"""Pictures of what ``bench.tune_study`` and ``bench.tune_dense`` recorded, beside their tables.

    python -m bench.tune_plots

Points of one saving stand beside each other, a little off what they save, for their intervals to be
seen.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.study_page import COMPARED, DENSE, STUDY, read
from drowsy.files.pictures import draw_grid, draw_legend, new_figure, save_figure, square_roots

# By method: colour, marker, width of the line. What is plain is grey.
_STYLES = {
    "tune": ("tab:red", "o", 2.0),
    "view": ("tab:blue", "^", 1.2),
    "sleep": ("tab:purple", "v", 1.2),
    "resolution": ("0.4", "s", 1.2),
    "crop": ("0.65", "D", 1.2),
    "bicubic": ("0.65", "D", 1.2),
}
# Points of one saving stand beside each other, so many percent apart.
_APART = 0.9


class Panel(NamedTuple):
    """Recorded rows, the columns of a loss and of the ends of its interval, and their unit."""

    rows: Sequence[Mapping[str, str]]
    columns: tuple[str, str, str]
    unit: str
    scale: float = 1.0


def plot_lost(panels: Mapping[str, Panel], path: Path, title: str) -> Path:
    """What each method loses against what is saved, a panel a network, with 95% intervals.

    Args:
        panels: by the text above them.
        path: of the picture.
        title: above it.
    """
    across = 2 if len(panels) == 4 else 3
    figure, axes = new_figure(len(panels), across)
    # Smaller than panels that stand alone, so that letters can be read on a page.
    figure.set_size_inches(3.6 * across + 1, 3 * math.ceil(len(panels) / across) + 0.3)
    drawn = {row["method"] for panel in panels.values() for row in panel.rows}
    methods = [name for name in _STYLES if name in drawn]
    for axis, (text, panel) in zip(axes, panels.items(), strict=True):
        _draw(axis, panel, methods)
        axis.set_title(textwrap.fill(text, 40), fontsize=10)
    for method in methods:
        # The first panel may lack one, but its legend is of all.
        colour, marker, width = _STYLES[method]
        axes[0].plot([], [], color=colour, marker=marker, linewidth=width, label=method)
    draw_legend(figure, axes[0])
    return save_figure(figure, path, title)


def _draw(axis: Any, panel: Panel, methods: Sequence[str]) -> None:
    rows, columns, unit, scale = panel
    ends = [0.0]
    for n, method in enumerate(methods):
        mine = [row for row in rows if row["method"] == method and row[columns[0]]]
        lost, low, high = ([scale * float(row[name]) for row in mine] for name in columns)
        ends += [*low, *high]
        beside = _APART * (n - (len(methods) - 1) / 2)
        colour, marker, width = _STYLES[method]
        axis.errorbar(
            [100 * float(row.get("saving_reached") or row["saving"]) + beside for row in mine],
            lost,
            [
                [max(a - b, 0.0) for a, b in zip(lost, low, strict=True)],
                [max(b - a, 0.0) for a, b in zip(lost, high, strict=True)],
            ],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=width,
            elinewidth=0.8,
            capsize=2,
            zorder=4 if method == "tune" else 3,
        )
    square_roots(axis, min(ends), max(ends))
    axis.set_xticks(sorted({100 * float(row["saving"]) for row in rows}))
    axis.set_xlabel("multiplications saved (%)")
    axis.set_ylabel(f"lost ({unit})")
    draw_grid(axis)


def main() -> None:
    """Draw what is recorded."""
    lost, framed = ("top1_lost", "low", "high"), ("framed_lost", "framed_low", "framed_high")
    classes = {title: read("tune", name) for name, title in COMPARED.items()}
    folder = STUDY / "tune"
    plot_lost(
        {title: Panel(rows, lost, "points of top-1") for title, rows in classes.items() if rows},
        folder / "classifiers.png",
        "Classifiers: lost against awake, with 95% intervals",
    )
    plot_lost(
        {
            title: Panel(rows, framed, "points of top-1")
            for title, rows in classes.items()
            if any(row.get("framed_lost") for row in rows)
        },
        folder / "framed.png",
        "The same points on photographs framed otherwise",
    )
    dense = {}
    for (network, metric), title in DENSE.items():
        rows = [row for row in read("tune", network) if row["metric"] == metric]
        scale, unit = (1.0, "dB") if metric == "psnr" else (100.0, "points")
        if rows:
            dense[title] = Panel(rows, ("lost", "low", "high"), unit, scale)
    plot_lost(dense, folder / "dense.png", "Outputs that cover the picture: lost against awake")


if __name__ == "__main__":
    main()
