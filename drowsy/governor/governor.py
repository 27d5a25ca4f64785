"""``Governor``: holds budgets by turning a knob between batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from drowsy.governor.board import Board, board_of
from drowsy.governor.credit import Credit
from drowsy.governor.governed import (
    allowed_by,
    check_budgets,
    check_measured,
    governed,
    ordered,
    saved_by,
)
from drowsy.governor.latency import Latencies, images_of
from drowsy.governor.policy import Choice, Limit, choose
from drowsy.governor.power import BUDGETS, Power
from drowsy.governor.timing import CudaTimer, HostTimer
from drowsy.knob.frontier import Frontier
from drowsy.knob.keywords import names_keywords
from drowsy.sensors import Device
from drowsy.sensors.sensor import clock

log = logging.getLogger("drowsy.governor")


@dataclass(frozen=True)
class Change:
    """The governor turned the knob.

    Args:
        seconds: of the governor's clock.
        before, after: points of the knob.
        reason: in words.
        limit: name of the budget that decided; None where it was none of them.
    """

    seconds: float
    before: Any
    after: Any
    reason: str
    limit: str | None


@dataclass(frozen=True)
class State:
    """The governor at one moment.

    Args:
        point: in force.
        budgets: by name.
        expected: what the present point is expected to take, by budget, in the budget's unit;
            without those of which nothing is known yet.
        feasible: whether any point was found to hold all budgets.
        changes: how often the knob was turned.
        over: of every budget that is measured the measurements that exceeded it.
        measured: and how many there were.
    """

    point: Any
    budgets: dict[str, float]
    expected: dict[str, float]
    feasible: bool
    changes: int
    over: dict[str, int]
    measured: dict[str, int]


class Governor:
    """Runs batches, and between them chooses the point that loses least within all budgets.

    Points' recorded figures predict, and measurements correct them. Latencies are taken around the
    calls; watts and temperature by a thread, beside them. Budgets are of what is measured: watts,
    temperature and joules are the device's, whoever uses it.

        with drowsy.Governor(knob, latency_ms=20, celsius=80) as governor:
            for batch in batches:
                answers = governor(batch)

    Args:
        knob: a ``Knob``, or anything with ``points`` (each with ``saving``, ``latency_ms``,
            ``joules`` and ``loss``), ``point``, ``set(point)`` and a call; or a ``DrowsyNet``.
        latency_ms: that a call may take.
        watts: that the device may draw.
        celsius: that the device may reach.
        joules_per_image: that the device may spend for each of our images.
        images_per_s: that the network must be able to do, called without a pause.
        floor: the loss that is never exceeded, budgets or not. 0.01 is one point of accuracy, of
            which more than 1 is refused.
        frontier: of a ``DrowsyNet``.
        device: whose watts and temperature: ``auto``, ``cpu``, ``cuda:1``; or a ``Board``.
        on_change: called with each ``Change``. What it raises is logged.
        now: tells the time in seconds; for simulations.

    Attributes:
        device: the ``Board`` whose sensors are read; None where no budget needs them.

    Raises:
        TypeError: no knob.
        ValueError: no budget, one that is not allowed, or a point without the figure that a budget
            needs.
        NoMeter: what a budget needs cannot be read here.
    """

    @names_keywords
    def __init__(
        self,
        knob: Any,
        *,
        latency_ms: float | None = None,
        watts: float | None = None,
        celsius: float | None = None,
        joules_per_image: float | None = None,
        images_per_s: float | None = None,
        floor: float | None = None,
        frontier: Frontier | None = None,
        device: Device | Board = "auto",
        on_change: Callable[[Change], object] | None = None,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self._budgets = check_budgets(
            {
                "latency_ms": latency_ms,
                "watts": watts,
                "celsius": celsius,
                "joules_per_image": joules_per_image,
                "images_per_s": images_per_s,
            }
        )
        self._knob = governed(knob, frontier)
        self._points = ordered(self._knob.points)
        self._saved, self._saves = saved_by(self._knob, self._points)
        check_measured(self._points, self._budgets)
        self._allowed = allowed_by(floor, self._knob, self._points)
        self._on_change, self._now = on_change, now
        self._lock = threading.Lock()
        self._timer: HostTimer | CudaTimer | None = None

        self._credits = {name: Credit(self._allowed) for name in self._budgets}
        self._latencies = Latencies(self._points, self._budgets, self._credits)
        of_power = {*BUDGETS} & self._budgets.keys()
        self.device = _board(device, of_power) if of_power else None
        self._power: Power | None = None
        if self.device is not None:
            self.device.join(self)
            self._power = Power(self, self.device, self._points, self._budgets, self._credits)
        self._feasible, self._changes = True, 0
        self._limits: list[Limit] = []
        self._at = self._find()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "Governor: got copied or pickled, allowed: another drowsy.Governor, of a knob of its "
            "own: what it has measured and the threads that it reads by are of one process"
        )

    # --- what a caller does -----------------------------------------------------------------------

    def __call__(self, batch: Any) -> Any:
        """Run a batch at the point that is best now; what the knob answers."""
        timer = self._timer or self._timer_for(batch)
        shape = tuple(batch.shape)
        # Of calls side by side one decides, and the others run.
        if self._lock.acquire(blocking=False):
            try:
                self._decide(shape)
            finally:
                self._lock.release()
        at, start = self._at, timer.start()
        answer = self._knob(batch)
        timer.stop(start, (at, shape))
        return answer

    @property
    def state(self) -> State:
        """What is in force and expected now."""
        expected = {limit.name: float(limit.expected[self._at]) for limit in self._limits}
        if self._power is not None and self._power.celsius is not None:
            expected["celsius"] = self._power.celsius
        return State(
            self._points[self._at],
            dict(self._budgets),
            expected,
            self._feasible,
            self._changes,
            {name: credit.over for name, credit in self._credits.items()},
            {name: credit.measured for name, credit in self._credits.items()},
        )

    def close(self) -> None:
        """Read sensors no more. The point stays."""
        if self.device is not None:
            self.device.leave(self)

    def __enter__(self) -> Governor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- a decision -------------------------------------------------------------------------------

    def _decide(self, shape: tuple[int, ...]) -> None:
        now = self._now()
        if self._knob.point is not self._points[self._at]:
            self._at = self._find()
        done = self._timer.done() if self._timer is not None else []
        self._latencies.hear(done)
        news, power = bool(done), self._power
        if power is not None and power.called(now):
            busy = self._latencies.seconds(shape)
            power.follow(images_of(shape), busy, self._at, now)
            news = True
        if not news and self._limits:
            return
        self._limits = self._latencies.limits(shape)
        if power is not None:
            self._limits += power.limits
        if not self._limits:
            return
        credits = [self._credits[limit.name] for limit in self._limits]
        highest = max(credit.highest(self._at) for credit in credits)
        choice = choose(self._limits, self._at, self._allowed, highest)
        self._tell(choice)
        if choice.point != self._at:
            self._turn(choice, now)

    def _turn(self, choice: Choice, now: float) -> None:
        before, after = self._points[self._at], self._points[choice.point]
        saved = self._saved[self._at], self._saved[choice.point]
        self._knob.set(after)
        if self._power is not None:
            self._power.turned(choice.point, now)
        self._at, self._changes = choice.point, self._changes + 1
        for credit in self._credits.values():
            credit.turned()
        log.info("%.4g to %.4g of the %s saved: %s", *saved, self._saves, choice.reason)
        if self._on_change is not None:
            try:
                self._on_change(Change(now, before, after, choice.reason, choice.limit))
            except Exception:
                log.exception("on_change failed")

    def _tell(self, choice: Choice) -> None:
        """Say once that no point holds the budgets, and that one does again."""
        if choice.feasible is not None and choice.feasible != self._feasible:
            if choice.feasible:
                log.info("the budgets can be held again")
            else:
                log.warning("%s", choice.reason)
            self._feasible = choice.feasible

    def _timer_for(self, batch: Any) -> HostTimer | CudaTimer:
        if not hasattr(batch, "shape"):
            raise TypeError(f"batch: got {type(batch).__name__}, allowed: a tensor")
        device = getattr(batch, "device", None)
        if isinstance(device, torch.device) and device.type == "cuda":
            self._timer = CudaTimer(device)
        else:
            self._timer = HostTimer(self._now)
        return self._timer

    def _find(self) -> int:
        """Where the point in force is; one that is not known, or below the floor, is turned."""
        point = self._knob.point
        for at, known in enumerate(self._points[: self._allowed]):
            if known is point or known == point:
                return at
        self._knob.set(self._points[0])
        return 0


def _board(device: Device | Board, wanted: set[str]) -> Board:
    needs = {"celsius"} & wanted | ({"watts"} if wanted - {"celsius"} else set())
    if not isinstance(device, Board):
        return board_of(device, needs)
    if lacking := needs - set(device.tells):
        raise ValueError(f"device: {device.name} does not tell {', '.join(sorted(lacking))}")
    return device
