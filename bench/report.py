"""Turn recorded results into tables and pictures.

    python -m bench.report bench/results/nvidia-h200 --out report

Reads every JSON file of pytest-benchmark in the folder (and in ``../offline`` the compile report,
in ``../cpu`` the CPU's results). Of a test that was measured more than once the newest result
counts. Writes ``report.md`` and its pictures, in a folder for each kind of GPU where there are
several; ``--figures`` writes nothing. Every figure is a ratio to something measured in the same
run; what was not measured says so.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drowsy_kernels.tuning import table_path

from bench.study_page import markdown
from drowsy._optional import require
from drowsy.files.atomic import replacing, write_text
from drowsy.files.tables import align

Row = dict[str, Any]

DENSE_NETWORKS = ("resnet50", "vgg16", "caffenet")
SLEEP_NETWORKS = ("resnet50", "vgg16")
SLEEP_KINDS = ("tile", "position", "channel")
RATES = (0.25, 0.5, 0.75)
OURS = ("box", "pointer", "cells", "rows", "channels")
TITLES = {
    "vgg16": "VGG-16",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "caffenet": "CaffeNet",
    "squeezenet1_1": "SqueezeNet 1.1",
    "mobilenet_v2": "MobileNetV2",
}


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Rows by the benchmark that made them, and where they come from.

    Args:
        rows: name of the test function -> its ``extra_info``, newest file last.
        machine: of the GPU's files: pytest-benchmark's ``machine_info``; None without any.
        commits: that the rows were measured at.
        compiled: rows of the compile report.
    """

    rows: Mapping[str, list[Row]]
    machine: Row | None
    commits: tuple[str, ...]
    compiled: list[Row]

    def of(self, test: str) -> list[Row]:
        """Rows of a test function."""
        return self.rows.get(test, [])


def read_results(folder: Path) -> list[Results]:
    """Read a folder of results, newest last; those of every kind of GPU apart.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a file that is not JSON.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"results: no folder {folder}")
    cpu = _benchmarks(folder.parent / "cpu")
    mine = _benchmarks(folder)
    compiled: list[Row] = []
    for path in _json_files(folder.parent / "offline"):
        compiled += _read(path).get("rows", [])
    names = sorted({name for name, _, _ in mine if name}) or [""]
    return [
        _results([each for each in mine if each[0] in (name, None)] + cpu, compiled)
        for name in names
    ]


# GPU's name, the machine's record, a benchmark's.
_Measured = tuple[str | None, Row, Row]


def _benchmarks(folder: Path) -> list[_Measured]:
    files = [data for path in _json_files(folder) if "benchmarks" in (data := _read(path))]
    files.sort(key=lambda data: data.get("datetime", ""))
    found = []
    for data in files:
        machine = data["machine_info"]
        gpu = machine.get("gpu")
        found += [(gpu and gpu["name"], machine, each) for each in data["benchmarks"]]
    return found


def _results(measured: Iterable[_Measured], compiled: list[Row]) -> Results:
    newest = {benchmark["fullname"]: (machine, benchmark) for _, machine, benchmark in measured}
    rows: dict[str, list[Row]] = {}
    for fullname, (_, benchmark) in newest.items():
        test = fullname.split("::")[-1].split("[")[0]
        # Beside what a test measured, what it was asked to: the CPU's names its network so.
        params = benchmark.get("params") or {}
        rows.setdefault(test, []).append({"params": params, **benchmark["extra_info"]})
    for row in rows.get("test_network", []):
        _add_autotuned(row, rows.get("test_max_autotune", []))
    for row in rows.get("test_dense", []):
        _add_inductor(row, rows.get("test_inductor", []))
    machines = [machine for machine, _ in newest.values()]
    commits = [(m.get("drowsy", {}).get("commit") or "unknown")[:12] for m in machines]
    machine = next((m for m in reversed(machines) if m.get("gpu")), None)
    return Results(rows, machine, tuple(dict.fromkeys(commits)), compiled)


def _add_inductor(row: Row, measured: Iterable[Row]) -> None:
    """Give a layer's row Inductor's time, which was measured apart, in terms of its own cuDNN's."""
    for other in measured:
        same = all(other[key] == row[key] for key in ("shape", "images", "number"))
        if same and "cudnn" in row["ways"] and {"cudnn", "inductor"} <= other["ways"].keys():
            scale = row["ways"]["cudnn"]["ms"] / other["ways"]["cudnn"]["ms"]
            times = other["ways"]["inductor"]
            flops = times["tflop_per_s"] / scale
            row["ways"]["inductor"] = times | {"ms": scale * times["ms"], "tflop_per_s": flops}


