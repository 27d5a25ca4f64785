"""Joules, measured: of a block of code, of a function repeated, of a network's operating points.

    meter = Meter(device=0)
    meter.measure_idle()               # before any work: what the GPU draws anyway
    with meter:
        ...                            # 5 seconds of work, or more
    meter.measurement                  # joules_counter, joules_integrated, joules_above_idle, ...

A window, opened by ``with`` or by ``begin(name)`` and closed by its end or ``end(name)``:

        begin                                                                  end
          | wait for the device                            wait for the device  |
          | sample; read the counter                  read the counter; sample  |
          v                                                                     v
    ------[=====================================================================]-----> time
         o       o       o       o       o       o       o       o       o       o
         |       |_______|                                                       |
         |           |                                                           |
         |           trapezoids between samples of power; their sum, cut at the  |
         |           window's ends, is joules_integrated                         |
         first sample, just before            last sample, just after the window

``joules_counter`` is the counter's difference between the two ends. Samples come from a thread:
power every 20 ms; temperature, clocks and what holds them every 200 ms. Windows may nest and
overlap. A repeated function:

    idle ------------- warm-up -- pace --[ calls, back to back, for 5 s or more ]
    measure_idle()     measure(fn): joules, seconds and calls of the window in brackets

What cannot be read is None, with a warning that says why; nothing is estimated, and a machine that
meters nothing raises ``NoMeter``. Counter and integral are two sums over one sensor of the GPU's:
where they agree, no sample was lost and the ends are right, but the sensor may still be wrong. On
the A100 and H100 it looks a quarter of the time (Yang et al., arXiv 2312.02741), and counters move
in steps of up to 100 ms: hence windows of many calls and of 5 seconds or more.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from drowsy.files.tables import align
from drowsy.images.checks import check_images
from drowsy.knob.costs import layer_costs, layer_shares, saving
from drowsy.knob.frontier import Frontier, OperatingPoint, spared
from drowsy.knob.schedule import Schedule
from drowsy.network.net import DrowsyNet
from drowsy.sensors import THROTTLES, Device, NoMeter, Sample, Sensor, clock, sensors

__all__ = [
    "Availability",
    "DeviceMeasurement",
    "Measurement",
    "Meter",
    "NoMeter",
    "Profile",
    "available",
    "measure",
    "measured_gains",
    "profile",
    "profile_table",
]

MIN_SECONDS = 5.0  # a step of the counter is 2% of such a window, or less
DISAGREEMENT = 0.10  # of counter and integral; beyond it they are flagged
_GAIN_SECONDS = 0.5  # for the latency of one layer at one rate
_FULL_EVERY = 0.2  # seconds between readings of what changes slowly
_GAP = 10  # sampling intervals without a sample that are told as a gap


# --- what comes out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Least, mean and greatest of what was sampled."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True)
class Temperature:
    """In degrees Celsius, at the window's start and end, and the highest."""

    start: float
    end: float
    max: float


@dataclass(frozen=True)
class DeviceMeasurement:
    """One GPU, or one RAPL domain, over one window. None: could not be read; ``warnings`` says why.

    Attributes:
        device, name: ``cuda:0`` and its product name; ``cpu:package-0`` and its folder.
        driver: version.
        seconds: length of the window.
        joules_counter: difference of the device's energy counter.
        joules_integrated: integral of the power samples over the window.
        power: what the samples are: ``instant``, or NVML's ``usage``, which from Ampere on (the
            A100 aside) is the average of the last second.
        idle_watts: power before the work, measured or given.
        power_limit: watts.
        temperature, sm_mhz, memory_mhz: over the window.
        reasons: everything that held the clocks at some time, by nvidia-smi's names.
        samples: what was read, raw; ``seconds`` from the window's start. The first is before it
            and the last after it.
        warnings: what makes the figures worth less.
    """

    device: str
    name: str
    driver: str | None
    seconds: float
    joules_counter: float | None
    joules_integrated: float | None
    power: str | None
    idle_watts: float | None
    power_limit: float | None
    temperature: Temperature | None
    sm_mhz: Spread | None
    memory_mhz: Spread | None
    reasons: tuple[str, ...]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...]

    @property
    def joules(self) -> float | None:
        """The counter's joules; the integral's where the counter tells none."""
        return self.joules_integrated if self.joules_counter is None else self.joules_counter

    @property
    def joules_above_idle(self) -> float | None:
        """``joules`` less what idling for as long would have taken."""
        return _above_idle(self.joules, self.idle_watts, self.seconds)

    @property
    def disagreement(self) -> float | None:
        """(integral - counter) / counter; None where one of them is."""
        return _disagreement(self.joules_counter, self.joules_integrated)


