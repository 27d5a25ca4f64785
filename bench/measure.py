"""What is measured of one convolution; the rows that ``bench.records`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from drowsy_kernels import tuning

from bench.timing import Roofline, Timing, check_alive, reason, time_copies
from bench.ways import LIBRARY, OURS, Problem, SleepMap
from drowsy.files.tables import Row

KINDS = ("neuron", "position", "tile", "channel")


def grain_of(kind: str, shape: tuning.ConvShape) -> str:
    """The grain that a kind stands for: tiles of 128 positions by up to 128 channels."""
    return f"tile:128x{min(128, shape.out_channels)}" if kind == "tile" else kind


def measure_dense(problem: Problem, roofline: Roofline) -> Row:
    """Nobody sleeps: our kernels, and cuDNN's convolution without and with bias and ReLU."""
    ways = (*_dense_ways(problem), *(way for way in LIBRARY if way != "inductor"))
    return measure_ways(problem, roofline, ways)


def measure_ways(problem: Problem, roofline: Roofline, ways: Sequence[str]) -> Row:
    """Nobody sleeps. A way that fails leaves its reason in ``failed``."""
    row = _head(problem, roofline)
    for way in ways:
        add_way(row, row["ways"], way, way, problem, None, roofline, 0.0)
    return row


def measure_sleep(problem: Problem, kind: str, rates: Sequence[float], roofline: Roofline) -> Row:
    """Time against rate at a grain, next to our own dense time in the same run.

    ``rates`` maps a rate to the times of every method; ``_map`` is with drawing the map and
    building the list in the measured time. A way that fails leaves its reason in ``failed``.
    """
    grain = grain_of(kind, problem.shape)
    row = _head(problem, roofline) | {"kind": kind, "grain": grain, "rates": {}}
    for way in _dense_ways(problem):
        add_way(row, row["ways"], way, way, problem, None, roofline, 0.0)
    for rate in rates:
        sleep = problem.sleep_map(grain, rate)
        row["cell"] = list(sleep.cell)
        times = row["rates"][str(rate)] = {"slept": sleep.slept}
        for way in OURS:
            if not problem.eligible(way, sleep.cell):
                continue
            where = f"{way} at {rate:g}"
            if add_way(row, times, way, where, problem, sleep, roofline, rate):
                add_way(
                    row, times, f"{way}_map", where, problem, sleep, roofline, rate, with_map=True
                )
    return row


def add_way(
    row: Row,
    times: Row,
    name: str,
    where: str,
    problem: Problem,
    sleep: SleepMap | None,
    roofline: Roofline,
    rate: float,
    *,
    with_map: bool = False,
) -> bool:
    """Put the time of a way into ``times``; if it fails, its reason into ``row["failed"]``.

    One way that cannot run, or whose result is wrong, must not cost the layer its others.

    Raises:
        Exception: the GPU itself is lost, and every later way with it.
    """
    way = name.removesuffix("_map")
    try:
        times[name] = time_way(problem, way, sleep, roofline, rate, with_map=with_map)
    except Exception as error:
        check_alive(problem.device)
        row["failed"][where] = reason(error)
        return False
    return True


def _head(problem: Problem, roofline: Roofline) -> Row:
    shape, itemsize = problem.shape, problem.dtype.itemsize
    return {
        "shape": str(shape),
        "kernel": list(shape.kernel_size),
        "images": problem.images,
        "number": problem.number,
        "copies": len(problem.inputs),
        "gflop": 2e-9 * problem.images * shape.multiplies,
        "mbytes": 1e-6 * shape.elements(problem.images) * itemsize,
        "bytes_per_s": roofline.bytes_per_s,
        "flop_per_s": roofline.flop_per_s[problem.number],
        "ways": {},
        "failed": {},
    }


def _dense_ways(problem: Problem) -> list[str]:
    return [way for way in ("box", "pointer") if problem.eligible(way, None)]


def time_way(
    problem: Problem,
    way: str,
    sleep: SleepMap | None,
    roofline: Roofline,
    rate: float,
    *,
    with_map: bool = False,
) -> Row:
    """Time of a way, checked, and what it amounts to; arguments as for ``Problem.copies``."""
    config = recorded_config(problem, way, sleep)
    copies = problem.copies(way, sleep, config, with_map=with_map, checked=not with_map)
    timing: Timing = time_copies(copies, problem.device)
    flop = 2 * problem.images * problem.shape.multiplies * (1 - rate)
    floor = roofline.floor_ms(problem.shape, problem.images, problem.number, rate)
    return {
        **timing.to_dict(),
        "config": str(config) if config is not None else None,
        "tflop_per_s": flop / timing.ms * 1e-9,
        "of_roofline": floor / timing.ms,
    }


def recorded_config(problem: Problem, way: str, sleep: SleepMap | None) -> Any:
    """The block shape in this GPU's tuning table; None leaves it to the kernel's heuristic."""
    if way not in OURS or problem.device.type != "cuda":
        return None
    table = tuning.table_for(torch.cuda.get_device_name())
    cell = (1, 1) if sleep is None else sleep.cell
    entry = table and table.find(problem.shape, problem.images, problem.number, cell)
    return entry.config(way) if entry else None
