"""The headline figures, each against its bar."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.layers import layers
from bench.records import (
    TITLES,
    Results,
    baseline,
    dense_ratio,
    geometric_mean,
    joules,
    sleep_ratio,
)
from drowsy.files.tables import Row

DENSE_NETWORKS = ("resnet50", "vgg16", "caffenet")
SLEEP_NETWORKS = ("resnet50", "vgg16")
SLEEP_KINDS = ("tile", "position", "channel")
RATES = (0.25, 0.5, 0.75)


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