@dataclass(frozen=True)
class Measurement:
    """What one window took, in all devices together; each alone is in ``devices``.

    Attributes:
        name: the window's.
        seconds: its length.
        devices: one entry a GPU or RAPL domain.
        calls: how many calls ``measure`` made in it; None for other windows.
    """

    name: str
    seconds: float
    devices: tuple[DeviceMeasurement, ...]
    calls: int | None = None

    @property
    def joules(self) -> float | None:
        """The counters' joules, and the integral's for a device whose counter tells none."""
        return _sum(each.joules for each in self.devices)

    @property
    def joules_counter(self) -> float | None:
        """Sum of the counters; None if a device has none."""
        return _sum(each.joules_counter for each in self.devices)

    @property
    def joules_integrated(self) -> float | None:
        """Sum of the integrals; None if a device has none."""
        return _sum(each.joules_integrated for each in self.devices)

    @property
    def idle_watts(self) -> float | None:
        """Sum of the idle powers; None if one is not known."""
        return _sum(each.idle_watts for each in self.devices)

    @property
    def joules_above_idle(self) -> float | None:
        """``joules`` less what idling for as long would have taken."""
        return _above_idle(self.joules, self.idle_watts, self.seconds)

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return None if self.joules is None else self.joules / self.seconds

    @property
    def joules_per_call(self) -> float | None:
        """``joules`` over ``calls``."""
        return _ratio(self.joules, self.calls)

    @property
    def joules_above_idle_per_call(self) -> float | None:
        """``joules_above_idle`` over ``calls``."""
        return _ratio(self.joules_above_idle, self.calls)

    @property
    def seconds_per_call(self) -> float | None:
        """``seconds`` over ``calls``."""
        return _ratio(self.seconds, self.calls)

    @property
    def disagreement(self) -> float | None:
        """(integral - counter) / counter of the sums; None where one of them is."""
        return _disagreement(self.joules_counter, self.joules_integrated)

    @property
    def disagrees(self) -> bool:
        """Whether counter and integral differ by more than 10% of the counter, on any device."""
        return any(abs(each.disagreement or 0) > DISAGREEMENT for each in self.devices)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures worth less, of every device."""
        return tuple(warning for each in self.devices for warning in each.warnings)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record; samples as columns, without those in which nothing was read."""
        names = (
            *("name", "seconds", "calls", "joules", "joules_counter", "joules_integrated"),
            *("idle_watts", "joules_above_idle", "watts", "seconds_per_call", "joules_per_call"),
            *("joules_above_idle_per_call", "disagreement", "disagrees", "warnings"),
        )
        record = {name: getattr(self, name) for name in names}
        record["warnings"] = list(self.warnings)
        record["devices"] = [_device_record(each) for each in self.devices]
        return record


def _device_record(device: DeviceMeasurement) -> dict[str, Any]:
    record = asdict(device)
    for name in ("joules", "joules_above_idle", "disagreement"):
        record[name] = getattr(device, name)
    rows = record.pop("samples")
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    record["samples"] = {
        name: column for name, column in columns.items() if any(v is not None for v in column)
    }
    return record


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else math.fsum(v for v in known if v is not None)


def _ratio(value: float | None, count: float | None) -> float | None:
    return None if value is None or count is None else value / count


def _above_idle(joules: float | None, idle: float | None, seconds: float) -> float | None:
    return None if joules is None or idle is None else joules - idle * seconds


def _disagreement(counter: float | None, integrated: float | None) -> float | None:
    return None if counter is None or integrated is None else (integrated - counter) / counter


