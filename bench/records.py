"""Recorded results: what was measured where, and what a row of it says.

A folder holds JSON files of pytest-benchmark. Of a test that was measured more than once the newest
result counts. What was measured apart is set beside what it belongs to by its ratio to something
measured in both runs.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drowsy.files.tables import Row

OURS = ("box", "pointer", "cells", "rows", "channels")
TITLES = {
    "vgg16": "VGG-16",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "caffenet": "CaffeNet",
    "squeezenet1_1": "SqueezeNet 1.1",
    "mobilenet_v2": "MobileNetV2",
}


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


def joules(times: Row) -> float | None:
    """Of an image, idle power included; None where no meter could be read."""
    return times["energy"] and times["energy"].get("joules_per_image")


def gpu_name(results: Results) -> str:
    """The GPU that was measured."""
    return results.machine["gpu"]["name"] if results.machine else "no GPU"
