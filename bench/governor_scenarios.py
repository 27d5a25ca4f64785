"""What happens to the simulated device, and what is to be held meanwhile."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.plants import (
    Budgets,
    Curve,
    Fault,
    Faulty,
    World,
    bursts,
    constant,
    ramp,
    steps,
)

# Latencies of a real CPU over the awake network's median, of calls without pauses.
RECORDED = Path(__file__).parent / "results" / "governor" / "latencies.json"


@dataclass(frozen=True)
class Scenario:
    """A world, budgets, and when something happens.

    Args:
        name: in the table.
        world: what happens.
        budgets: what is to be held.
        events: seconds at which something changes at once; what is settled is settled until the
            next of them.
        metered: whether there is a sensor of watts.
    """

    name: str
    world: World
    budgets: Budgets
    events: tuple[float, ...] = ()
    metered: bool = True


def scenarios() -> list[Scenario]:
    return [*_of_latency(), *_of_power(), *_of_heat(), *_mixed()]


def _of_latency() -> list[Scenario]:
    held = Budgets(latency_ms=17.0)
    burst_at = tuple(float(t) for t in range(20, 180, 15))
    return [
        Scenario("latency: nothing happens", World(), held),
        Scenario(
            "latency: step",
            World(stretch=steps((60, 1.5), (120, 1.0), start=1.0)),
            held,
            (60, 120),
        ),
        Scenario(
            "latency: small step",
            World(stretch=steps((60, 1.12), (120, 1.0), start=1.0)),
            held,
            (60, 120),
        ),
        Scenario(
            "latency: many steps",
            World(stretch=_many_steps(20.0, 180.0, seed=3)),
            held,
            tuple(float(t) for t in range(20, 180, 20)),
        ),
        Scenario(
            "latency: ramp",
            World(stretch=ramp((30, 1.0), (90, 1.65), (100, 1.65), (160, 1.0))),
            held,
        ),
        Scenario(
            "latency: bursts of 3 s every 15 s",
            World(stretch=bursts(15, 3, 1.6, 1.0)),
            held,
            tuple(sorted([*burst_at, *(t + 3 for t in burst_at)])),
        ),
        Scenario(
            "latency: bursts of 0.3 s every 2 s",
            World(stretch=bursts(2, 0.3, 1.6, 1.0)),
            held,
            _edges(2, 0.3, 180),
        ),
        Scenario("latency: one call in 200 takes thrice as long", World(hiccups=0.005), held),
        Scenario("latency: much noise", World(noise=0.08), held),
        Scenario(
            "latency: wrong recordings",
            World(deviations=(1.30, 1.34, 1.27, 1.25, 1.34, 1.27, 1.33, 1.26, 1.30)),
            Budgets(latency_ms=19.0),
        ),
        Scenario("latency: random walk", World(stretch=_walk(180.0, seed=5)), held),
        Scenario(
            "latency: infeasible for 40 s",
            World(stretch=steps((60, 4.0), (100, 1.0), start=1.0)),
            held,
            (60, 100),
        ),
        Scenario(
            "latency: every tenth batch is short",
            World(images=(*[8] * 9, 3), stretch=steps((60, 1.5), (120, 1.0), start=1.0)),
            held,
            (60, 120),
        ),
        Scenario(
            "images a second: step, without pauses",
            World(fps=constant(math.inf), stretch=steps((60, 1.4), (120, 1.0), start=1.0)),
            Budgets(images_per_s=470.0),
            (60, 120),
        ),
        *_of_traces(),
    ]


def _of_traces() -> list[Scenario]:
    recorded = json.loads(RECORDED.read_text())
    alone, beside = recorded["alone"], recorded["beside another process"]
    return [
        Scenario(
            "latency: as recorded on a CPU",
            World(fps=constant(math.inf), traces=[(0, alone)]),
            Budgets(latency_ms=26.0),
        ),
        Scenario(
            "latency: as recorded, another process comes and goes",
            World(fps=constant(math.inf), traces=[(0, alone), (60, beside), (120, alone)]),
            Budgets(latency_ms=40.0),
            (60, 120),
        ),
    ]


def _of_power() -> list[Scenario]:
    held = Budgets(watts=50.0)
    step = steps((60, 9.0), (120, 0.0), start=0.0)
    return [
        Scenario("watts: step", World(tenants=step), held, (60, 120)),
        Scenario("watts: ramp", World(tenants=ramp((30, 0), (90, 12), (100, 12), (160, 0))), held),
        Scenario(
            "watts: bursts of 10 s every 60 s",
            World(seconds=300, tenants=bursts(60, 10, 8.0, 0.0, 40)),
            held,
            _edges(60, 10, 300, 40),
        ),
        Scenario(
            "watts: calls come more often",
            World(fps=steps((60, 34.0), (120, 25.0), start=25.0)),
            held,
            (60, 120),
        ),
        Scenario(
            "watts: noisy and late",
            World(tenants=step, watts_noise=0.05, delay=0.4),
            held,
            (60, 120),
        ),
        Scenario(
            "watts: infeasible for 40 s",
            World(tenants=steps((60, 40.0), (100, 0.0), start=0.0)),
            held,
            (60, 100),
        ),
        Scenario(
            "watts: sensor sticks, calls come more often",
            World(fps=steps((70, 34.0), (120, 25.0), start=25.0), watts_fault=stuck(60, 100)),
            held,
            (60, 70, 100, 120),
        ),
        Scenario(
            "watts: sensor leaps, one reading in 20",
            World(tenants=step, watts_fault=leaping(0.05, seed=7)),
            held,
            (60, 120),
        ),
        Scenario(
            "watts: sensor vanishes for 60 s",
            World(tenants=step, watts_fault=gone(65, 125)),
            held,
            (60, 120, 125),
        ),
        Scenario(
            "watts: sensor is reset, reads little",
            World(tenants=step, watts_fault=reads(12.0, 70, 110)),
            held,
            (60, 70, 110, 120),
        ),
        Scenario(
            "joules an image: step",
            World(tenants=step),
            Budgets(joules_per_image=0.25),
            (60, 120),
        ),
    ]


def _of_heat() -> list[Scenario]:
    held = Budgets(celsius=52.0)
    return [
        Scenario("celsius: from cold", World(seconds=300), held),
        Scenario("celsius: a slow device", World(seconds=900, constant=150.0), held),
        Scenario("celsius: a fast device", World(constant=8.0), held),
        Scenario(
            "celsius: warmer air",
            World(seconds=400, ambient=ramp((100, 25), (160, 29), (240, 29), (300, 25))),
            held,
        ),
        Scenario(
            "celsius: tenants",
            World(seconds=400, tenants=steps((100, 5.0), (250, 0.0), start=0.0)),
            held,
            (100, 250),
        ),
        Scenario(
            "celsius: tenants, and nothing meters",
            World(seconds=400, tenants=steps((100, 5.0), (250, 0.0), start=0.0)),
            held,
            (100, 250),
            metered=False,
        ),
        Scenario(
            "celsius: sensor sticks, calls come more often",
            World(
                seconds=400,
                fps=steps((110, 32.0), (200, 25.0), start=25.0),
                celsius_fault=stuck(100, 180),
            ),
            held,
            (100, 110, 180, 200),
        ),
        Scenario(
            "celsius: sensor reads 30 less for 20 s",
            World(seconds=300, celsius_fault=shifted(-30.0, 100, 120)),
            held,
            (100, 120),
        ),
        Scenario(
            "celsius: infeasible air for 100 s",
            World(seconds=500, ambient=ramp((100, 25), (130, 38), (230, 38), (260, 25))),
            held,
        ),
    ]


def _mixed() -> list[Scenario]:
    return [
        Scenario(
            "all at once",
            World(
                seconds=400,
                stretch=steps((60, 1.3), (120, 1.0), start=1.0),
                tenants=steps((150, 7.0), (220, 0.0), start=0.0),
                ambient=ramp((230, 25), (260, 30), (330, 30), (360, 25)),
            ),
            Budgets(
                latency_ms=19.0, watts=52.0, celsius=54.0, joules_per_image=0.27, images_per_s=350
            ),
            (60, 120, 150, 220),
        ),
        Scenario(
            "floor: infeasible below it",
            World(stretch=steps((60, 1.9), (100, 1.0), start=1.0)),
            Budgets(latency_ms=17.0, floor=0.023),
            (60, 100),
        ),
    ]


# --- faults of sensors -------------------------------------------------------------------------


def stuck(start: float, end: float) -> Faulty:
    """Repeats what it said when it stuck."""

    def make() -> Fault:
        held: list[float] = []

        def fault(t: float, value: float) -> float:
            if not start <= t < end:
                return value
            held.append(value)
            return held[0]

        return fault

    return make


def gone(start: float, end: float) -> Faulty:
    """Raises."""

    def fault(t: float, value: float) -> float:
        if start <= t < end:
            raise OSError("no such device")
        return value

    return lambda: fault


def reads(what: float, start: float, end: float) -> Faulty:
    return lambda: lambda t, value: what if start <= t < end else value


def shifted(by: float, start: float, end: float) -> Faulty:
    return lambda: lambda t, value: value + by if start <= t < end else value


def leaping(share: float, seed: int) -> Faulty:
    """One reading in so many is what it should not be."""

    def make() -> Fault:
        chance = random.Random(seed)

        def fault(t: float, value: float) -> float | None:
            if chance.random() >= share:
                return value
            wrong = [0.0, -5.0, 3 * value, 0.3 * value, 1e9, math.nan, None]
            return chance.choice(wrong)

        return fault

    return make


# --- loads -------------------------------------------------------------------------------------


def _many_steps(every: float, seconds: float, seed: int) -> Curve:
    chance = random.Random(seed)
    times = np.arange(every, seconds, every)
    return steps(*((float(t), chance.uniform(1.0, 1.6)) for t in times), start=1.0)


def _walk(seconds: float, seed: int) -> Curve:
    """Between 1 and 1.6, a step of a hundredth a tenth of a second."""
    chance = random.Random(seed)
    values = [1.2]
    for _ in range(int(seconds * 10) + 10):
        values.append(min(max(values[-1] + chance.gauss(0, 0.01), 1.0), 1.6))
    return lambda t: values[min(int(t * 10), len(values) - 1)]


def _edges(period: float, length: float, seconds: float, first: float = 20.0) -> tuple[float, ...]:
    starts = np.arange(first, seconds, period)
    return tuple(sorted([*map(float, starts), *map(float, starts + length)]))
