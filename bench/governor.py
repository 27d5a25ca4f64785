"""How well the governor holds budgets on a simulated device, against an oracle and three rivals.

    python -m bench.governor                    # records, and fills the table of docs/governor.md
    python -m bench.governor --only 'watts*'    # prints those, and records nothing

A moment counts as violated where a budget is exceeded that some point would have held. The rivals
hear the same measurements. Each has one constant, a margin, and gets for every kind of budget the
one of a grid that is best for it over the scenarios of that kind: the least loss among those that
violate at most 2% of the time, and where there is none the least violation.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.governor_scenarios import Scenario, scenarios
from bench.plants import AMBIENT, IMAGES, Budgets, Oracle, Plant, World, recorded_points
from bench.study_page import fill
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.governor import Board, Governor, Reading

RESULTS = Path(__file__).parent / "results" / "governor"
PAGE = Path(__file__).parents[1] / "docs" / "governor.md"
SETTLING = 10  # decisions
RESOLUTION = 1.0  # degrees: of the plant's sensor
QUIET = 20  # decisions without a violation that mean that it has settled
MARGINS = (0.0, 0.04, 0.1, 0.2)


class Controller(Protocol):
    """What runs a plant, a call at a time."""

    def call(self) -> None: ...


# --- the governor and the oracle ----------------------------------------------------------------


class PlantKnob:
    """The plant as something to be governed."""

    def __init__(self, plant: Plant) -> None:
        self.plant, self.points = plant, plant.points
        self.point: Any = plant.points[0]

    def set(self, point: Any) -> None:
        self.point = point

    def __call__(self, batch: Any) -> None:
        self.plant.start(next(i for i, each in enumerate(self.points) if each is self.point))


class Governed:
    """The plant under the governor."""

    def __init__(self, plant: Plant, budgets: Budgets, metered: bool = True) -> None:
        self.plant = plant
        tells = ("watts", "celsius") if metered else ("celsius",)
        self._reading: Reading | None = None
        self.board = Board("plant", self._read, tells, now=lambda: plant.t)
        plant.on_reading = self._hear
        self.governor = Governor(
            PlantKnob(plant), device=self.board, now=lambda: plant.t, **asdict(budgets)
        )
        self._batches = {n: torch.empty(n, 1, 1, 1, device="meta") for n in plant.world.images}

    def _hear(self, at: float, watts: float | None, celsius: float | None, why: str) -> None:
        self._reading = Reading(at, at - self.plant.world.every, watts, celsius, why)
        self.board.sample()

    def _read(self) -> Reading:
        assert self._reading is not None
        return self._reading

    def call(self) -> None:
        self.governor(self._batches[self.plant.images()])
        self.plant.finish()


class Foretold:
    """The plant under the oracle, or under the causal one."""

    def __init__(self, plant: Plant, budgets: Budgets, foresees: bool = True) -> None:
        self._plant, self._oracle = plant, Oracle(plant, budgets, foresees)

    def call(self) -> None:
        self._plant.start(self._oracle.decide())
        self._plant.finish()


# --- rivals -------------------------------------------------------------------------------------


class Rival:
    """Hears what the governor hears, smoothed, and chooses a point by ``decide``."""

    def __init__(self, plant: Plant, budgets: Budgets, margin: float, metered: bool = True) -> None:
        self.plant, self.budgets, self.margin = plant, budgets, margin
        self.last = budgets.allowed(plant.points) - 1
        self.at = 0
        self.loads: dict[str, float] = {}
        self._watts: float | None = None
        self._metered = metered
        self.news = False
        plant.on_reading = self._hear

    def _smooth(self, name: str, load: float) -> None:
        before = self.loads.get(name, load)
        self.loads[name] = before + 0.3 * (load - before)

    def _hear(self, at: float, watts: float | None, celsius: float | None, why: str) -> None:
        self.news = True
        if self._metered and watts is not None and 0 < watts < 5000:
            period = self.plant.period(0.0, at)
            loads = self.budgets.loads(0.0, watts, period)
            for name in {"watts", "joules_per_image"} & loads.keys():
                self._smooth(name, loads[name])
        if self.budgets.celsius and celsius is not None and -40 < celsius < 150:
            room = self.budgets.celsius - AMBIENT
            self._smooth("celsius", (celsius - AMBIENT) / room)

    def call(self) -> None:
        budgets, plant = self.budgets, self.plant
        timed = bool(budgets.latency_ms or budgets.images_per_s)
        if self.loads and (timed or self.news):
            self.at = min(max(self.decide(max(self.loads.values())), 0), self.last)
            self.news = False
        images = plant.images()
        latency = plant.start(self.at)
        for name, load in budgets.loads(latency, 0.0, 0.0, images).items():
            if name in ("latency_ms", "images_per_s"):
                self._smooth(name, load)
        plant.finish()

    def decide(self, load: float) -> int:
        """The point to go to; ``load``: the most that is taken of any budget, 1 is all of it."""
        raise NotImplementedError


class FixedPoint(Rival):
    """The most accurate point that fits budgets and a margin, as recorded on a quiet device."""

    def __init__(self, plant: Plant, budgets: Budgets, margin: float, metered: bool = True) -> None:
        super().__init__(plant, budgets, margin, metered)
        quiet = Plant(World(resistance=plant.world.resistance))
        self.fixed = self.last
        for point in reversed(range(self.last + 1)):
            watts = quiet.expected_watts(point, 0.0)
            latency = quiet.expected_ms(point, 0.0)
            found = budgets.loads(latency, watts, quiet.period(latency, 0.0))
            if budgets.celsius:
                hot = quiet.world.resistance * watts
                found["celsius"] = hot / (budgets.celsius - AMBIENT)
            if max(found.values()) <= 1 - margin:
                self.fixed = point
        self.at = self.fixed

    def decide(self, load: float) -> int:
        return self.fixed


class Stepper(Rival):
    """One step down above the budget less a margin, and one up below a lower threshold."""

    BAND = 0.08

    def decide(self, load: float) -> int:
        if load > 1 - self.margin:
            return self.at + 1
        if load < 1 - self.margin - self.BAND:
            return self.at - 1
        return self.at


class Pid(Rival):
    """A PID controller of the saving, whose target is the budget less a margin."""

    GAINS = 0.15, 0.03, 0.05  # a decision

    def __init__(self, plant: Plant, budgets: Budgets, margin: float, metered: bool = True) -> None:
        super().__init__(plant, budgets, margin, metered)
        self._sum = self._before = 0.0
        self._savings = [point.saving for point in plant.points[: self.last + 1]]

    def decide(self, load: float) -> int:
        error = load - (1 - self.margin)
        proportional, integral, derivative = self.GAINS
        most = self._savings[-1]
        self._sum = min(max(self._sum + integral * error, 0.0), most)  # no wind-up
        saving = self._sum + proportional * error + derivative * (error - self._before)
        self._before = error
        return int(np.argmin([abs(each - saving) for each in self._savings]))


RIVALS: dict[str, type[Rival]] = {"fixed": FixedPoint, "stepper": Stepper, "PID": Pid}


# --- what came out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of one controller in one scenario.

    Args:
        violated: share of the time.
        overshoot: the most by which a budget was exceeded, over the budget, once settled.
        settling: decisions until the last violation after an event, the worst of them; a decision
            is a call where latency is bound, and otherwise a reading.
        changes: of the point, a minute.
        loss: mean over time, in points of accuracy.
        infeasible: share of the time in which no point held the budgets.
    """

    violated: float
    overshoot: float
    settling: int
    changes: float
    loss: float
    infeasible: float


