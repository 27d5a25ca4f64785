"""Operating points, the Pareto frontier among them, and its file."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable

from drowsy.files.atomic import write_text
from drowsy.files.messages import legible, quoted
from drowsy.files.tables import align, csv_text
from drowsy.files.versioned import check_header, check_keys, is_number, read_json
from drowsy.knob.costs import ROUNDING
from drowsy.knob.keywords import names_keywords
from drowsy.knob.metrics import METRICS, objectives
from drowsy.knob.point import OperatingPoint

FORMAT, VERSION = "drowsy.frontier", 1
# What accuracy is traded for, and where an operating point has it.
COSTS = {"macs": "saving", "latency": "latency_ms", "joules": "joules"}
# What is saved where a cost is, those of video too.
SAVES = {
    "latency": "time",
    "slowest": "slowest frame's time",
    "joules": "energy",
    "macs": "multiplications",
}


class NoSuchPoint(LookupError):
    """No measured point satisfies a request; the message names the nearest ones."""


def unmeasured(name: str) -> NoSuchPoint:
    """What is said to a request for what no point has."""
    takes = ", which takes a meter (NVML, or RAPL on a CPU)" if name == "joules" else ""
    return NoSuchPoint(f"{name}: was not measured at any point{takes}")


def none_saves(saving: float, cost: str, most: float) -> NoSuchPoint:
    """What is said to a request for more than any point saves of a cost."""
    return NoSuchPoint(f"no point saves {saving:.1%} of the {SAVES[cost]}; the most is {most:.1%}")


def check_cost(cost: str) -> None:
    """Raise unless accuracy can be traded for this."""
    if cost not in tuple(COSTS):
        raise ValueError(f"cost: got {quoted(cost)}, allowed: {', '.join(COSTS)}")


def spared(point: OperatingPoint, cost: str) -> float:
    """What orders points by what they spare: the saving, or latency or joules, negative."""
    value = getattr(point, COSTS[cost])
    return value if cost == "macs" else -value


def pareto(
    points: Iterable[OperatingPoint], objective: str = "top1", cost: str = "macs"
) -> list[OperatingPoint]:
    """The points that no other point matches in cost and objective and beats in one.

    The costliest first, which for ``macs`` is by saving. Of points that are equal in both, the
    first stays.
    """
    check_cost(cost)
    if objective not in objectives():
        raise ValueError(f"objective: got {quoted(objective)}, allowed: {', '.join(objectives())}")
    kept: list[OperatingPoint] = []
    best = -math.inf
    pool = list(points)
    if any(point.figure(objective) is None for point in pool):
        raise ValueError(f"objective: {objective} was not measured at every point")
    if any(getattr(point, COSTS[cost]) is None for point in pool):
        raise ValueError(f"cost: {COSTS[cost]} was not measured at every point")
    for point in sorted(pool, key=lambda p: (-spared(p, cost), -p.figure(objective))):
        if point.figure(objective) > best:
            best = point.figure(objective)
            kept.append(point)
    return kept[::-1]


class Frontier:
    """The Pareto-optimal points of a search, the costliest first: by increasing saving.

    Args:
        points: any operating points; those that are not optimal are dropped.
        objective: ``top1``, ``top5`` or ``agreement`` (``drowsy.knob.metrics.objectives``).
        cost: what it is traded for: ``macs``, multiplications; or ``latency`` or ``joules``, which
            every point must have measured then.
        source: text of the source that the sleep maps were drawn by, which schedules do not tell;
            None where it is not known, or differs between layers.

    Attributes:
        points: the optimal points.
        reference: the point at rate 0, or None if there was none; losses count from it. Sleep can
            chance to beat it on a finite set of images, so it need not be among ``points``.

    Raises:
        ValueError: no point, an unknown objective or cost, or one that was not measured at every
            point.
    """

    def __init__(
        self,
        points: Iterable[OperatingPoint],
        objective: str = "top1",
        cost: str = "macs",
        *,
        source: str | None = None,
    ) -> None:
        pool = list(points)
        self.points = pareto(pool, objective, cost)
        self.objective, self.cost, self.source = objective, cost, source
        if not self.points:
            raise ValueError("points: got none, allowed: one or more")
        self.reference = next((point for point in pool if point.is_awake), None)

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        first, last = self.points[0], self.points[-1]
        return (
            f"Frontier(points={len(self)}, cost={self.cost!r}, "
            f"saving={first.saving:.4g}..{last.saving:.4g} of the {SAVES['macs']}, "
            f"{self.objective}={self.value(first):.4g}..{self.value(last):.4g})"
        )

    def value(self, point: OperatingPoint) -> float:
        """The point's objective."""
        return point.figure(self.objective)

    def saved(self, point: OperatingPoint) -> float:
        """Fraction of the cost at rate 0 that the point saves.

        Raises:
            ValueError: latency or joules, and no point at rate 0 was given, or it has 0.
        """
        if self.cost == "macs":
            return point.saving
        if self.reference is None:
            raise ValueError(f"saved: {self.cost} at rate 0 was not measured")
        whole = spared(self.reference, self.cost)
        if not whole:
            raise ValueError(f"saved: {self.cost} at rate 0 is 0, of which nothing can be saved")
        return 1 - spared(point, self.cost) / whole

    @names_keywords
    def at(
        self,
        *,
        saving: float | None = None,
        max_loss: float | None = None,
        latency_ms: float | None = None,
        joules: float | None = None,
    ) -> OperatingPoint:
        """The measured point for one request; nothing is interpolated.

        Args:
            saving: the most accurate point that saves at least this fraction of multiplications.
            max_loss: the point that saves most among those that lose at most this much of the
                objective (0.01 is one point of accuracy) against rate 0.
            latency_ms, joules: the most accurate point within this budget.

        Raises:
            NoSuchPoint: no point satisfies the request; names the nearest ones.
            ValueError: not exactly one request, one that is no finite number, or a ``max_loss``
                above 1 of what is a fraction.
        """
        requests = {
            "saving": saving,
            "max_loss": max_loss,
            "latency_ms": latency_ms,
            "joules": joules,
        }
        given = {name: value for name, value in requests.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"at: got {', '.join(given) or 'nothing'}, allowed: one of {', '.join(requests)}"
            )
        ((name, wanted),) = given.items()
        if not is_number(wanted):
            raise ValueError(f"{name}: got {wanted!r}, allowed: a finite number")
        if name == "max_loss":
            METRICS[self.objective].check_loss(name, wanted)
        # A saving is a sum of floats: 0.5 must find the point of 0.49999999999999994.
        measured = self._measured(name)
        if name == "saving":
            fitting = [point for point, value in measured if value >= wanted - ROUNDING]
        else:
            fitting = [point for point, value in measured if value <= wanted + ROUNDING]
        if not fitting:
            nearest = sorted(measured, key=lambda pair: abs(pair[1] - wanted))[:2]
            told = (
                f"{value:.4g} (saves {self._saves(point, name)}, "
                f"{METRICS[self.objective].told(self.value(point))})"
                for point, value in nearest
            )
            raise NoSuchPoint(f"no point with {name} {wanted}; nearest: {' and '.join(told)}")
        if name == "max_loss":
            return max(fitting, key=lambda point: spared(point, self.cost))
        return max(fitting, key=self.value)

    def at_saved(self, saving: float) -> OperatingPoint:
        """The most accurate point that saves at least this fraction of the cost at rate 0.

        Raises:
            NoSuchPoint: none does; names the one that saves most.
            ValueError: as ``saved``.
        """
        fitting = [point for point in self.points if self.saved(point) >= saving - ROUNDING]
        if not fitting:
            raise none_saves(saving, self.cost, max(map(self.saved, self.points)))
        return max(fitting, key=self.value)

    def _saves(self, point: OperatingPoint, asked: str) -> str:
        """What a point saves, in words: of the cost, unless multiplications are asked for."""
        if asked != "saving":
            with contextlib.suppress(ValueError):  # not known without a point at rate 0
                return f"{self.saved(point):.1%} of the {SAVES[self.cost]}"
        return f"{point.saving:.1%} of the {SAVES['macs']}"

    def _measured(self, name: str) -> list[tuple[OperatingPoint, float]]:
        """Points with what a request by this name is compared to, where it is known."""
        if name == "max_loss":
            if self.reference is None:
                raise NoSuchPoint("max_loss: no point at rate 0 was given, so losses are not known")
            best = self.value(self.reference)
            return [(point, best - self.value(point)) for point in self.points]
        known = [(p, getattr(p, name)) for p in self.points if getattr(p, name) is not None]
        if not known:
            raise unmeasured(name)
        return known

    def hypervolume(self, ref: tuple[float, float] = (0.0, 0.0)) -> float:
        """Area under the frontier, as a staircase: ``saved`` times objective, both from ``ref``.

        At most 1 with the default ``ref``; only points beyond ``ref`` in both count.
        """
        left, floor = ref
        area = 0.0
        for point in self.points:
            saved = self.saved(point)
            width, height = saved - left, self.value(point) - floor
            if width > 0 and height > 0:
                area += width * height
                left = saved
        return area

    # --- files and tables ---------------------------------------------------------------------

    def rows(self) -> list[dict[str, str]]:
        """One row a point: saving, what was measured, its spread, and the rates in 1/k."""
        values = [_measurements(point) for point in self.points]
        shown = list(dict.fromkeys(name for value in values for name in value))
        return [
            {
                "saving": f"{point.saving:.4f}",
                **{name: f"{value[name]:.4f}" if name in value else "" for name in shown},
                f"rates (1/{point.schedule.k})": " ".join(
                    map(str, point.schedule.thresholds().values())
                ),
            }
            for point, value in zip(self.points, values, strict=True)
        ]

    def table(self) -> str:
        """The frontier as aligned text."""
        rows = self.rows()
        _, *head = rows[0]
        return align([(f"{SAVES['macs']} saved", *head), *(tuple(row.values()) for row in rows)])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV."""
        write_text(path, csv_text(self.rows()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frontier as versioned JSON, whole or not at all."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "objective": self.objective,
            "cost": self.cost,
            **({} if self.source is None else {"source": self.source}),
            "reference": None if self.reference is None else self.reference.to_dict(),
            "points": [point.to_dict() for point in self.points],
        }
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Frontier:
        """Read a frontier file.

        Raises:
            OSError: the file cannot be opened: FileNotFoundError, IsADirectoryError and others.
            ValueError: not JSON, another format or version, or a point that is not allowed; names
                the file, the point, the field, what it holds and what is allowed.
        """
        data, where = read_json(path), legible(path)
        check_header(data, FORMAT, VERSION, where)
        # Files from before searches by latency and joules do not name a cost; some, no source.
        data.setdefault("cost", "macs")
        source = data.setdefault("source", None)
        keys = {"format", "version", "objective", "cost", "source", "reference", "points"}
        check_keys(data, keys, where)
        if source is not None and not isinstance(source, str):
            raise ValueError(f"{where}: source: got {source!r}, allowed: text")
        if not isinstance(data["points"], list) or not data["points"]:
            raise ValueError(
                f"{where}: points: got {quoted(data['points'])}, allowed: a list of points"
            )
        points = [
            OperatingPoint.from_dict(entry, f"{where}: point {i}")
            for i, entry in enumerate(data["points"])
        ]
        if data["reference"] is not None:
            reference = OperatingPoint.from_dict(data["reference"], f"{where}: reference")
            if not reference.is_awake:
                raise ValueError(f"{where}: reference: allowed: a point whose rates are all 0")
            points.append(reference)
        try:
            return cls(points, data["objective"], data["cost"], source=source)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _measurements(point: OperatingPoint) -> dict[str, float]:
    """What was measured at a point; NAME_std is NAME's standard deviation over the seeds."""
    columns = {}
    spread = point.spread or {}
    values = {name: point.figure(name) for name in METRICS}
    values |= {"latency_ms": point.latency_ms, "joules": point.joules}
    for name, value in values.items():
        if value is not None:
            columns[name] = value
        if name in spread:
            columns[f"{name}_std"] = spread[name]
    return columns
