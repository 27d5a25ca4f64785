"""Opens windows and closes them; samples every sensor from a thread while one is open."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drowsy.energy.measurement import MIN_SECONDS, MOST_SECONDS, Measurement, ratio, total
from drowsy.energy.track import Part, Track
from drowsy.files.messages import quoted
from drowsy.sensors.devices import Device, sensors
from drowsy.sensors.sensor import NoMeter, Sensor, clock

_FULL_EVERY = 0.2  # seconds between readings of what changes slowly


@dataclass(frozen=True)
class _Window:
    """An open window: its part of every track, and when it began."""

    parts: list[Part]
    start: float


class Meter:
    """Measures the energy of windows of time; see the picture in ``drowsy.energy``.

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
        self._tracks = [Track(sensor) for sensor in sensors(device)]
        self.devices = tuple(track.sensor.device for track in self._tracks)
        if idle_watts is not None:
            self._take_idle(idle_watts)
        self._interval = interval
        self._windows: dict[str, _Window] = {}
        self._full_at = 0.0
        self._measurement: Measurement | None = None
        # Tracks are shared by the caller and the sampling thread.
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None

    @property
    def idle_watts(self) -> float | None:
        """Power without the work, of all devices; None if it was not measured and not given."""
        return total(track.idle_watts for track in self._tracks)

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
            parts = [Part(track) for track in self._tracks]
            self._windows[name] = _Window(parts, clock.now())
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
        window = self._windows[name]
        self._synchronize()
        with self._lock:
            stop = clock.now()
            for part in window.parts:
                part.end()
        self._sample(full=True)
        del self._windows[name]
        seconds = stop - window.start
        with self._lock:
            devices = tuple(
                part.measurement(window.start, seconds, self._interval) for part in window.parts
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
        for track in self._tracks:
            track.samples.clear()

    def measure_idle(self, seconds: float = MIN_SECONDS) -> float | None:
        """Measure for this long what the devices draw now, and subtract it from here on.

        Nothing may run on them meanwhile. A GPU that has just worked stays at high clocks for
        seconds: measure idle power first, or let it rest. (Waiting for a GPU makes its CUDA
        context, so that the power of an open context counts as idle.)

        Returns:
            Watts of all devices together; ``measurement`` holds the window.
        """
        check_seconds(seconds)
        with self._open("idle"):
            clock.sleep(seconds)
            idle = self.end("idle")
        for track, each in zip(self._tracks, idle.devices, strict=True):
            track.idle_watts = ratio(each.joules, each.seconds)
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
            seconds: least length of the window, up to a million.
            warmup: calls before anything is timed.

        Returns:
            The measurement, with ``calls``.
        """
        check_seconds(seconds)
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

    def _take_idle(self, idle_watts: float | Sequence[float]) -> None:
        given = list(idle_watts) if isinstance(idle_watts, Sequence) else [idle_watts]
        if len(given) != len(self._tracks) or not all(0 <= each < math.inf for each in given):
            raise ValueError(
                f"idle_watts: got {idle_watts!r}, allowed: a finite number, 0 or more, for each of "
                f"{', '.join(self.devices)}"
            )
        for track, watts in zip(self._tracks, given, strict=True):
            track.idle_watts = float(watts)

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
        for track in self._tracks:
            track.sensor.synchronize()

    def _sample(self, full: bool = False) -> None:
        with self._lock:
            full = full or clock.now() - self._full_at >= _FULL_EVERY
            if full:
                self._full_at = clock.now()
            for track in self._tracks:
                track.sample(full)

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


def check_seconds(seconds: Any) -> None:
    """Raise TypeError or ValueError unless something can be measured for so long."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float, np.integer, np.floating)):
        raise TypeError(f"seconds: got {seconds!r}, allowed: a number above 0")
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(
            f"seconds: got {quoted(seconds)}, allowed: a number above 0, up to {MOST_SECONDS}"
        )


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