def _add_autotuned(row: Row, measured: Iterable[Row]) -> None:
    """Give a network's row the baseline that was measured apart, beside the eager one.

    Its times and joules are those of this row's eager baseline times its own ratio to that.
    """
    for other in measured:
        if any(other[key] != row[key] for key in ("network", "images", "number")):
            continue
        here, there = row["baselines"]["eager_graph"], other["baselines"]["eager_graph"]
        best = other["baselines"]["max_autotune"]
        scaled = {
            "ms": here["ms"] * best["ms"] / there["ms"],
            "images_per_s": here["images_per_s"] * best["images_per_s"] / there["images_per_s"],
            "energy": None,
        }
        if here["energy"] and there["energy"] and best["energy"]:
            scaled["energy"] = {
                key: here["energy"][key] * best["energy"][key] / there["energy"][key]
                for key in ("joules_per_image", "above_idle_per_image")
                if here["energy"][key] and best["energy"][key] and there["energy"][key]
            }
        row["baselines"]["max_autotune"] = scaled


def _json_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _read(path: Path) -> Row:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); is the file truncated?") from error
    return data if isinstance(data, dict) else {}


# --- what a row says -----------------------------------------------------------------------------


def fastest(times: Mapping[str, Any], ways: Iterable[str]) -> float | None:
    """Milliseconds of the fastest of ``ways`` that were measured."""
    return min((times[way]["ms"] for way in ways if way in times), default=None)


def dense_ratio(row: Row, against: str = "cudnn") -> float | None:
    """Our dense time over a library's."""
    ours, theirs = fastest(row["ways"], ("box", "pointer")), fastest(row["ways"], (against,))
    return ours / theirs if ours and theirs else None


def sleep_ratio(row: Row, rate: float, suffix: str = "") -> float | None:
    """Time at a rate over (1 - rate) of our own dense time; ``_map``: drawing and listing too.

    At ``neuron`` grain, where nothing can be skipped, over the whole of it.
    """
    times = row["rates"].get(str(rate))
    dense = fastest(row["ways"], ("box", "pointer"))
    asleep = times and fastest(times, [f"{way}{suffix}" for way in OURS])
    if not asleep or not dense:
        return None
    return asleep / dense if row["kind"] == "neuron" else asleep / ((1 - rate) * dense)


def baseline(row: Row) -> tuple[str, Row] | None:
    """Name and times of the faster dense baseline of a network."""
    return min(row["baselines"].items(), key=lambda item: item[1]["ms"], default=None)


def geometric_mean(values: Iterable[float], weights: Iterable[float] | None = None) -> float | None:
    """None of nothing."""
    pool = list(values)
    if not pool:
        return None
    return math.exp(statistics.fmean(map(math.log, pool), weights))


