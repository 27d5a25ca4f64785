"""Operating points, the Pareto frontier among them, and its file."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from drowsy.atomic import write_text
from drowsy.cost import align
from drowsy.schedule import Schedule, check_header, check_keys, read_json

FORMAT, VERSION = "drowsy.frontier", 1
OBJECTIVES = ("top1", "top5", "agreement")


class NoSuchPoint(LookupError):
    """No measured point satisfies a request; the message names the nearest ones."""


@dataclass(frozen=True)
class OperatingPoint:
    """A schedule and what was measured at it. None: not measured.

    Attributes:
        schedule: the setting.
        saving: fraction of the convolution multiplications saved, 0 to 1.
        top1, top5: accuracy, 0 to 1; means over ``seeds``.
        agreement: fraction of images whose first choice is that of rate 0.
        divergence: mean KL divergence of the class probabilities from rate 0's, in nats.
        latency_ms: per batch, in milliseconds.
        joules: per image.
        spread: standard deviation over the seeds, by the names above.
        images: how many images were measured.
        seeds: of the sleep maps.
    """

    schedule: Schedule
    saving: float
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    latency_ms: float | None = None
    joules: float | None = None
    spread: Mapping[str, float] | None = None
    images: int = 0
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("saving", "top1", "top5", "agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, allowed: 0 to 1")
        for name in ("divergence", "latency_ms", "joules"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name}: got {value}, allowed: a finite number")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["schedule"] = self.schedule.to_dict()
        values["spread"] = None if self.spread is None else dict(self.spread)
        values["seeds"] = list(self.seeds)
        return values

    @classmethod
    def from_dict(cls, data: Any, where: str = "point") -> OperatingPoint:
        """Read the JSON form; ``where`` names it in errors."""
        check_keys(data, {field.name for field in fields(cls)}, where)
        schedule = Schedule.from_dict(data["schedule"], f"{where}: schedule")
        for name in ("saving", "top1", "top5", "agreement", "divergence", "latency_ms", "joules"):
            value = data[name]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number and (value is not None or name == "saving"):
                raise ValueError(f"{where}: {name}: got {value!r}, allowed: a number")
        if not isinstance(data["images"], int) or not isinstance(data["seeds"], list):
            raise ValueError(f"{where}: images and seeds: allowed: an integer and a list")
        try:
            return cls(**{**data, "schedule": schedule, "seeds": tuple(data["seeds"])})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def pareto(points: Iterable[OperatingPoint], objective: str = "top1") -> list[OperatingPoint]:
    """The points that no other point matches in saving and objective and beats in one.

    Sorted by saving. Of points that are equal in both, the first stays.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: got {objective!r}, allowed: {', '.join(OBJECTIVES)}")
    kept: list[OperatingPoint] = []
    best = -math.inf
    pool = list(points)
    if any(getattr(point, objective) is None for point in pool):
        raise ValueError(f"objective: {objective} was not measured at every point")
    for point in sorted(pool, key=lambda p: (-p.saving, -getattr(p, objective))):
        if getattr(point, objective) > best:
            best = getattr(point, objective)
            kept.append(point)
    return kept[::-1]


class Frontier:
    """The Pareto-optimal points of a search, by increasing saving.

    Args:
        points: any operating points; those that are not optimal are dropped.
        objective: ``top1``, ``top5`` or ``agreement``.
    """

    def __init__(self, points: Iterable[OperatingPoint], objective: str = "top1") -> None:
        self.points = pareto(points, objective)
        self.objective = objective
        if not self.points:
            raise ValueError("points: got none, allowed: one or more")

    def __len__(self) -> int:
        return len(self.points)

    def value(self, point: OperatingPoint) -> float:
        """The point's objective."""
        return getattr(point, self.objective)

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
            saving: the most accurate point that saves at least this fraction.
            max_loss: the point that saves most among those that lose at most this much of the
                objective (0.01 is one point of accuracy) against the frontier's best.
            latency_ms, joules: the most accurate point within this budget.

        Raises:
            NoSuchPoint: no point satisfies the request.
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
        if not isinstance(wanted, (int, float)) or not math.isfinite(wanted):
            raise ValueError(f"{name}: got {wanted!r}, allowed: a finite number")
        if name == "saving":
            fitting = [point for point in self.points if point.saving >= wanted - 1e-12]
            chosen = max(fitting, key=self.value, default=None)
        elif name == "max_loss":
            best = max(map(self.value, self.points))
            fitting = [p for p in self.points if best - self.value(p) <= wanted + 1e-12]
            chosen = max(fitting, key=lambda point: point.saving, default=None)
        else:
            measured = [point for point in self.points if getattr(point, name) is not None]
            if not measured:
                raise NoSuchPoint(f"{name}: was not measured at any point of this frontier")
            fitting = [point for point in measured if getattr(point, name) <= wanted]
            chosen = max(fitting, key=self.value, default=None)
        if chosen is None:
            raise NoSuchPoint(f"no point with {name} {wanted}; nearest: {self._nearest(name, wanted)}")
        return chosen

    def _nearest(self, name: str, wanted: float) -> str:
        best = max(map(self.value, self.points))

        def measure(point: OperatingPoint) -> float:
            return best - self.value(point) if name == "max_loss" else getattr(point, name)

        known = [p for p in self.points if name == "max_loss" or getattr(p, name) is not None]
        close = sorted(known, key=lambda point: abs(measure(point) - wanted))[:2]
        return " and ".join(
            f"{name} {measure(p):.4g} (saving {p.saving:.1%}, {self.objective} {self.value(p):.1%})"
            for p in close
        )

    def hypervolume(self) -> float:
        """Area under the frontier: saving times objective, both from 0; at most 1."""
        area, left = 0.0, 0.0
        for point in self.points:
            area += (point.saving - left) * self.value(point)
            left = point.saving
        return area

    # --- files and tables ---------------------------------------------------------------------

    def rows(self) -> list[dict[str, str]]:
        """One row a point: saving, what was measured, and the rates in eighths (or 1/k)."""
        names = ("top1", "top5", "agreement", "divergence", "latency_ms", "joules")
        shown = [n for n in names if any(getattr(p, n) is not None for p in self.points)]
        return [
            {
                "saving": f"{point.saving:.4f}",
                **{n: "" if (v := getattr(point, n)) is None else f"{v:.4f}" for n in shown},
                f"rates (1/{point.schedule.k})": " ".join(
                    map(str, point.schedule.thresholds().values())
                ),
            }
            for point in self.points
        ]

    def table(self) -> str:
        """The frontier as aligned text."""
        rows = self.rows()
        return align([tuple(rows[0]), *(tuple(row.values()) for row in rows)])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frontier as versioned JSON, whole or not at all."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "objective": self.objective,
            "points": [point.to_dict() for point in self.points],
        }
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Frontier:
        """Read a frontier file.

        Raises:
            ValueError: not JSON, another format or version, or a point that is not allowed.
        """
        data, where = read_json(path), str(Path(path))
        check_header(data, FORMAT, VERSION, where)
        check_keys(data, {"format", "version", "objective", "points"}, where)
        if not isinstance(data["points"], list):
            raise ValueError(f"{where}: points: got {data['points']!r}, allowed: a list")
        points = [
            OperatingPoint.from_dict(entry, f"{where}: point {i}")
            for i, entry in enumerate(data["points"])
        ]
        try:
            return cls(points, data["objective"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