# --- the meter ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """An open window: when it began, each sensor's counter then, and its first sample's index."""

    start: float
    counters: list[float | None]
    first: int


class Meter:
    """Measures the energy of windows of time; see the module's picture.

    Args:
        device: ``cuda:1`` or 1, torch's GPU by this index; ``cuda``, its current one; ``cpu``, the
            packages and their memory; a list of these; or ``auto``, the current GPU where torch has
            one and the CPU otherwise.
        idle_watts: what the device draws without the work, if it is known already; a list where
            there are several, in the order of ``devices``.
        interval: seconds between samples of power, 0.01 to 1.

    As a context manager it measures the block, as the window ``block``, into ``measurement``; an
    exception ends sampling and leaves no measurement. ``begin`` and ``end`` also work outside of a
    ``with``; then ``close`` ends sampling where ``end`` is not reached.

    Attributes:
        devices: what is metered, one name a GPU or RAPL domain.

    Raises:
        NoMeter: the device cannot be metered here; the message says what is missing.
        ValueError: no such device, or an argument that is not allowed.
    """

    def __init__(
        self,
        device: Device | Sequence[Device] = "auto",
        *,
        idle_watts: float | Sequence[float] | None = None,
        interval: float = 0.02,
    ) -> None:
        if not 0.01 <= interval <= 1:
            raise ValueError(f"interval: got {interval!r}, allowed: 0.01 to 1 (seconds)")
        self._sensors = sensors(device)
        self.devices = tuple(sensor.device for sensor in self._sensors)
        self._idle = self._given(idle_watts)
        self._interval = interval
        self._windows: dict[str, _Window] = {}
        self._samples: list[list[Sample]] = [[] for _ in self._sensors]
        self._full_at = 0.0
        self._measurement: Measurement | None = None
        # Sensors and samples are shared by the caller and the sampling thread.
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None

    @property
    def idle_watts(self) -> float | None:
        """Power without the work, of all devices; None if it was not measured and not given."""
        return _sum(self._idle)

    @property
    def measurement(self) -> Measurement:
        """The window that was closed last.

        Raises:
            RuntimeError: none was.
        """
        if self._measurement is None:
            raise RuntimeError("measurement: no window was closed yet")
        return self._measurement

    def __enter__(self) -> Meter:
        self._measurement = None
        self.begin("block")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.end("block")
        finally:
            self.close()

    def begin(self, name: str) -> None:
        """Open a window, once the devices have done what they were given.

        Raises:
            ValueError: a window by this name is open.
        """
        if name in self._windows:
            raise ValueError(f"name: a window {name!r} is open; end it first")
        self._synchronize()
        self._sample(full=True)
        with self._lock:
            first = len(self._samples[0]) - 1
            counters = [sensor.joules() for sensor in self._sensors]
            self._windows[name] = _Window(clock.now(), counters, first)
        if self._stop is None:
            self._stop = clock.every(self._interval, self._sample)

    def end(self, name: str) -> Measurement:
        """Close a window, once the devices have done what they were given.

        Raises:
            ValueError: no window by this name is open.
        """
        if name not in self._windows:
            there = ", ".join(map(repr, self._windows)) or "none"
            raise ValueError(f"name: got {name!r}, allowed: an open window; there are {there}")
        self._synchronize()
        with self._lock:
            stop = clock.now()
            counters = [sensor.joules() for sensor in self._sensors]
        self._sample(full=True)
        window = self._windows.pop(name)
        seconds = stop - window.start
        with self._lock:
            devices = tuple(
                _measured(
                    sensor,
                    window,
                    i,
                    seconds,
                    counters[i],
                    self._samples[i][window.first :],
                    self._idle[i],
                    self._interval,
                )
                for i, sensor in enumerate(self._sensors)
            )
        if not self._windows:
            self.close()
        self._measurement = Measurement(name, seconds, devices)
        return self._measurement

    def close(self) -> None:
        """End sampling and forget open windows. The meter can be used again."""
        self._windows.clear()
        if self._stop is not None:
            self._stop()
            self._stop = None
        for samples in self._samples:
            samples.clear()

    def measure_idle(self, seconds: float = MIN_SECONDS) -> float | None:
        """Measure for this long what the devices draw now, and subtract it from here on.

        Nothing may run on them meanwhile. A GPU that has just worked stays at high clocks for
        seconds: measure idle power first, or let it rest. (Waiting for a GPU makes its CUDA
        context, so that the power of an open context counts as idle.)

        Returns:
            Watts of all devices together; ``measurement`` holds the window.
        """
        _check_seconds(seconds)
        with self._open("idle"):
            clock.sleep(seconds)
            idle = self.end("idle")
        self._idle = [_ratio(each.joules, each.seconds) for each in idle.devices]
        return self.idle_watts

    def measure(
        self, fn: Callable[[], object], *, seconds: float = MIN_SECONDS, warmup: int = 3
    ) -> Measurement:
        """Repeat ``fn`` back to back for at least ``seconds``.

        The number of calls is computed from a short run before the window, so that the device is
        waited for once or twice in a window and not after every call: ``fn`` may be the replay of a
        CUDA graph.

        Args:
            fn: what to measure, without arguments.
            seconds: least length of the window.
            warmup: calls before anything is timed.

        Returns:
            The measurement, with ``calls``.
        """
        _check_seconds(seconds)
        if type(warmup) is not int or warmup < 0:
            raise ValueError(f"warmup: got {warmup!r}, allowed: an integer, 0 or more")
        for _ in range(warmup):
            fn()
        pace = self._pace(fn, seconds / 20)
        calls = 0
        with self._open("measure"):
            stop = clock.now() + seconds
            while (left := stop - clock.now()) > 0:
                more = max(1, math.ceil(1.02 * left * pace))
                for _ in range(more):
                    fn()
                self._synchronize()
                calls += more
            self._measurement = replace(self.end("measure"), calls=calls)
        return self._measurement

    # --- how ----------------------------------------------------------------------------------

    def _given(self, idle_watts: float | Sequence[float] | None) -> list[float | None]:
        if idle_watts is None:
            return [None] * len(self._sensors)
        watts = list(idle_watts) if isinstance(idle_watts, Sequence) else [idle_watts]
        if len(watts) != len(self._sensors) or not all(0 <= each < math.inf for each in watts):
            raise ValueError(
                f"idle_watts: got {idle_watts!r}, allowed: a finite number, 0 or more, for each of "
                f"{', '.join(self.devices)}"
            )
        return [float(each) for each in watts]

    def _pace(self, fn: Callable[[], object], seconds: float) -> float:
        """Calls a second, from runs that double until one takes this long."""
        calls = 1
        while True:
            self._synchronize()
            start = clock.now()
            for _ in range(calls):
                fn()
            self._synchronize()
            taken = clock.now() - start
            if taken >= seconds:
                return calls / taken
            calls *= 2

    def _synchronize(self) -> None:
        for sensor in self._sensors:
            sensor.synchronize()

    def _sample(self, full: bool = False) -> None:
        with self._lock:
            full = full or clock.now() - self._full_at >= _FULL_EVERY
            if full:
                self._full_at = clock.now()
            for sensor, samples in zip(self._sensors, self._samples, strict=True):
                samples.append(sensor.sample(full))

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[None]:
        """Begin a window that the block ends, or that an exception makes forgotten."""
        self.begin(name)
        try:
            yield
        except BaseException:
            self._windows.pop(name, None)
            if not self._windows:
                self.close()
            raise


