"""A latency budget on this machine's CPU, while another process comes and goes.

    python -m bench.governor_cpu            # prints, and records under bench/results/governor
    python -m bench.governor_cpu --trace    # records latencies instead, for bench.governor

SqueezeNet 1.1 with random weights, two images of 224 x 224 a call, one thread. The knob's points
are smaller images, whose latencies are measured first, and whose losses are made up (they grow with
what is saved): what is shown is whether a budget is held, not what it costs. The other process
multiplies matrices on every core. What the governor's decisions take is measured on the way, around
an empty knob.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import drowsy
import drowsy.governor
from bench.knob_times import knob_of_views
from drowsy import models
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.tuning.knob import Knob

RESULTS = Path(__file__).parent / "results" / "governor"
SAVINGS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


@dataclass(frozen=True)
class Point:
    """What a governor asks of an operating point."""

    saving: float
    loss: float
    latency_ms: float
    joules: float | None = None


class Nothing:
    """A knob that does nothing, of so many points."""

    def __init__(self, points: int) -> None:
        self.points = [Point(i / points, i / points, 2.0 - i / points, 0.01) for i in range(points)]
        self.point = self.points[0]

    def set(self, point: Point) -> None:
        self.point = point

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return batch


def decisions(points: int, budgets: dict[str, float], calls: int = 5000) -> dict[str, float]:
    """Microseconds that a call takes above an empty one, by the thread's own time."""
    knob = Nothing(points)
    chance = np.random.default_rng(0)
    # A clock on which calls take a little less than recorded, so that every one is looked at.
    now = [0.0]

    def tick() -> float:
        now[0] += 0.0009 * (1 + 0.02 * chance.standard_normal())
        return now[0]

    board = drowsy.governor.Board("fake", lambda: _reading(now[0], chance), now=lambda: now[0])
    governor = drowsy.Governor(knob, now=tick, device=board, **budgets)  # type: ignore[arg-type]
    batch = torch.empty(8, 3, 4, 4)
    taken = []
    for i in range(calls):
        if i % 200 == 0:
            board.sample()
        before = time.thread_time_ns()
        governor(batch)
        taken.append(1e-3 * (time.thread_time_ns() - before))
    empty = []
    for _ in range(calls):
        before = time.thread_time_ns()
        knob(batch)
        empty.append(1e-3 * (time.thread_time_ns() - before))
    rest = statistics.median(empty)
    return {
        "median_us": statistics.median(taken) - rest,
        "mean_us": statistics.fmean(taken) - rest,
        "p99_us": float(np.quantile(taken, 0.99)) - rest,
        "points": points,
    }


def _reading(at: float, chance: np.random.Generator) -> Any:
    watts = 60 + float(chance.standard_normal())
    return drowsy.governor.Reading(at, at - 0.2, watts, 45.0 + float(chance.integers(3)))


def _load(seconds: float) -> None:
    torch.set_num_threads(1)
    a = torch.randn(512, 512)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        a @ a


def _latency(point: Any) -> float:
    assert point.latency_ms is not None, "every point was measured"
    return float(point.latency_ms)


def _knob() -> tuple[Knob, torch.Tensor]:
    """A knob with measured points, and a batch."""
    torch.manual_seed(0)
    batch = torch.randn(2, 3, 224, 224)
    knob = knob_of_views(models.create("squeezenet1_1").eval(), batch, SAVINGS)
    knob.measure(batch, seconds=8)
    return knob, batch


def _calls(run: Callable[[], object], seconds: float, beside: bool) -> list[float]:
    """Milliseconds of calls without pauses, beside the other process or alone."""
    context = multiprocessing.get_context("spawn")
    cores = range(os.cpu_count() or 1 if beside else 0)
    others = [context.Process(target=_load, args=(seconds,), daemon=True) for _ in cores]
    for other in others:
        other.start()
    taken = []
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            before = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - before))
    for other in others:
        other.join()
    return taken


def traced(seconds: float) -> dict[str, Any]:
    """Latencies of the awake network, call by call, over those that were measured of it."""
    knob, batch = _knob()
    awake = _latency(knob.awake)
    found = {
        name: [round(taken / awake, 3) for taken in _calls(lambda: knob(batch), seconds, beside)]
        for name, beside in (("alone", False), ("beside another process", True))
    }
    return {"awake_ms": awake, **found}


def held(seconds: float, slack: float) -> dict[str, Any]:
    """Run for three stretches, the middle one with another process."""
    knob, batch = _knob()
    budget = slack * _latency(knob.awake)
    load = os.getloadavg()
    governor = drowsy.Governor(knob, latency_ms=budget)
    stretches: list[dict[str, Any]] = []
    saved: list[float] = []

    def call() -> None:
        governor(batch)
        saved.append(knob.point.saving)

    for name in ("alone", "another process", "alone again"):
        saved.clear()
        taken = _calls(call, seconds, beside=name == "another process")
        stretches.append(
            {
                "stretch": name,
                "calls": len(taken),
                "median_over_budget": statistics.median(taken) / budget,
                "p95_over_budget": float(np.quantile(taken, 0.95)) / budget,
                "settled_p95_over_budget": float(np.quantile(taken[10:], 0.95)) / budget,
                "over_budget": float(np.mean([each > budget for each in taken])),
                "slowest_over_budget": max(taken) / budget,
                "mean_saving": statistics.fmean(saved),
                "infeasible_at_end": not governor.state.feasible,
            }
        )
    return {
        "budget_ms": budget,
        "recorded_ms": {knob.describe(point): _latency(point) for point in knob.points},
        "load_average_before": load,
        "changes": governor.state.changes,
        "stretches": stretches,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each stretch")
    parser.add_argument("--slack", type=float, default=1.3, help="budget over the awake latency")
    parser.add_argument("--trace", action="store_true", help="record latencies, govern nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if args.trace:
        trace = traced(args.seconds)
        write_json(RESULTS / "latencies.json", {"provenance": provenance(), **trace})
        return
    few = {"latency_ms": 2.0}
    every = {"latency_ms": 2.0, "images_per_s": 3000.0, "watts": 90.0, "celsius": 80.0}
    every["joules_per_image"] = 0.1
    overhead = {
        "latency, 9 points": decisions(9, few),
        "all budgets, 9 points": decisions(9, every),
        "all budgets, 100 points": decisions(100, every),
    }
    for name, found in overhead.items():
        print(name, {key: round(value, 1) for key, value in found.items()})
    result = held(args.seconds, args.slack)
    for stretch in result["stretches"]:
        print(stretch)
    record = {"provenance": provenance(), "decisions": overhead, "held": result}
    write_json(RESULTS / "cpu.json", record)


if __name__ == "__main__":
    main()
