"""What can be governed: what has points, one of them in force, and is called with batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from drowsy.files.messages import quoted
from drowsy.files.versioned import is_number
from drowsy.knob.frontier import SAVES, Frontier
from drowsy.knob.metrics import METRICS
from drowsy.network.net import DrowsyNet

# Budgets, what a point must have measured for each, and how that is measured.
BUDGETS = {
    "latency_ms": ("latency_ms", "milliseconds a batch"),
    "images_per_s": ("latency_ms", "milliseconds a batch"),
    "watts": ("joules", "joules an image"),
    "celsius": ("joules", "joules an image"),
    "joules_per_image": ("joules", "joules an image"),
}


class Point(Protocol):
    """What was recorded of an operating point; None: not measured.

    Attributes:
        saving: fraction of multiplications saved.
        latency_ms: per batch.
        joules: per image.
        loss: the awake network's metric less this point's.
    """

    @property
    def saving(self) -> float: ...
    @property
    def latency_ms(self) -> float | None: ...
    @property
    def joules(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...


class Governed(Protocol):
    """A knob.

    Attributes:
        points: what it can be set to.
        point: the one in force.

    What also has a ``cost`` of ``drowsy.knob.frontier.SAVES``, and ``saved(point)``, is logged by
    what it saves of that; by an ``objective`` of ``drowsy.knob.metrics`` floors are checked.
    """

    @property
    def points(self) -> Sequence[Any]: ...
    @property
    def point(self) -> Any: ...
    def set(self, point: Any, /) -> object: ...
    def __call__(self, batch: Any, /) -> Any: ...


@dataclass(frozen=True)
class _FrontierPoint:
    """A point of a frontier, which counts losses from its reference."""

    measured: Any
    saving: float
    latency_ms: float | None
    joules: float | None
    loss: float | None


class NetAndFrontier:
    """A network that is set to the points of a frontier."""

    def __init__(self, net: DrowsyNet, frontier: Frontier) -> None:
        whole = frontier.reference
        self.points = [
            _FrontierPoint(
                point,
                point.saving,
                point.latency_ms,
                point.joules,
                None if whole is None else frontier.value(whole) - frontier.value(point),
            )
            for point in frontier.points
        ]
        self._net, self._frontier = net, frontier
        self.objective, self.cost = frontier.objective, frontier.cost
        self.set(self.points[0])

    def set(self, point: _FrontierPoint) -> None:
        self._net.set(point.measured)
        self.point = point

    def saved(self, point: _FrontierPoint) -> float:
        return self._frontier.saved(point.measured)

    def __call__(self, batch: Any) -> Any:
        return self._net(batch)


def governed(knob: Any, frontier: Frontier | None) -> Governed:
    """What is to be governed, or an error that says what it lacks."""
    if isinstance(knob, DrowsyNet):
        if not isinstance(frontier, Frontier):
            raise TypeError(
                f"frontier: got {type(frontier).__name__}, allowed: the Frontier of this network "
                "(drowsy.search makes one)"
            )
        return NetAndFrontier(knob, frontier)
    if frontier is not None:
        raise TypeError("frontier: got one for what has points of its own; allowed: None")
    lacking = [name for name in ("points", "point", "set") if not hasattr(knob, name)]
    if lacking or not callable(knob):
        raise TypeError(
            f"knob: got {type(knob).__name__}, which lacks "
            f"{', '.join(lacking) or 'a call'}; allowed: a Knob, or a DrowsyNet with its frontier"
        )
    return knob


def ordered(points: Sequence[Any]) -> list[Any]:
    """The points, the most accurate first: by loss, or by saving where a loss is not known."""
    if not points:
        raise ValueError("knob: got no points, allowed: one or more")
    by_loss = all(point.loss is not None for point in points)
    return sorted(points, key=lambda p: (p.loss, p.saving) if by_loss else p.saving)


def saved_by(knob: Any, points: Sequence[Any]) -> tuple[list[float], str]:
    """What fraction each point saves, and of what: of the knob's cost, or of multiplications.

    The latter of a knob without ``cost`` and ``saved(point)``, or that cannot tell them.
    """
    cost = getattr(knob, "cost", None)
    if cost in tuple(SAVES) and hasattr(knob, "saved"):
        with contextlib.suppress(ValueError):
            return [knob.saved(point) for point in points], SAVES[cost]
    return [point.saving for point in points], SAVES["macs"]


def check_budgets(budgets: Mapping[str, float | None]) -> dict[str, float]:
    """The budgets that are given, each a finite number above 0."""
    given = {name: value for name, value in budgets.items() if value is not None}
    if not given:
        raise ValueError(f"budgets: got none, allowed: one or more of {', '.join(BUDGETS)}")
    for name, value in given.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f"{name}: got {quoted(value)}, allowed: a finite number above 0")
    return {name: float(value) for name, value in given.items()}


def check_measured(points: Sequence[Any], budgets: Mapping[str, float]) -> None:
    """Raise unless every point has measured what the budgets need."""
    for budget in budgets:
        figure, unit = BUDGETS[budget]
        values = [getattr(point, figure) for point in points]
        lacking = sum(value is None or not 0 < value < math.inf for value in values)
        if lacking:
            raise ValueError(
                f"{budget}: {lacking} of {len(points)} points have no {figure} ({unit}) above 0; "
                f"measure it at every point: drowsy.energy.profile(net, images, frontier), on the "
                "machine that is to be governed"
            )


def allowed_by(floor: float | None, knob: Any, points: Sequence[Any]) -> int:
    """How many points of a knob, from the most accurate on, lose at most the floor."""
    if floor is None:
        return len(points)
    if not is_number(floor) or floor < 0:
        raise ValueError(f"floor: got {quoted(floor)}, allowed: a finite number, 0 or more")
    if getattr(knob, "objective", None) in tuple(METRICS):
        METRICS[knob.objective].check_loss("floor", floor)
    if any(point.loss is None for point in points):
        raise ValueError(
            "floor: there are points without a loss; measure the awake network beside them "
            "(a frontier with a point at rate 0)"
        )
    count = sum(point.loss <= floor for point in points)
    if not count:
        raise ValueError(
            f"floor: got {floor}, allowed: {points[0].loss:.4g} or more: the least loss"
        )
    return count