def measure(
    fn: Callable[[], object],
    *,
    device: Device | Sequence[Device] = "auto",
    seconds: float = MIN_SECONDS,
    warmup: int = 3,
) -> Measurement:
    """``Meter(device).measure(fn)``: energy, time and number of calls of ``fn``, repeated."""
    return Meter(device).measure(fn, seconds=seconds, warmup=warmup)


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: got {seconds!r}, allowed: a finite number above 0")


def _measured(
    sensor: Sensor,
    window: _Window,
    index: int,
    seconds: float,
    counter: float | None,
    samples: Sequence[Sample],
    idle_watts: float | None,
    interval: float,
) -> DeviceMeasurement:
    """One sensor's window, from its counter at the end and its samples since before the start."""
    samples = [replace(s, seconds=s.seconds - window.start) for s in samples]
    inside = [s for s in samples if 0 <= s.seconds <= seconds]
    warnings = list(sensor.notes)
    if seconds < MIN_SECONDS:
        warnings.append(f"the window is {seconds:.3g} s long, reliable: {MIN_SECONDS:g} s or more")
    counted = _counted(window.counters[index], counter, sensor, warnings)
    integrated = _integrated(samples, seconds, sensor, warnings)
    times = [s.seconds for s in samples if s.watts is not None or sensor.power is None]
    gap = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    if gap > _GAP * interval:
        warnings.append(f"no sample for {gap:.3g} s, wanted: every {interval:.3g} s")
    reasons = tuple(sorted({reason for s in inside for reason in s.reasons or ()}))
    throttles = [reason for reason in reasons if reason in THROTTLES]
    if throttles:
        warnings.append(f"was throttled: {', '.join(throttles)}")
    measured = DeviceMeasurement(
        device=sensor.device,
        name=sensor.name,
        driver=sensor.driver,
        seconds=seconds,
        joules_counter=counted,
        joules_integrated=integrated,
        power=sensor.power,
        idle_watts=idle_watts,
        power_limit=sensor.power_limit,
        temperature=_temperature([s.celsius for s in samples if s.celsius is not None]),
        sm_mhz=_spread([s.sm_mhz for s in inside if s.sm_mhz is not None]),
        memory_mhz=_spread([s.memory_mhz for s in inside if s.memory_mhz is not None]),
        reasons=reasons,
        samples=tuple(samples),
        warnings=(),
    )
    if abs(measured.disagreement or 0) > DISAGREEMENT:
        warnings.append(f"integrated power is {measured.disagreement:+.0%} off the counter")
    return replace(measured, warnings=tuple(f"{sensor.device}: {text}" for text in warnings))