# --- figures against their bars ------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One line of the table of figures.

    Args:
        name: what is measured.
        bar, aim: the most that it may be, and what is aimed at.
        value: as measured; None where it was not.
        note: how much of it was measured, or what else to know.
        complete: whether all of it was measured.
    """

    name: str
    bar: float
    aim: float
    value: float | None = None
    note: str = ""
    complete: bool = True

    @property
    def state(self) -> str:
        """``met``, ``missed``, ``incomplete`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        if self.value > self.bar:
            return "missed"
        return "met" if self.complete else "incomplete"


def figures(results: Results) -> list[Figure]:
    """Every headline figure, measured or not."""
    return [
        _dense_figure(results),
        *(_sleep_figure(results, kind) for kind in SLEEP_KINDS),
        _network_figure(results, "vgg16", 0.65, 0.52),
        _network_figure(results, "resnet50", 0.75, 0.58),
        _energy_figure(results, "vgg16"),
        _energy_figure(results, "resnet50"),
        _neuron_figure(results),
        _turn_figure(results),
        _spill_figure(results),
        _cpu_figure(results),
    ]


def _headline(rows: Iterable[Row], networks: Sequence[str]) -> list[Row]:
    """Layers of these networks at batch 256 in bfloat16, the last measurement of each."""
    found = {
        (row["shape"], row.get("kind")): row
        for row in rows
        if (row["images"], row["number"]) == (256, "bf16") and set(networks) & set(row["networks"])
    }
    return list(found.values())


def _count(row: Row, networks: Sequence[str]) -> int:
    return sum(row["networks"].get(network, 0) for network in networks)


def _covered(rows: Sequence[Row], networks: Sequence[str], three: bool) -> tuple[bool, str]:
    """Whether these rows are all layers of the networks (all 3x3 ones), and how many they are."""
    from bench.layers import layers

    wanted = {
        str(layer)
        for layer in layers(*networks)
        if not three or (layer.shape.kernel_size == (3, 3) and layer.shape.channels > 3)
    }
    have = wanted & {row["shape"] for row in rows}
    return have == wanted, f"{len(have)} of {len(wanted)} shapes"


def _dense_figure(results: Results) -> Figure:
    rows = _headline(results.of("test_dense"), DENSE_NETWORKS)
    pairs = [(ratio, _count(row, DENSE_NETWORKS)) for row in rows if (ratio := dense_ratio(row))]
    complete, note = _covered(rows, DENSE_NETWORKS, three=False)
    value = geometric_mean([r for r, _ in pairs], [n for _, n in pairs])
    name = "dense Triton / cuDNN time, ResNet-50 + VGG-16 + CaffeNet, batch 256, bf16"
    if value is not None:
        worst = max(pairs)[0]
        note += (
            f", worst {worst:.2f}; weighted by the number of layers, against the bare convolution"
        )
    return Figure(name, 1.15, 1.0, value, note, complete)


def _sleep_figure(results: Results, kind: str) -> Figure:
    rows = [
        row
        for row in _headline(results.of("test_sleep"), SLEEP_NETWORKS)
        if row["kind"] == kind and row["kernel"] == [3, 3]
    ]
    complete, note = _covered(rows, SLEEP_NETWORKS, three=True)
    by_rate = {
        rate: [ratio for row in rows if (ratio := sleep_ratio(row, rate)) is not None]
        for rate in RATES
    }
    means = {rate: geometric_mean(ratios) for rate, ratios in by_rate.items()}
    known = [mean for mean in means.values() if mean is not None]
    name = f"time at rate r / ((1 - r) x own dense time), {kind}, VGG-16 and ResNet-50 3x3"
    if not known:
        return Figure(name, 1.15, 1.05, None, note, complete)
    parts = ", ".join(f"{mean:.2f} at {rate:g}" for rate, mean in means.items() if mean)
    worst = max(max(ratios) for ratios in by_rate.values() if ratios)
    note = f"{parts}; worst layer {worst:.2f}; {note}"
    return Figure(name, 1.15, 1.05, max(known), note, complete and len(known) == len(RATES))


def _half_asleep(results: Results, network: str) -> list[tuple[Row, Row]]:
    """(row, point) of every variant at rate 1/2, batch 256, bfloat16."""
    return [
        (row, point)
        for row in results.of("test_network")
        if (row["network"], row["images"], row["number"]) == (network, 256, "bf16")
        for point in row["points"]
        if point["rate"] == 0.5 and row["baselines"]
    ]


def _network_figure(results: Results, network: str, bar: float, aim: float) -> Figure:
    name = f"whole {TITLES[network]} at 50% saved: time against dense, batch 256, bf16"
    found = [
        (point["ms"] / best[1]["ms"], row["variant"], best[0], len(row["baselines"]))
        for row, point in _half_asleep(results, network)
        if (best := baseline(row)) is not None
    ]
    if not found:
        return Figure(name, bar, aim)
    value, variant, against, baselines = min(found)
    return Figure(name, bar, aim, value, f"{variant} against {against}", baselines == 2)


def _energy_figure(results: Results, network: str) -> Figure:
    name = f"joules per image at 50% saved against dense, {TITLES[network]}"
    found = []
    for row, point in _half_asleep(results, network):
        best = baseline(row)
        dense = best and joules(best[1])
        asleep = joules(point)
        if best and dense and asleep:
            found.append((asleep / dense, row["variant"], best[0], len(row["baselines"])))
    if not found:
        return Figure(name, 0.70, 0.55)
    value, variant, against, baselines = min(found)
    return Figure(name, 0.70, 0.55, value, f"{variant} against {against}", baselines == 2)


def joules(times: Row) -> float | None:
    """Of an image, idle power included; None where no meter could be read."""
    return times["energy"] and times["energy"].get("joules_per_image")


def _neuron_figure(results: Results) -> Figure:
    rows = [
        row
        for row in _headline(results.of("test_sleep"), SLEEP_NETWORKS)
        if row["kind"] == "neuron"
    ]
    ratios = [ratio for row in rows if (ratio := sleep_ratio(row, 0.5)) is not None]
    complete, note = _covered(rows, SLEEP_NETWORKS, three=True)
    if ratios:
        note = f"worst {max(ratios):.2f}; {note} (3x3)"
    name = "neuron grain, time over dense"
    return Figure(name, 1.05, 1.02, geometric_mean(ratios), note, complete)


def _turn_figure(results: Results) -> Figure:
    rows = [row for row in results.of("test_turn") if row["turn"] == "set"]
    name = "rate change in a captured graph, microseconds of GPU time"
    if not rows:
        return Figure(name, 20, 5)
    row = rows[-1]
    value = statistics.median(row["gpu_us"])
    if row["recaptured"] or not row["followed"]:
        return Figure(name, 20, 5, math.inf, "captured again, or did not follow")
    return Figure(name, 20, 5, value, f"{TITLES[row['network']]}, no recapture")


def _spill_figure(results: Results) -> Figure:
    name = "bytes spilled in shipped configurations"
    if not results.compiled:
        return Figure(name, 0, 0)
    spilling = [row for row in results.compiled if row["spill_bytes"]]
    note = f"{len(spilling)} of {len(results.compiled)} kernels and architectures spill"
    return Figure(name, 0, 0, sum(row["spill_bytes"] for row in spilling), note)


def _cpu_figure(results: Results) -> Figure:
    name = "CPU, whole network, batch 8, 50% saved: wall time against dense F.conv2d"
    found = [
        (times["median"], setting, row["params"].get("name", ""), row["threads"])
        for row in results.of("test_half_of_the_multiplications")
        for setting, times in row["ratio"]["wall"].items()
        if not setting.startswith("dense")
    ]
    if not found:
        return Figure(name, 0.85, 0.6)
    value, setting, network, threads = min(found)
    note = f"{TITLES.get(network, network)}, {setting}, {threads} threads"
    return Figure(name, 0.85, 0.6, value, note)


# --- tables --------------------------------------------------------------------------------------


def figure_rows(results: Results) -> list[list[str]]:
    """The table of figures."""
    rows = [["figure", "bar", "aim", "measured", "state", "note"]]
    for figure in figures(results):
        measured = "" if figure.value is None else f"{figure.value:.3g}"
        rows.append(
            [
                figure.name,
                f"<= {figure.bar:g}",
                f"<= {figure.aim:g}",
                measured,
                figure.state,
                figure.note,
            ]
        )
    return rows


def dense_rows(results: Results) -> list[list[str]]:
    """Dense layers: milliseconds of every way."""
    ways = ("box", "pointer", "cudnn", "cudnn_neuron", "inductor")
    rows = [["layer", "batch", "format", *ways, "ours / cudnn", "TFLOP/s", "of roofline", "spread"]]
    for row in results.of("test_dense"):
        own = [row["ways"][way] for way in ("box", "pointer") if way in row["ways"]]
        ours = min(own, key=lambda times: times["ms"], default=None)
        ratio = dense_ratio(row)
        rows.append(
            [
                row["shape"],
                str(row["images"]),
                row["number"],
                *(_ms(row["ways"].get(way)) for way in ways),
                "" if ratio is None else f"{ratio:.2f}",
                *(
                    ("failed", "", "")
                    if ours is None
                    else (
                        f"{ours['tflop_per_s']:.0f}",
                        f"{ours['of_roofline']:.0%}",
                        f"{ours['spread']:.1%}",
                    )
                ),
            ]
        )
    return rows


def sleep_rows(results: Results) -> list[list[str]]:
    """Layers asleep: ``sleep_ratio`` at every rate."""
    rates = sorted({float(rate) for row in results.of("test_sleep") for rate in row["rates"]})
    heads = [f"r = {rate:g}" for rate in rates]
    rows = [["layer", "batch", "format", "grain", "dense ms", *heads, "with its map at 0.5"]]
    for row in results.of("test_sleep"):
        ratios = [sleep_ratio(row, rate) for rate in rates]
        drawn = sleep_ratio(row, 0.5, "_map")
        rows.append(
            [
                row["shape"],
                str(row["images"]),
                row["number"],
                row["grain"],
                "failed"
                if (dense := fastest(row["ways"], ("box", "pointer"))) is None
                else f"{dense:.3g}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                "" if drawn is None else f"{drawn:.2f}",
            ]
        )
    return rows


def network_rows(results: Results) -> list[list[str]]:
    """Networks: images a second and joules an image."""
    heads = ["network", "batch", "format", "sleeps by", "saved", "images/s", "time / dense"]
    rows = [[*heads, "J/image", "above idle", "J / dense"]]
    seen = set()
    for row in results.of("test_network"):
        head = [TITLES.get(row["network"], row["network"]), str(row["images"]), row["number"]]
        best = baseline(row)
        dense = best and joules(best[1])
        if tuple(head) not in seen:
            seen.add(tuple(head))
            for way, times in row["baselines"].items():
                rows.append([*head, f"dense: {way}", "", *_network_cells(times, best, dense)])
        for point in sorted(row["points"], key=lambda point: point["saving"]):
            saved = f"{point['saving']:.1%}"
            rows.append([*head, row["variant"], saved, *_network_cells(point, best, dense)])
    return rows


def _network_cells(times: Row, best: tuple[str, Row] | None, dense: float | None) -> list[str]:
    energy = times["energy"] or {}
    spent, above = energy.get("joules_per_image"), energy.get("above_idle_per_image")
    return [
        f"{times['images_per_s']:,.0f}",
        "" if best is None else f"{times['ms'] / best[1]['ms']:.3f}",
        "not measured" if spent is None else f"{spent:.4g}",
        "" if above is None else f"{above:.4g}",
        "" if spent is None or not dense else f"{spent / dense:.3f}",
    ]


def overhead_rows(results: Results) -> list[list[str]]:
    """What is not convolution, in microseconds."""
    rows = [["what", "of", "layer", "batch", "microseconds", "spread"]]
    for test, what in (("test_map", "map"), ("test_compaction", "list"), ("test_fill", "fill")):
        for row in results.of(test):
            of = " ".join(row[key] for key in ("source", "kind", "list", "fill") if key in row)
            cells = [what, of, row["shape"], str(row["images"])]
            rows.append([*cells, f"{1e3 * row['ms']:.1f}", f"{row['spread']:.1%}"])
    for row in results.of("test_turn"):
        times = row["gpu_us"]
        spread = (max(times) - min(times)) / statistics.median(times)
        name = TITLES[row["network"]]
        rows.append(
            ["knob", row["turn"], name, "", f"{statistics.median(times):.1f}", f"{spread:.0%}"]
        )
    return rows


def _ms(times: Row | None) -> str:
    return "" if times is None else f"{times['ms']:.3g}"


# --- pictures ------------------------------------------------------------------------------------


def plot_time(results: Results, path: Path) -> bool:
    """Time over own dense time against the rate: a line a layer, the mean, and 1 - r."""
    rows = [row for row in results.of("test_sleep") if row["kind"] in SLEEP_KINDS]
    if not rows:
        return False
    figure, axes = _figure(len(SLEEP_KINDS))
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
    figure, axes = _figure(len(panels))
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
    figure, axes = _figure(len(numbers))
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


def _figure(panels: int) -> tuple[Any, list[Any]]:
    # A Figure without pyplot: no global state, no display needed. Three panels to a row.
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = require("matplotlib.figure", "plot").Figure(
        figsize=(4.6 * columns + 1.2, 4.2 * lines), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for spare in axes[panels:]:
        spare.remove()
    return figure, list(axes[:panels])


def _ideal(axis: Any) -> None:
    axis.plot([0, 1], [1, 0], "--", color="black", linewidth=1, label="1 - r")


def _label(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, path: Path, results: Results, title: str) -> bool:
    figure.suptitle(f"{title}: {_gpu(results)}", fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return True


def _gpu(results: Results) -> str:
    return results.machine["gpu"]["name"] if results.machine else "no GPU"


# --- the page ------------------------------------------------------------------------------------

PICTURES: dict[str, tuple[Callable[[Results, Path], bool], str]] = {
    "time_vs_rate.png": (plot_time, "Time of layers against rate"),
    "network_time_vs_rate.png": (plot_network_time, "Time of networks against rate"),
    "energy_vs_rate.png": (plot_energy_rate, "Energy against rate"),
    "energy_vs_saving.png": (plot_energy_saving, "Energy against multiplications saved"),
    "roofline.png": (plot_roofline, "Roofline"),
}


def write_report(results: Results, out: Path) -> None:
    """Write ``report.md`` and its pictures into ``out``."""
    parts = [f"# Measurements: {_gpu(results)}", _about(results), "## Figures"]
    parts.append(markdown(figure_rows(results)))
    for name, (plot, text) in PICTURES.items():
        if plot(results, out / name):
            parts.append(f"![{text}]({name})")
    for title, rows in (
        ("Networks", network_rows(results)),
        ("Layers, nobody asleep (ms)", dense_rows(results)),
        ("Layers asleep: time / ((1 - r) x own dense time)", sleep_rows(results)),
        ("Everything else", overhead_rows(results)),
    ):
        parts += [f"## {title}", markdown(rows) if len(rows) > 1 else "Not measured."]
    write_text(out / "report.md", "\n\n".join(parts) + "\n")


def _about(results: Results) -> str:
    if results.machine is None:
        return "No results of a GPU."
    gpu, record = results.machine["gpu"], results.machine["drowsy"]
    versions = ", ".join(f"{name} {text}" for name, text in record["versions"].items() if text)
    return (
        f"{gpu['name']} (compute capability {gpu['capability'][0]}.{gpu['capability'][1]}, "
        f"{gpu['multiprocessors']} multiprocessors), CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}, "
        f"{versions}; commits {', '.join(results.commits)}. Weights of whole networks are random: "
        "time and energy only."
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path, help="folder of recorded JSON")
    parser.add_argument("--out", type=Path, help="folder to write (default: RESULTS/report)")
    parser.add_argument("--figures", action="store_true", help="print the figures, write nothing")
    options = parser.parse_args(arguments)
    out = options.out or options.results / "report"
    try:
        kinds = read_results(options.results)
        for results in kinds:
            print(f"{_gpu(results)}\n\n{align(figure_rows(results))}\n")
            if not options.figures:
                place = out if len(kinds) == 1 else out / slug(_gpu(results))
                write_report(results, place)
                print(f"wrote {place}\n")
    except (OSError, ValueError, ImportError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


def slug(name: str) -> str:
    """A GPU's name as a folder's: ``nvidia-h200``."""
    return table_path(name).stem


if __name__ == "__main__":
    sys.exit(main())