def run(plant: Plant, controller: Controller) -> None:
    while not plant.over:
        controller.call()


def outcome(scenario: Scenario, plant: Plant) -> Outcome:
    """What a plant's track says."""
    budgets, track, points = scenario.budgets, plant.track, plant.points
    seconds = np.array(track.seconds)
    excess, feasible = _excess(scenario, plant)
    over = np.where(feasible, excess, 0.0)
    chosen = np.array(track.point)
    t = np.array(track.t)
    timed = bool(budgets.latency_ms or budgets.images_per_s)
    decision = statistics.median(track.seconds) if timed else plant.world.every
    settled = np.ones(len(t), bool)
    settling = 0
    # A start is an event too.
    events = (0.0, *scenario.events)
    for event, end in zip(events, (*events[1:], plant.world.seconds), strict=True):
        settled &= ~((t >= event) & (t < event + SETTLING * decision))
        within = (t >= event) & (t < end)
        settling = max(settling, _settling(over[within] > 0, t[within] - event, decision))
    total = float(seconds.sum())
    return Outcome(
        violated=float(seconds[over > 0].sum()) / total,
        overshoot=float(over[settled].max(initial=0.0)),
        settling=settling,
        changes=60 * int((np.diff(chosen) != 0).sum()) / total,
        loss=100 * float((np.array([points[p].loss for p in chosen]) * seconds).sum()) / total,
        infeasible=float(seconds[~feasible].sum()) / total,
    )