def _counted(
    old: float | None, new: float | None, sensor: Sensor, warnings: list[str]
) -> float | None:
    """The counter's difference; None where it was not read or did not go forward."""
    if old is None or new is None:
        if sensor.counts:
            warnings.append("the energy counter could not be read at both ends of the window")
        return None
    if new > old:
        return new - old
    if new == old:
        warnings.append("the energy counter did not advance")
    else:
        warnings.append("the energy counter went back: was the driver reloaded?")
    return None


def _integrated(
    samples: Sequence[Sample], seconds: float, sensor: Sensor, warnings: list[str]
) -> float | None:
    """Area under straight lines between the samples, cut at the window's ends."""
    if sensor.power is None:
        return None
    curve = np.array([(s.seconds, s.watts) for s in samples if s.watts is not None]).reshape(-1, 2)
    lost = len(samples) - len(curve)
    if lost:
        warnings.append(f"power could not be read {lost} times of {len(samples)}")
    times, watts = curve.T
    if not len(curve) or times[0] > 0 or times[-1] < seconds:
        warnings.append("power could not be read at both ends of the window")
        return None
    cut = np.concatenate([[0.0], times[(times > 0) & (times < seconds)], [seconds]])
    level = np.interp(cut, times, watts)
    return float((np.diff(cut) * (level[1:] + level[:-1]) / 2).sum())


def _spread(values: list[float]) -> Spread | None:
    return Spread(min(values), statistics.fmean(values), max(values)) if values else None


def _temperature(values: list[float]) -> Temperature | None:
    return Temperature(values[0], values[-1], max(values)) if values else None


# --- what is here ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Availability:
    """Whether a device can be metered here.

    Attributes:
        device: as ``Meter`` takes it.
        metered: whether ``Meter(device)`` works.
        what: what is read of it, or why it cannot be metered.
    """

    device: str
    metered: bool
    what: str


