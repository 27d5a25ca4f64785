"""Pictures of the recorded results; none where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import SLEEP_KINDS
from bench.records import (
    TITLES,
    Results,
    baseline,
    geometric_mean,
    gpu_name,
    joules,
    sleep_ratio,
)
from drowsy.files.pictures import label_axes, new_figure, save_figure
from drowsy.files.tables import Row


def plot_time(results: Results, path: Path) -> bool:
    """Time over own dense time against the rate: a line a layer, the mean, and 1 - r."""
    rows = [row for row in results.of("test_sleep") if row["kind"] in SLEEP_KINDS]
    if not rows:
        return False
    figure, axes = new_figure(len(SLEEP_KINDS))
    for axis, kind in zip(axes, SLEEP_KINDS, strict=True):
        mine = [row for row in rows if row["kind"] == kind]
        means: dict[float, list[float]] = {0.0: [1.0]}
        for row in mine:
            line = {0.0: 1.0}
            for rate in sorted(map(float, row["rates"])):
                ratio = sleep_ratio(row, rate)
                if ratio is not None:
                    line[rate] = ratio * (1 - rate)
                    means.setdefault(rate, []).append(line[rate])
            axis.plot(line.keys(), line.values(), color="0.6", linewidth=0.8, alpha=0.6)
        rates = sorted(means)
        mean = [geometric_mean(means[rate]) for rate in rates]
        axis.plot([], [], color="0.6", linewidth=0.8, label="a layer each")
        if mine:
            axis.plot(rates, mean, "o-", color="tab:red", label="geometric mean")
        _ideal(axis)
        _label(axis, f"{kind} grain: fraction asleep", "time / own dense time")
    axes[0].legend(frameon=False, loc="lower left")
    return _save(figure, path, results, "Convolutions asleep")


def plot_network_time(results: Results, path: Path) -> bool:
    """Time of whole networks over the dense baseline's against the rate."""
    lines = _network_lines(results, "rate", lambda times: times["ms"])
    labels = ("fraction asleep, all layers", "time / dense baseline")
    return _plot_networks(lines, path, results, labels, "Networks asleep")


def plot_energy_rate(results: Results, path: Path) -> bool:
    """Joules an image over the dense baseline's against the rate."""
    lines = _network_lines(results, "rate", joules)
    labels = ("fraction asleep, all layers", "joules per image / dense baseline")
    return _plot_networks(lines, path, results, labels, "Energy against rate")


def plot_energy_saving(results: Results, path: Path) -> bool:
    """The same against the multiplications saved, points of a frontier among them."""
    lines = _network_lines(results, "saving", joules)
    labels = ("multiplications saved", "joules per image / dense baseline")
    return _plot_networks(lines, path, results, labels, "Energy against saving")


Lines = dict[str, dict[str, list[tuple[float, float]]]]


def _network_lines(results: Results, x: str, value: Callable[[Row], float | None]) -> Lines:
    """Network -> variant -> (x, value over that of the dense baseline)."""
    panels: Lines = {}
    for row in results.of("test_network"):
        best = baseline(row)
        dense = best and value(best[1])
        if not dense:
            continue
        points = [
            (point[x], found / dense)
            for point in row["points"]
            if point[x] is not None and (found := value(point)) is not None
        ]
        if points:
            name = f"{TITLES.get(row['network'], row['network'])}, batch {row['images']}"
            variants = panels.setdefault(f"{name}, {row['number']}", {})
            # A variant's rates are measured in two parts.
            variants[row["variant"]] = sorted(points + variants.get(row["variant"], []))
    return panels


def _plot_networks(
    panels: Lines, path: Path, results: Results, labels: tuple[str, str], title: str
) -> bool:
    if not panels:
        return False
    figure, axes = new_figure(len(panels), across=3)
    for axis, (name, variants) in zip(axes, panels.items(), strict=True):
        for variant, points in variants.items():
            axis.plot(*zip(*points, strict=True), "o-", markersize=4, label=variant)
        axis.axhline(1, color="0.3", linewidth=0.8, linestyle=":", label="dense baseline")
        _ideal(axis)
        _label(axis, *labels)
        axis.set_title(name, fontsize=10)
        axis.legend(frameon=False, fontsize=8)
    return _save(figure, path, results, title)


def plot_roofline(results: Results, path: Path) -> bool:
    """TFLOP/s against FLOP per byte of dense layers, under the ceilings of their run."""
    rows = [row for row in results.of("test_dense") if row["images"] == 256] or results.of(
        "test_dense"
    )
    numbers = list(dict.fromkeys(row["number"] for row in rows))
    if not rows:
        return False
    figure, axes = new_figure(len(numbers))
    for axis, number in zip(axes, numbers, strict=True):
        mine = [row for row in rows if row["number"] == number]
        intensity = [1e3 * row["gflop"] / row["mbytes"] for row in mine]
        peak, bandwidth = mine[-1]["flop_per_s"], mine[-1]["bytes_per_s"]
        knee = peak / bandwidth
        ends = [min(*intensity, knee) / 1.5, knee, max(*intensity, knee) * 1.5]
        roof = [min(peak, bandwidth * x) * 1e-12 for x in ends]
        axis.plot(ends, roof, color="0.3", label="measured ceilings")
        # What libraries do is drawn last, thin, so that ours shows behind it.
        for way, marker, colour in (
            ("pointer", "o", "tab:orange"),
            ("box", "s", "tab:red"),
            ("cudnn", "x", "tab:blue"),
            ("inductor", "+", "black"),
        ):
            points = [
                (x, row["ways"][way]["tflop_per_s"])
                for x, row in zip(intensity, mine, strict=True)
                if way in row["ways"]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker, color=colour, alpha=0.8, label=way)
        axis.set_xscale("log")
        axis.set_yscale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""
            )
        axis.set_xlabel("FLOP per byte that must be moved")
        axis.set_ylabel(f"TFLOP/s, {number}")
        axis.grid(color="0.9", linewidth=0.8, which="both")
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8)
    return _save(figure, path, results, "Dense convolutions")


def _ideal(axis: Any) -> None:
    axis.plot([0, 1], [1, 0], "--", color="black", linewidth=1, label="1 - r")


def _label(axis: Any, x: str, y: str) -> None:
    label_axes(axis, x, y)
    axis.set_xlim(0, 1)


def _save(figure: Any, path: Path, results: Results, title: str) -> bool:
    save_figure(figure, path, f"{title}: {gpu_name(results)}")
    return True


PICTURES: dict[str, tuple[Callable[[Results, Path], bool], str]] = {
    "time_vs_rate.png": (plot_time, "Time of layers against rate"),
    "network_time_vs_rate.png": (plot_network_time, "Time of networks against rate"),
    "energy_vs_rate.png": (plot_energy_rate, "Energy against rate"),
    "energy_vs_saving.png": (plot_energy_saving, "Energy against multiplications saved"),
    "roofline.png": (plot_roofline, "Roofline"),
}
