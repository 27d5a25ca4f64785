"""A simulated device under a network with operating points, and an oracle that knows its future.

A call takes the point's latency, stretched by other tenants and by noise. Power is what the device
draws idle, what calls add, and what tenants add. Temperature follows it as a resistance and a
capacity. Sensors are read five times a second, late, with noise, rounded, and with faults. Nothing
here is of a real device; ``drowsy.governor`` is not imported, and knows nothing of this file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Curve = Callable[[float], float]
# What a sensor tells at a time in place of what it should; None: nothing; it may raise.
Fault = Callable[[float, float], float | None]
Faulty = Callable[[], Fault]  # makes one anew: what it remembers is of one run

IDLE, PEAK = 25.0, 60.0  # watts: of the idle device, and what a busy one draws above
AMBIENT = 25.0
IMAGES = 8  # in a batch
FIFTIETH = 2.054  # standard deviations that one draw in fifty exceeds


@dataclass(frozen=True)
class Recorded:
    """An operating point as it was recorded."""

    saving: float
    loss: float
    latency_ms: float
    joules: float


def recorded_points() -> list[Recorded]:
    """Nine points, from a frontier's usual shape: losses grow faster than savings."""
    losses = (0.0, 0.002, 0.005, 0.009, 0.015, 0.023, 0.034, 0.050, 0.070)
    points = []
    for number, loss in enumerate(losses):
        saving = number / 14
        latency = 20.0 * (1 - 0.9 * saving)
        points.append(Recorded(saving, loss, latency, busy_watts(saving) * latency / 1e3 / IMAGES))
    return points


def busy_watts(saving: float) -> float:
    """Of the whole device while a call runs."""
    return IDLE + PEAK * (1 - 0.3 * saving)


def constant(value: float) -> Curve:
    return lambda t: value


def steps(*changes: tuple[float, float], start: float) -> Curve:
    """``start``, and from each time on its value."""

    def at(t: float) -> float:
        value = start
        for when, then in changes:
            if t >= when:
                value = then
        return value

    return at


def ramp(*corners: tuple[float, float]) -> Curve:
    times, values = zip(*corners, strict=True)
    return lambda t: float(np.interp(t, times, values))


def bursts(period: float, length: float, high: float, low: float, first: float = 20.0) -> Curve:
    return lambda t: high if t >= first and (t - first) % period < length else low


_NOTHING, _ONE = constant(0.0), constant(1.0)
_USUAL, _ROOM = constant(25.0), constant(AMBIENT)