def available() -> list[Availability]:
    """Every GPU that torch sees, and the CPU: what can be metered here, and why not."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = []
    for device in [*(f"cuda:{i}" for i in range(count)), *([] if count else ["cuda"]), "cpu"]:
        try:
            what = "; ".join(map(_describe, sensors(device)))
        except NoMeter as error:
            found.append(Availability(device, False, str(error)))
        else:
            found.append(Availability(device, True, what))
    return found


def _describe(sensor: Sensor) -> str:
    read = ["energy counter"] * sensor.counts + [f"{sensor.power} power"] * bool(sensor.power)
    return ", ".join([f"{sensor.device} ({sensor.name}): {' and '.join(read)}", *sensor.notes])


# --- operating points -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """One operating point, and the measurements behind its latency and joules.

    Attributes:
        point: with ``latency_ms`` and ``joules`` filled in.
        latencies_ms: of single batches, raw.
        measurement: calls are batches; None without a meter.
    """

    point: OperatingPoint
    latencies_ms: tuple[float, ...]
    measurement: Measurement | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {
            "point": self.point.to_dict(),
            "latencies_ms": list(self.latencies_ms),
            "measurement": None if self.measurement is None else self.measurement.to_dict(),
        }


@overload
def profile(
    net: DrowsyNet,
    images: Tensor,
    points: Frontier,
    *,
    meter: Meter | None,
    seconds: float = ...,
    forward: Callable[[Tensor], object] | None = ...,
    each: Callable[[Profile], object] | None = ...,
) -> Frontier: ...


@overload
def profile(
    net: DrowsyNet,
    images: Tensor,
    points: Iterable[OperatingPoint | Schedule],
    *,
    meter: Meter | None,
    seconds: float = ...,
    forward: Callable[[Tensor], object] | None = ...,
    each: Callable[[Profile], object] | None = ...,
) -> list[OperatingPoint]: ...


def profile(
    net: DrowsyNet,
    images: Tensor,
    points: Frontier | Iterable[OperatingPoint | Schedule],
    *,
    meter: Meter | None,
    seconds: float = MIN_SECONDS,
    forward: Callable[[Tensor], object] | None = None,
    each: Callable[[Profile], object] | None = None,
) -> Frontier | list[OperatingPoint]:
    """Measure latency and energy of operating points, so that the knob can be turned by them.

        meter = Meter(0)
        meter.measure_idle()
        frontier = profile(net, images, frontier, meter=meter)
        net.set(frontier.at(joules=0.2))

    Args:
        net: the network, in the place, dtype and memory format in which it will run. Its setting is
            restored.
        images: float ``[N, C, H, W]``, real ones: one batch of the size that will run.
        points: a frontier, or operating points or schedules.
        meter: of the device that the network runs on; None measures latency only and leaves
            ``joules`` None (where there is no meter, ``Meter`` says why).
        seconds: least time for the energy of one point; its latency takes up to a second more.
        forward: what is run, by default ``net``: a compiled or captured form of it that follows
            ``net.set``.
        each: called with the ``Profile`` of every point as soon as it is measured.

    Returns:
        A frontier for a frontier, otherwise the points in their order: ``latency_ms`` is the median
        over batches (between CUDA events, or wall time on the CPU), ``joules`` the energy of a
        batch over its images, idle power included.
    """
    check_images(images)
    _check_seconds(seconds)
    where = str(images.device)
    if meter is not None and not any(f"{each}:".startswith(f"{where}:") for each in meter.devices):
        raise ValueError(
            f"meter: got one of {', '.join(meter.devices)}, allowed: one of {where}, where the "
            "images are"
        )
    run = net if forward is None else forward
    restored, done = net.schedule, []
    try:
        with torch.inference_mode():
            for point in _points(net, images, points):
                net.set(point)
                done.append(_profile(point, lambda: run(images), images, meter, seconds))
                if each is not None:
                    each(done[-1])
    finally:
        net.set(restored)
    measured = [one.point for one in done]
    if isinstance(points, Frontier):
        return Frontier(measured, points.objective, points.cost)
    return measured


def measured_gains(
    net: DrowsyNet,
    images: Tensor,
    cost: str,
    *,
    meter: Meter | None = None,
    forward: Callable[[Tensor], object] | None = None,
) -> np.ndarray:
    """What each layer alone saves, measured: how a search sees latency or joules.

    Args:
        net, images, forward: as for ``profile``.
        cost: ``latency`` or ``joules``.
        meter: for joules.

    Returns:
        float64 ``[layers, k]``: fraction of the whole network's cost that a layer saves at rates
        ``0 .. (k-1)/k`` while the others are awake; below 0 where its sleep costs more than it
        saves.
    """
    k, own = net.k, net.schedule
    schedules = [Schedule(k, {n: replace(s, rate=Fraction(0)) for n, s in own.layers.items()})]
    for name, setting in own.layers.items():
        schedules += [
            Schedule(k, {**schedules[0].layers, name: replace(setting, rate=Fraction(j, k))})
            for j in range(1, k)
        ]
    seconds = MIN_SECONDS if cost == "joules" else _GAIN_SECONDS
    points = profile(net, images, schedules, meter=meter, seconds=seconds, forward=forward)
    awake, *alone = [-spared(point, cost) for point in points]
    table = 1 - np.array(alone).reshape(len(own.layers), k - 1) / awake
    return np.pad(table, ((0, 0), (1, 0)))


def profile_table(profiles: Iterable[Profile], images: int) -> str:
    """Saving, latency (median and quartiles of batches of ``images``) and joules of each point, as
    aligned text."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    names = ("saving", "latency ms", "quartiles", "J/image", "above idle", "integral - counter")
    rows = [names]
    for one in profiles:
        taken = one.measurement
        low, _, high = statistics.quantiles(one.latencies_ms, n=4)
        above = None if taken is None else _ratio(taken.joules_above_idle_per_call, images)
        rows.append(
            (
                f"{one.point.saving:.1%}",
                cell(one.point.latency_ms, ".3f"),
                f"{low:.3f} - {high:.3f}",
                cell(one.point.joules, ".4g"),
                cell(above, ".4g"),
                cell(None if taken is None else taken.disagreement, "+.1%"),
            )
        )
    return align(rows)


