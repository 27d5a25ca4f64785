"""One sensor over time: the samples of it that are kept, and what they tell of a window.

A meter has a track for every sensor, and a window a ``Part`` of every track: nothing here knows of
the other sensors.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from drowsy.energy.measurement import (
    DISAGREEMENT,
    MIN_SECONDS,
    DeviceMeasurement,
    Spread,
    Temperature,
)
from drowsy.sensors.nvml import THROTTLES
from drowsy.sensors.sensor import Sample, Sensor

_GAP = 10  # sampling intervals without a sample that are told as a gap


class Track:
    """A sensor with its samples since the first window that is still open.

    Attributes:
        sensor: what is sampled.
        idle_watts: its power without the work; None if it was not measured and not given.
        samples: what was read, in the order of time; ``seconds`` are the clock's.
    """

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.idle_watts: float | None = None
        self.samples: list[Sample] = []

    def sample(self, full: bool) -> None:
        """Add what the sensor tells now; ``full`` also reads what changes slowly."""
        self.samples.append(self.sensor.sample(full))


class Part:
    """One track in one window: the counter at both ends, and the samples from the last one before
    the start on. It begins when it is made, right after a sample."""

    def __init__(self, track: Track) -> None:
        self._track = track
        self._first = len(track.samples) - 1
        self._old = self._new = track.sensor.count()

    def end(self) -> None:
        """Read the counter; a last sample must follow."""
        self._new = self._track.sensor.count()

    def measurement(self, start: float, seconds: float, interval: float) -> DeviceMeasurement:
        """What was measured in the window that began at ``start`` and took ``seconds``, sampled
        every ``interval``."""
        sensor = self._track.sensor
        samples = [
            replace(each, seconds=each.seconds - start)
            for each in self._track.samples[self._first :]
        ]
        inside = [each for each in samples if 0 <= each.seconds <= seconds]
        warnings = list(sensor.notes)
        if seconds < MIN_SECONDS:
            warnings.append(
                f"the window is {seconds:.3g} s long, reliable: {MIN_SECONDS:g} s or more"
            )
        counted = self._counted(warnings)
        integrated = _integrated(samples, seconds, sensor, warnings)
        _tell_gaps(samples, sensor, interval, warnings)
        reasons = tuple(sorted({reason for each in inside for reason in each.reasons or ()}))
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
            idle_watts=self._track.idle_watts,
            power_limit=sensor.power_limit,
            temperature=_temperature(samples),
            sm_mhz=_spread([each.sm_mhz for each in inside]),
            memory_mhz=_spread([each.memory_mhz for each in inside]),
            reasons=reasons,
            samples=tuple(samples),
            warnings=(),
        )
        if abs(measured.disagreement or 0) > DISAGREEMENT:
            warnings.append(f"integrated power is {measured.disagreement:+.0%} off the counter")
        return replace(measured, warnings=tuple(f"{sensor.device}: {text}" for text in warnings))

    def _counted(self, warnings: list[str]) -> float | None:
        """The counter's difference; None where it was not read, was not followed or stood still."""
        old, new = self._old, self._new
        if not self._track.sensor.counts:
            return None
        if old.joules is None or new.joules is None:
            why = old.why if old.joules is None else new.why
            warnings.append(
                f"the energy counter could not be read at both ends of the window: {why}"
            )
        elif old.run != new.run:
            warnings.append(f"the energy counter {new.why}")
        elif old.joules == new.joules:
            warnings.append("the energy counter did not advance")
        else:
            return new.joules - old.joules
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


def _tell_gaps(
    samples: Sequence[Sample], sensor: Sensor, interval: float, warnings: list[str]
) -> None:
    times = [s.seconds for s in samples if s.watts is not None or sensor.power is None]
    gap = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    if gap > _GAP * interval:
        warnings.append(f"no sample for {gap:.3g} s, wanted: every {interval:.3g} s")


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(min(known), statistics.fmean(known), max(known)) if known else None


def _temperature(samples: Sequence[Sample]) -> Temperature | None:
    known = [each.celsius for each in samples if each.celsius is not None]
    return Temperature(known[0], known[-1], max(known)) if known else None
