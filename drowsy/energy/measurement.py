"""The measurement of a window: joules, and what qualifies them. Values; nothing is read here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from drowsy.sensors.sensor import NoMeter, Sample

MIN_SECONDS = 5.0  # a step of the counter is 2% of such a window, or less
MOST_SECONDS = 1_000_000  # eleven days; what asks for more does not mean it
DISAGREEMENT = 0.10  # of counter and integral; beyond it they are flagged


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
        return total(each.joules for each in self.devices)

    @property
    def joules_counter(self) -> float | None:
        """Sum of the counters; None if a device has none."""
        return total(each.joules_counter for each in self.devices)

    @property
    def joules_integrated(self) -> float | None:
        """Sum of the integrals; None if a device has none."""
        return total(each.joules_integrated for each in self.devices)

    @property
    def idle_watts(self) -> float | None:
        """Sum of the idle powers; None if one is not known."""
        return total(each.idle_watts for each in self.devices)

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
        return ratio(self.joules, self.calls)

    def known_per_call(self) -> float:
        """``joules_per_call``, for what cannot go on without.

        Raises:
            NoMeter: no joules were told, or none above 0; says why.
        """
        joules = self.joules_per_call
        if joules is None or joules <= 0:
            silent = [each for each in self.devices if not each.joules] or self.devices
            told = ", ".join(f"{each.device} ({each.name})" for each in silent)
            why = "; ".join(dict.fromkeys(self.warnings)) or f"it told {joules} J a call"
            raise NoMeter(f"{told} metered no energy in {self.seconds:.3g} s: {why}")
        return joules

    @property
    def joules_above_idle_per_call(self) -> float | None:
        """``joules_above_idle`` over ``calls``."""
        return ratio(self.joules_above_idle, self.calls)

    @property
    def seconds_per_call(self) -> float | None:
        """``seconds`` over ``calls``."""
        return ratio(self.seconds, self.calls)

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


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None if a value is not known."""
    known = list(values)
    return None if None in known else math.fsum(v for v in known if v is not None)


def ratio(value: float | None, count: float | None) -> float | None:
    """None if one of them is not known."""
    return None if value is None or count is None else value / count


def _above_idle(joules: float | None, idle: float | None, seconds: float) -> float | None:
    return None if joules is None or idle is None else joules - idle * seconds


def _disagreement(counter: float | None, integrated: float | None) -> float | None:
    return None if counter is None or integrated is None else (integrated - counter) / counter