def _points(
    net: DrowsyNet, images: Tensor, points: Frontier | Iterable[OperatingPoint | Schedule]
) -> list[OperatingPoint]:
    if isinstance(points, Frontier):
        # Rate 0 need not be an optimal point; losses count from it all the same.
        awake = points.reference
        extra = [] if awake is None or awake in points.points else [awake]
        points = [*extra, *points.points]
    shares = layer_shares(layer_costs(net, images.shape[1:]))
    found = []
    for point in points:
        if isinstance(point, Schedule):
            rates = {name: layer.rate for name, layer in point.layers.items()}
            point = OperatingPoint(point, saving(rates, shares))
        if not isinstance(point, OperatingPoint):
            raise TypeError(
                f"points: got {point!r}, allowed: a Frontier, or OperatingPoints or Schedules"
            )
        found.append(point)
    if not found:
        raise ValueError("points: got none, allowed: one or more")
    return found


def _profile(
    point: OperatingPoint,
    run: Callable[[], object],
    images: Tensor,
    meter: Meter | None,
    seconds: float,
) -> Profile:
    latencies = _latencies(run, min(seconds, 1.0), images.is_cuda)
    measurement = None if meter is None else meter.measure(run, seconds=seconds)
    joules = None if measurement is None else _ratio(measurement.joules_per_call, len(images))
    point = replace(point, latency_ms=statistics.median(latencies), joules=joules)
    return Profile(point, tuple(latencies), measurement)


def _latencies(run: Callable[[], object], seconds: float, cuda: bool) -> list[float]:
    """Milliseconds of single calls: five at least, more until this time is over."""
    for _ in range(3):
        run()
    found: list[float] = []
    stop = clock.now() + seconds
    while not found or clock.now() < stop:
        found += _event_times(run) if cuda else _wall_times(run)
    return found


def _wall_times(run: Callable[[], object], calls: int = 5) -> list[float]:
    times = [clock.now()]
    for _ in range(calls):
        run()
        times.append(clock.now())
    return [1e3 * (b - a) for a, b in itertools.pairwise(times)]


def _event_times(run: Callable[[], object], calls: int = 5) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
