"""What a sensor is, what it tells at one moment, and the clock by which it is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# No GPU board and no CPU package draws more; what would mean more is a fault and not a measurement.
MOST_WATTS = 5000.0


class NoMeter(RuntimeError):
    """Energy cannot be measured: what was looked for, what is missing, and how to get it."""


class Unread(Exception):
    """A sensor tells no number, or one that cannot be true; the message says which and why."""


class Clock:
    """The time; one place, so that tests can put theirs here."""

    now = staticmethod(time.perf_counter)
    sleep = staticmethod(time.sleep)

    @staticmethod
    def every(seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        """Call again and again from a thread, this long after the last call returned.

        Returns:
            What ends it, and waits for a call that is under way.
        """
        stopped = threading.Event()

        def run() -> None:
            while not stopped.wait(seconds):
                call()

        def stop() -> None:
            stopped.set()
            thread.join()

        thread = threading.Thread(target=run, name="drowsy-energy", daemon=True)
        thread.start()
        return stop


clock = Clock()


@dataclass(frozen=True)
class Count:
    """An energy counter at one moment.

    Attributes:
        joules: since some moment in the past; None where it could not be read.
        run: how often the count has begun anew. Only counts of one run have a difference.
        why: why it could not be read, or else why this run began; empty in the first.
    """

    joules: float | None
    run: int = 0
    why: str = ""


@dataclass(frozen=True)
class Sample:
    """What a sensor told at one moment. None: cannot be read, or was not read this time.

    Attributes:
        seconds: when; since the window's start in a measurement.
        watts: power.
        joules: the counter since some moment in the past (RAPL only, which has no watts); where
            it becomes less, the count began anew.
        celsius: temperature.
        sm_mhz, memory_mhz: clocks.
        reasons: what holds the clocks, by nvidia-smi's names.
    """

    seconds: float
    watts: float | None = None
    joules: float | None = None
    celsius: float | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    reasons: tuple[str, ...] | None = None


class Sensor(Protocol):
    """One GPU or one RAPL domain.

    Attributes:
        device: ``cuda:0`` or ``cpu:package-0``.
        name: the product's, or the domain's.
        driver: version of what is asked, or None.
        counts: whether there is an energy counter.
        power: what the watts are: ``instant``, ``usage`` (NVML's, often an average over the last
            second), or None where there are none.
        power_limit: watts, or None.
        notes: what a reader of the numbers must know: what cannot be read, and why.
    """

    device: str
    name: str
    driver: str | None
    counts: bool
    power: str | None
    power_limit: float | None
    notes: tuple[str, ...]

    def count(self) -> Count:
        """The energy counter now."""

    def sample(self, full: bool) -> Sample:
        """What is told now; ``full`` also reads temperature, clocks and their reasons."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