def _settling(over: np.ndarray, since: np.ndarray, decision: float) -> int:
    """Decisions from an event until the last violation before a quiet stretch."""
    last = 0
    for when in since[over]:
        number = int(when / decision) + 1
        if number > last + QUIET:
            break
        last = number
    return last


def _excess(scenario: Scenario, plant: Plant) -> tuple[np.ndarray, np.ndarray]:
    """What exceeds the budgets, over the budget, a call; and whether a point would have held.

    A temperature is held as well as can be where it stays below what the coolest point makes of the
    limit from when on it could not hold that. A quarter of what the sensor rounds to is no excess.
    """
    budgets, track = scenario.budgets, plant.track
    allowed = budgets.allowed(plant.points)
    excess, feasible = [], []
    celsius = budgets.celsius or 0.0
    fast = min(range(allowed), key=lambda p: plant.expected_ms(p, 0.0))
    cool = min(range(allowed), key=lambda p: plant.expected_watts(p, 0.0))
    for i, t in enumerate(track.t):
        loads = budgets.loads(track.latency[i], track.second[i], track.seconds[i], track.images[i])
        held = True
        if "latency_ms" in loads or "images_per_s" in loads:
            # The same noise at the fastest point.
            here = plant.expected_ms(track.point[i], t)
            fastest = plant.expected_ms(fast, t)
            worst = max(loads.get("latency_ms", 0.0), loads.get("images_per_s", 0.0))
            held &= worst * fastest / here <= 1
        coolest = plant.expected_watts(cool, t)
        least = budgets.loads(0.0, coolest, track.seconds[i], track.images[i])
        for name in {"watts", "joules_per_image"} & least.keys():
            held &= least[name] <= 1
        if budgets.celsius:
            world = plant.world
            settled = world.ambient(t) + world.resistance * coolest
            celsius = settled + (celsius - settled) * math.exp(-track.seconds[i] / world.constant)
            celsius = max(celsius, budgets.celsius)
            loads["celsius"] = (track.celsius[i] - RESOLUTION / 4) / celsius
            held &= settled <= budgets.celsius
        excess.append(max(loads.values()) - 1)
        feasible.append(held)
    return np.maximum(excess, 0.0), np.array(feasible)


Make = Callable[[Plant, Scenario], Controller]


def outcome_of(scenario: Scenario, make: Make) -> Outcome:
    plant = Plant(scenario.world, recorded_points())
    run(plant, make(plant, scenario))
    return outcome(scenario, plant)


def governed(plant: Plant, scenario: Scenario) -> Governed:
    return Governed(plant, scenario.budgets, scenario.metered)


def foretold(plant: Plant, scenario: Scenario) -> Foretold:
    return Foretold(plant, scenario.budgets)


def causal(plant: Plant, scenario: Scenario) -> Foretold:
    return Foretold(plant, scenario.budgets, foresees=False)


def rival(kind: type[Rival], margin: float) -> Make:
    return lambda plant, scenario: kind(plant, scenario.budgets, margin, scenario.metered)