@dataclass(frozen=True)
class World:
    """What happens to a device.

    Args:
        seconds: how long.
        fps: batches a second that arrive; ``inf``: the caller comes back at once.
        stretch: factor of tenants on latencies.
        tenants: watts that they draw.
        ambient: degrees.
        deviations: of each point's latency and work from the recording, as factors.
        noise: standard deviation of the latency's logarithm.
        hiccups: share of calls that take three times as long.
        traces: from each of these seconds on, factors of the latency, a call each and in turn, in
            place of noise.
        resistance, constant: degrees a watt, and seconds.
        watts_noise: of the reading over the watts.
        every: seconds between readings of the sensors.
        delay: seconds that sensors are late.
        watts_fault, celsius_fault: of the sensors.
        images: of the batches, in turn.
        seed: of the noise.
    """

    seconds: float = 180.0
    fps: Curve = _USUAL
    stretch: Curve = _ONE
    tenants: Curve = _NOTHING
    ambient: Curve = _ROOM
    deviations: Sequence[float] = (1.0,) * 9
    noise: float = 0.03
    hiccups: float = 0.0
    traces: Sequence[tuple[float, Sequence[float]]] = ()
    resistance: float = 0.6
    constant: float = 30.0
    watts_noise: float = 0.015
    every: float = 0.2
    delay: float = 0.2
    watts_fault: Faulty | None = None
    celsius_fault: Faulty | None = None
    images: Sequence[int] = (IMAGES,)
    seed: int = 0

    def trace(self, t: float) -> Sequence[float]:
        """The factors that are in force; none where there is noise."""
        return next((factors for start, factors in reversed(self.traces) if t >= start), ())

    def late(self, t: float) -> float:
        """The factor of the latency that one call in fifty exceeds."""
        return next((late for start, late in self._late if t >= start), self._late_noise)

    @cached_property
    def _late(self) -> list[tuple[float, float]]:
        """The same of every trace, the last first."""
        return [(start, sorted(f)[-1 - len(f) // 50]) for start, f in reversed(self.traces)]

    @cached_property
    def _late_noise(self) -> float:
        return math.exp(FIFTIETH * self.noise)


@dataclass
class Track:
    """What happened, an entry a call.

    Args:
        t: seconds at its start.
        seconds: until the next.
        point: in force.
        latency: milliseconds.
        images: in the batch.
        watts: mean until the next call.
        second: mean power of the last second.
        celsius: at the next call.
    """

    t: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    point: list[int] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    celsius: list[float] = field(default_factory=list)


class Plant:
    """The device. ``call`` runs a batch at a point, and then waits for the next to arrive."""

    def __init__(self, world: World, points: Sequence[Recorded] | None = None) -> None:
        self.world, self.points = world, list(points or recorded_points())
        self.t, self.celsius = 0.0, world.ambient(0.0) + world.resistance * IDLE
        self.track = Track()
        self.calls = 0
        self.on_reading: Callable[[float, float | None, float | None, str], None] | None = None
        self._random = random.Random(world.seed)
        # Of the sensors apart, so that latencies are the same whoever reads them.
        self._sensed = random.Random(world.seed + 1)
        self._watts_fault = world.watts_fault() if world.watts_fault else None
        self._celsius_fault = world.celsius_fault() if world.celsius_fault else None
        self._next_reading = 0.0
        self._pieces: list[tuple[float, float, float]] = [(-10.0, 0.0, IDLE)]
        self._heat: list[tuple[float, float]] = [(-10.0, self.celsius), (0.0, self.celsius)]
        self._mean = IDLE

    @property
    def over(self) -> bool:
        return self.t >= self.world.seconds

    def images(self) -> int:
        """Of the next batch."""
        return self.world.images[self.calls % len(self.world.images)]

    def expected_ms(self, point: int, t: float, images: int = IMAGES) -> float:
        """Latency without noise."""
        work = self.points[point].latency_ms * self.world.deviations[point] * images / IMAGES
        return work * self.world.stretch(t)

    def period(self, latency_ms: float, t: float) -> float:
        """Seconds until the next call."""
        return max(latency_ms / 1e3 + 2e-4, 1 / self.world.fps(t))

    def expected_watts(self, point: int, t: float, images: int = IMAGES) -> float:
        """Power at this point, as the load is."""
        period = self.period(self.expected_ms(point, t, images), t)
        return self._power(point, t, period, images)

    def _power(self, point: int, t: float, period: float, images: int) -> float:
        chosen = self.points[point]
        work = chosen.latency_ms / 1e3 * self.world.deviations[point] * images / IMAGES
        added = (busy_watts(chosen.saving) - IDLE) * work / period
        return IDLE + added + self.world.tenants(t)

    def next_noise(self) -> float:
        world, trace = self.world, self.world.trace(self.t)
        if trace:
            return trace[self.calls % len(trace)]
        factor = math.exp(self._random.gauss(0, world.noise))
        return factor * (3.0 if self._random.random() < world.hiccups else 1.0)

    def start(self, point: int) -> float:
        """Run a batch; the milliseconds that it took. The clock then stands at its end."""
        images = self.images()
        latency = self.expected_ms(point, self.t, images) * self.next_noise()
        self._begun = self.t, point, latency, images
        self.t += latency / 1e3
        return latency

    def finish(self) -> None:
        """Wait for the next batch to arrive."""
        begun, point, latency, images = self._begun
        seconds = self.period(latency, begun)
        watts = self._power(point, begun, seconds, images)
        end = begun + seconds
        self._warm(begun, seconds, watts)
        self._pieces.append((begun, end, watts))
        self.t = end
        self._mean = self.mean_watts(end - 1.0, end)
        track = self.track
        track.t.append(begun)
        track.seconds.append(seconds)
        track.point.append(point)
        track.latency.append(latency)
        track.images.append(images)
        track.watts.append(watts)
        track.second.append(self._mean)
        track.celsius.append(self.celsius)
        self.calls += 1
        while self._next_reading <= end:
            self._read(self._next_reading)
            self._next_reading += self.world.every
        if len(self._pieces) > 400:
            del self._pieces[:200], self._heat[:200]

    def _warm(self, t: float, seconds: float, watts: float) -> None:
        world = self.world
        settled = world.ambient(t) + world.resistance * watts
        self.celsius = settled + (self.celsius - settled) * math.exp(-seconds / world.constant)
        self._heat.append((t + seconds, self.celsius))

    def mean_watts(self, start: float, end: float) -> float:
        joules = covered = 0.0
        for begun, ended, watts in reversed(self._pieces):
            if ended <= start:
                break
            part = min(ended, end) - max(begun, start)
            if part > 0:
                joules, covered = joules + part * watts, covered + part
        return joules / covered if covered else IDLE

    def _read(self, at: float) -> None:
        """What the sensors tell now, of a moment ago."""
        if self.on_reading is None:
            return
        world, seen = self.world, at - self.world.delay
        watts: float | None = self.mean_watts(seen - world.every, seen)
        watts = round(watts * (1 + self._sensed.gauss(0, world.watts_noise)), 3)  # type: ignore[operator]
        times = [when for when, _ in self._heat[-60:]]
        heat = [celsius for _, celsius in self._heat[-60:]]
        celsius: float | None = float(np.interp(seen, times, heat)) + self._sensed.gauss(0, 0.1)
        celsius = float(round(celsius))  # type: ignore[arg-type]
        why = ""
        try:
            if self._watts_fault is not None:
                watts = self._watts_fault(at, watts)
            if self._celsius_fault is not None:
                celsius = self._celsius_fault(at, celsius)
        except OSError as error:
            watts = celsius = None
            why = str(error)
        self.on_reading(at, watts, celsius, why)


@dataclass(frozen=True)
class Budgets:
    """What is to be held; None: not."""

    latency_ms: float | None = None
    images_per_s: float | None = None
    watts: float | None = None
    joules_per_image: float | None = None
    celsius: float | None = None
    floor: float | None = None

    def loads(
        self, latency: float, watts: float, period: float, images: int = IMAGES
    ) -> dict[str, float]:
        """What is taken of each budget, the temperature's aside."""
        found = {}
        if self.latency_ms:
            found["latency_ms"] = latency / self.latency_ms
        if self.images_per_s:
            found["images_per_s"] = latency * self.images_per_s / (1e3 * images)
        if self.watts:
            found["watts"] = watts / self.watts
        if self.joules_per_image:
            found["joules_per_image"] = watts * period / images / self.joules_per_image
        return found

    def allowed(self, points: Sequence[Recorded]) -> int:
        if self.floor is None:
            return len(points)
        return sum(point.loss <= self.floor for point in points)


class Oracle:
    """Chooses the most accurate point within all budgets, knowing the plant and what will come.

    A call's noise it does not know: latencies are such that one call in fifty is over budget. Watts
    and joules are as they will be. Of temperature: as hot as can be while the coolest points can
    still hold what is to come.

    Args:
        foresees: False: a causal one, which knows the plant and its laws of noise, but of the world
            only how it was at the last call, and for watts at the last reading. What scatters in
            those it takes for the device's own: in one second in fifty they are over budget.
    """

    def __init__(self, plant: Plant, budgets: Budgets, foresees: bool = True) -> None:
        self._plant, self._budgets, self._foresees = plant, budgets, foresees
        self._allowed = budgets.allowed(plant.points)
        self._highest: np.ndarray | None = None
        if budgets.celsius:
            self._highest = self._backwards() if foresees else np.array([budgets.celsius])

    def _backwards(self, step: float = 0.1) -> np.ndarray:
        """The highest temperature from which the limit can be held, every 0.1 s."""
        plant, world = self._plant, self._plant.world
        limit = self._budgets.celsius or 0.0
        count = int(world.seconds / step) + 20
        highest = np.full(count, limit)
        stays = math.exp(-step / world.constant)
        for i in range(count - 2, -1, -1):
            t = i * step
            coolest = min(plant.expected_watts(p, t) for p in range(self._allowed))
            settled = world.ambient(t) + world.resistance * coolest
            highest[i] = min(limit, settled + (highest[i + 1] - settled) / stays)
        return highest

    def loads(self, point: int) -> float:
        """The most that a point takes of any budget."""
        plant, world, images = self._plant, self._plant.world, self._plant.images()
        t = read = plant.t
        noise = 1.0
        if not self._foresees:
            t = plant.track.t[-1] if plant.track.t else 0.0
            read = max(read - world.delay - world.every, 0.0)
            noise += FIFTIETH * world.watts_noise * math.sqrt(world.every)
        latency = plant.expected_ms(point, t, images)
        period = plant.period(latency, t)
        watts = plant.expected_watts(point, read, images)
        late = latency * world.late(t)
        found = list(self._budgets.loads(late, noise * watts, period, images).values())
        if self._highest is not None:
            settled = world.ambient(t) + world.resistance * watts
            after = settled + (plant.celsius - settled) * math.exp(-period / world.constant)
            top = self._highest[min(math.ceil((t + period) / 0.1), len(self._highest) - 1)]
            found.append(1.0 + (after - top) / 10)
        return max(found)

    def decide(self) -> int:
        loads = [self.loads(point) for point in range(self._allowed)]
        fits = [point for point, load in enumerate(loads) if load <= 1 + 1e-9]
        return fits[0] if fits else min(range(len(loads)), key=loads.__getitem__)
