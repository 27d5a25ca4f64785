"""``Governor``: holds budgets by turning a knob between batches."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drowsy.governor.board import Board, board_of
from drowsy.governor.channel import Channel
from drowsy.governor.credit import Credit
from drowsy.governor.estimator import Estimator
from drowsy.governor.governed import (
    allowed_by,
    check_budgets,
    check_measured,
    governed,
    ordered,
)
from drowsy.governor.pace import Pace
from drowsy.governor.policy import Choice, Limit, choose
from drowsy.governor.thermal import Thermal
from drowsy.governor.timing import CudaTimer, HostTimer
from drowsy.knob.frontier import Frontier
from drowsy.sensors import Device
from drowsy.sensors.sensor import MOST_WATTS, clock

log = logging.getLogger("drowsy.governor")

_SHAPES = 64  # of batches whose latencies are told apart
_RECENT, _SHAPES_HELD = 64, 4  # calls, and shapes of batches, that a point is to be good for
_AHEAD, _RISE_AHEAD = 0.05, 0.2  # of the device's time constant: to stay at a point, to rise to it
_SLACK = 0.01  # of a budget, beside what the noise takes, that a rise leaves free
# How much of its noise a figure may exceed its budget by: a call's latency is one, where the second
# over which power counts, and still more the time constant of heat, evens out what readings scatter.
_NOISE = {"latency_ms": 1.0, "images_per_s": 1.0, "watts": 0.35, "joules_per_image": 0.35, "celsius": 0.0}
_RISE_NOISE = 0.7  # of that noise: what a rise leaves free for it
_MARGIN = 0.01, 0.10  # of a budget, a second without news, and at most
_DEGREES = 0.05, 3.0  # the same for a temperature
_LAG = 0.3  # seconds that sensors may be behind what they say
_LEAST_OF_DRAW = 0.7  # of what our work was recorded to draw that a device must be said to draw


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
        floor: the loss that is never exceeded, budgets or not. 0.01 is one point of accuracy.
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
        check_measured(self._points, self._budgets)
        self._allowed = allowed_by(floor, self._points)
        self._on_change, self._now = on_change, now
        self._lock = threading.Lock()
        self._timer: HostTimer | CudaTimer | None = None

        count = len(self._points)
        timed = all(point.latency_ms for point in self._points)
        self._recorded = _recorded(self._points, "latency_ms") if timed else None
        self._latencies: OrderedDict[tuple[int, ...], Estimator] = OrderedDict()
        self._recent: dict[tuple[int, ...], int] = {}
        self._calls = 0
        self._pace = Pace()

        of_power = {"watts", "celsius", "joules_per_image"} & self._budgets.keys()
        self.device = _board(device, of_power) if of_power else None
        self._joules = _recorded(self._points, "joules") if of_power else np.zeros(count)
        self._read = 0  # number of the last reading that was used
        self._power = Estimator(count, offset_doubt=1.0, scales=(0.6, 1.7), cheap=22.0)
        self._watts = Channel("watts", 0, MOST_WATTS)
        self._heat = Channel("celsius", -40, 150, stalls=False)
        self._thermal: Thermal | None = None
        self._thermal_at = 0.0

        self._credits = {name: Credit() for name in self._budgets}
        self._feasible, self._changes = True, 0
        self._limits: list[Limit] = []
        self._at = self._find()

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
        if self._thermal is not None:
            expected["celsius"] = self._thermal.celsius
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
        self._pace.called(now)
        if self._knob.point is not self._points[self._at]:
            self._at = self._find()
        news = self._hear_latencies()
        latency = self._latency_of(shape)
        draws = None
        if self.device is not None and self._pace.seconds is not None:
            draws = self._draws(shape, latency, now)
            news |= self._hear_device(draws, now)
        if not news and self._limits:
            return
        self._limits = self._limits_of(shape, draws, now)
        if not self._limits:
            return
        rested = all(self._credits[limit.name].may_rise for limit in self._limits)
        choice = choose(self._limits, self._at, self._allowed, rested)
        self._tell(choice)
        if choice.point != self._at:
            self._turn(choice, draws, now)

    def _limits_of(
        self,
        shape: tuple[int, ...],
        draws: _Draws | None,
        now: float,
    ) -> list[Limit]:
        """Every budget as the policy sees it."""
        limits, budgets = [], self._budgets
        if self._recorded is not None:
            for each in self._recent_shapes(shape):
                limits += self._limits_of_latency(each)
        if draws is None:
            return limits
        expected, doubt = self._power.expect(draws.all, _NOISE["watts"])
        margin = min(_MARGIN[0] * self._watts.quiet(now), _MARGIN[1])
        rise = _rise(_NOISE["watts"] * self._power.noise)
        if "watts" in budgets:
            most = budgets["watts"] * (1 - margin)
            limits.append(self._shared("watts", most, most * rise, expected, doubt, draws))
        if "joules_per_image" in budgets:
            most = budgets["joules_per_image"] * (1 - margin)
            images = draws.rate * draws.all / draws.mine
            limits.append(
                Limit("joules_per_image", most, most * rise, expected / images, doubt / images)
            )
        if self._thermal is not None:
            cold = min(_DEGREES[0] * self._heat.quiet(now), _DEGREES[1])
            limit = budgets["celsius"]
            most = max(self._thermal.most_watts(limit, _AHEAD, cold), 1e-3)
            more = min(max(self._thermal.most_watts(limit, _RISE_AHEAD, cold), 1e-3), most)
            expected, doubt = self._power.expect(draws.all, _NOISE["celsius"])
            limits.append(self._shared("celsius", most, more * _rise(0.0), expected, doubt, draws))
        return limits

    def _limits_of_latency(self, shape: tuple[int, ...]) -> list[Limit]:
        estimator = self._latency_of(shape)
        assert self._recorded is not None
        expected, doubt = estimator.expect(self._recorded, _NOISE["latency_ms"])
        rise = _rise(_NOISE["latency_ms"] * estimator.noise)
        limits = []
        for name, most in self._milliseconds(shape):
            limits.append(Limit(name, most, most * rise, expected, doubt))
        return limits

    def _shared(
        self,
        name: str,
        most: float,
        rise: float,
        expected: np.ndarray,
        doubt: np.ndarray,
        draws: _Draws,
    ) -> Limit:
        """A limit of watts of the device, of which other governors have their shares."""
        if draws.others > 0:
            # What the others draw, and our share beside it, whatever that adds up to: they come down.
            foreign, theirs = self._power.offset, self._power.scale * draws.others
            most = max(most, foreign + theirs + draws.share * (most - foreign))
            rise = max(rise, foreign + theirs + draws.share * (rise - foreign))
        return Limit(name, most, rise, expected, doubt)

    def _turn(self, choice: Choice, draws: _Draws | None, now: float) -> None:
        before, after = self._points[self._at], self._points[choice.point]
        self._knob.set(after)
        if draws is not None and self.device is not None:
            self._pace.turned(float(draws.seconds[choice.point]))
            self.device.tell(self, float(draws.mine[choice.point]), float(draws.mine[0]), now)
            self.device.changed_at = now
        self._at, self._changes = choice.point, self._changes + 1
        for credit in self._credits.values():
            credit.turned()
        log.info("%.4g to %.4g saved: %s", before.saving, after.saving, choice.reason)
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

    # --- what is measured -------------------------------------------------------------------------

    def _hear_latencies(self) -> bool:
        """Learn from calls that are over; whether there were any."""
        done = self._timer.done() if self._timer is not None else []
        if self._recorded is None:
            return bool(done)
        for (at, shape), taken in done:
            estimator = self._latency_of(shape)
            if not estimator.warm:
                estimator.warm = True  # the first call of a shape compiles and allocates
                continue
            if not 0 < taken < float("inf"):
                continue
            estimator.observe(at, float(self._recorded[at]), taken)
            for name, most in self._milliseconds(shape):
                self._credits[name].measure(taken > most, self._feasible)
        return bool(done)

    def _hear_device(self, draws: _Draws, now: float) -> bool:
        """Learn from new readings of the device; whether there were any."""
        assert self.device is not None
        readings = self.device.after(self._read)
        for number, reading in readings:
            self._read = number
            watts = self._hear_watts(reading, draws)
            if "celsius" in self._budgets:
                self._hear_celsius(reading, watts, draws)
        return bool(readings)

    def _hear_watts(self, reading: Any, draws: _Draws) -> float | None:
        """The device's power, where it is believed."""
        if "watts" not in self.device.tells:  # type: ignore[union-attr]
            return None
        at = self._at
        # No device draws much less than our own work alone was recorded to.
        least = _LEAST_OF_DRAW * float(draws.all[at])
        watts = self._watts.take(reading.watts, reading.why, least)
        if watts is None:
            return None
        self._watts.believe(reading.at)
        # What was drawn before a change says nothing of the point after it.
        if self.device is not None and reading.since >= self.device.changed_at + _LAG:
            self._power.observe(at, float(draws.all[at]), watts)
            mean = self._power.mean(at, float(draws.all[at]))
            for name in ("watts", "joules_per_image"):
                if name in self._budgets:
                    spent = mean
                    if name == "joules_per_image":
                        spent *= float(draws.mine[at] / draws.all[at] / draws.rate[at])
                    self._credits[name].measure(spent > self._budgets[name], self._feasible)
        return watts

    def _hear_celsius(self, reading: Any, watts: float | None, draws: _Draws) -> None:
        celsius = self._heat.take(reading.celsius, reading.why)
        if self._thermal is None:
            if celsius is None:
                return
            self._thermal = Thermal(float(self._power.expect(draws.all, 0.0)[0].max()))
            self._thermal_at = reading.at
        if watts is None:
            watts = self._power.mean(self._at, float(draws.all[self._at]))
        self._thermal.advance(max(reading.at - self._thermal_at, 0.0), watts)
        self._thermal_at = reading.at
        if celsius is not None:
            if self._thermal.observe(celsius):
                self._heat.believe(reading.at)
            else:
                self._heat.doubt(f"reads {celsius:.4g} where the model has {self._thermal.celsius:.4g}")
            self._credits["celsius"].measure(celsius > self._budgets["celsius"], self._feasible)

    # --- what is expected -------------------------------------------------------------------------

    def _latency_of(self, shape: tuple[int, ...]) -> Estimator:
        """Of batches of this shape; of a new one by that of the last, as if time went with size."""
        found = self._latencies.get(shape)
        if found is not None:
            self._latencies.move_to_end(shape)
            return found
        found = Estimator(len(self._points))
        if self._latencies:
            last, known = next(reversed(self._latencies.items()))
            found.scale = known.scale * _size(shape) / max(_size(last), 1)
        self._latencies[shape] = found
        if len(self._latencies) > _SHAPES:
            self._latencies.popitem(last=False)
        return found

    def _draws(self, shape: tuple[int, ...], latency: Estimator, now: float) -> _Draws:
        """What the points are expected to draw, and tell it to the other governors."""
        assert self.device is not None
        busy = None
        if self._recorded is not None:
            busy = 1e-3 * (latency.scale + latency.own) * self._recorded
        seconds = self._pace.between(busy, self._at)
        if not isinstance(seconds, np.ndarray):
            seconds = np.full(len(self._points), seconds)
        rate = _images(shape) / seconds
        mine = self._joules * rate
        awake = float(mine[0])
        self.device.tell(self, float(mine[self._at]), awake, now)
        others, others_awake = self.device.others(self, now)
        share = awake / (awake + others_awake)
        return _Draws(mine, mine + others, seconds, rate, others, share)

    def _milliseconds(self, shape: tuple[int, ...]) -> list[tuple[str, float]]:
        """That a batch of this shape may take, by budget."""
        budgets, found = self._budgets, []
        if "latency_ms" in budgets:
            found.append(("latency_ms", budgets["latency_ms"]))
        if "images_per_s" in budgets:
            found.append(("images_per_s", 1e3 * _images(shape) / budgets["images_per_s"]))
        return found

    def _recent_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of this batch and the last ones: a point is for all of them, and not turned for each."""
        self._calls += 1
        self._recent[shape] = self._calls
        if len(self._recent) > 1:
            for each in [s for s, at in self._recent.items() if self._calls - at >= _RECENT]:
                del self._recent[each]
        if len(self._recent) > _SHAPES_HELD:
            del self._recent[min(self._recent, key=self._recent.__getitem__)]
        return list(self._recent)

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
            if known is point:
                return at
        self._knob.set(self._points[0])
        return 0


@dataclass(frozen=True)
class _Draws:
    """What every point is expected to draw, as recorded and at the present pace; ``[points]``.

    Args:
        mine: watts of our own work.
        all: and of the other governors'.
        seconds: between calls.
        rate: images a second.
        others: watts of the other governors'.
        share: of what foreign load leaves.
    """

    mine: np.ndarray
    all: np.ndarray
    seconds: np.ndarray
    rate: np.ndarray
    others: float
    share: float


def _rise(noise: float) -> float:
    """Of a budget, what a more accurate point may take."""
    return max(1 - _SLACK - _RISE_NOISE * noise, 0.5)


def _recorded(points: list[Any], figure: str) -> np.ndarray:
    return np.array([getattr(point, figure) for point in points], float)


def _board(device: Device | Board, wanted: set[str]) -> Board:
    needs = {"celsius"} & wanted | ({"watts"} if wanted - {"celsius"} else set())
    if not isinstance(device, Board):
        return board_of(device, needs)
    if lacking := needs - set(device.tells):
        raise ValueError(f"device: {device.name} does not tell {', '.join(sorted(lacking))}")
    return device


def _images(shape: tuple[int, ...]) -> int:
    """Of a batch; a tensor of three dimensions is one image."""
    return shape[0] if len(shape) == 4 else 1


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) if shape else 1