def kind_of(scenario: Scenario) -> str:
    """What kind of budget it has."""
    budgets = scenario.budgets
    if budgets.latency_ms and budgets.celsius:
        return "all"
    if budgets.celsius:
        return "celsius"
    return "watts" if budgets.watts or budgets.joules_per_image else "latency"


def best_rival(
    kind: type[Rival], chosen: Sequence[Scenario]
) -> tuple[dict[str, float], list[Outcome]]:
    """Its margins by kind of budget, and what came out with them."""
    margins: dict[str, float] = {}
    found: dict[str, Outcome] = {}
    for of in dict.fromkeys(map(kind_of, chosen)):
        alike = [each for each in chosen if kind_of(each) == of]
        tried = [(m, [outcome_of(each, rival(kind, m)) for each in alike]) for m in MARGINS]
        margins[of], outcomes = min(tried, key=_merit)
        found |= {each.name: result for each, result in zip(alike, outcomes, strict=True)}
        print(kind.__name__, of, margins[of], flush=True)
    return margins, [found[each.name] for each in chosen]


def _merit(tried: tuple[float, list[Outcome]]) -> tuple[bool, float]:
    violated = statistics.fmean(each.violated for each in tried[1])
    loss = statistics.fmean(each.loss for each in tried[1])
    return violated > 0.02, violated if violated > 0.02 else loss


# --- tables -------------------------------------------------------------------------------------


def table(rows: Sequence[tuple[str, dict[str, Outcome]]]) -> str:
    """The scenarios' outcomes as Markdown."""
    others = [name for name in rows[0][1] if name not in ("governor", "oracle")]
    head = ["scenario", "violated", "overshoot", "settles in", "changes/min", "loss", "oracle's"]
    head += [f"{name}: violated, loss" for name in others]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name, found in rows:
        ours = found["governor"]
        cells = [
            name,
            f"{100 * ours.violated:.2f}%",
            f"{100 * ours.overshoot:.1f}%",
            str(ours.settling),
            f"{ours.changes:.1f}",
            f"{ours.loss:.2f}",
            f"{found['oracle'].loss:.2f}",
        ]
        cells += [f"{100 * found[n].violated:.1f}%, {found[n].loss:.2f}" for n in others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="*", help="scenarios whose name matches")
    parser.add_argument("--no-rivals", action="store_true", help="the governor and the oracle only")
    args = parser.parse_args()
    logging.getLogger("drowsy.governor").setLevel(logging.ERROR)
    chosen = [each for each in scenarios() if fnmatch.fnmatch(each.name, args.only)]
    rows: list[tuple[str, dict[str, Outcome]]] = []
    for each in chosen:
        makes: dict[str, Make] = {"governor": governed, "oracle": foretold, "causal oracle": causal}
        found = {name: outcome_of(each, make) for name, make in makes.items()}
        rows.append((each.name, found))
        print(each.name, {name: asdict(one) for name, one in found.items()}, flush=True)
    margins = {}
    if not args.no_rivals:
        for name, kind in RIVALS.items():
            margins[name], outcomes = best_rival(kind, chosen)
            for (_, found), result in zip(rows, outcomes, strict=True):
                found[name] = result
    text = table(rows)
    print(text)
    means = {
        name: {
            key: statistics.fmean(asdict(found[name])[key] for _, found in rows)
            for key in ("violated", "loss", "changes")
        }
        for name in rows[0][1]
    }
    print(f"{time.process_time():.0f} s of CPU")
    for name, mean in means.items():
        print(
            f"{name}: violated {100 * mean['violated']:.2f}%, loss {mean['loss']:.3f}, "
            f"{mean['changes']:.1f} changes a minute, margin {margins.get(name)}"
        )
    if args.only == "*" and not args.no_rivals:
        outcomes_by = {n: {k: asdict(o) for k, o in found.items()} for n, found in rows}
        record = {"provenance": provenance(), "images": IMAGES, "margins": margins}
        record |= {"means": means, "scenarios": outcomes_by}
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json(RESULTS / "plants.json", record)
        fill(PAGE, {"plants": lambda: text})


if __name__ == "__main__":
    main()
