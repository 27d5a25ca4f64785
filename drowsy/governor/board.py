"""What governors of one device have in common: its sensors' readings, and who draws how much.

A device has one ``Board`` in a process. A thread reads its sensors, outside of any decision.

**Sharing watts.** A board's power and temperature are of all that runs on it. Each governor tells
what its own work is expected to draw, and takes the sum for what the sensor reads: so that a change
by one is foreseen by the others, and not taken for foreign load. What foreign load leaves is shared
as the governors would draw at their most accurate points. A governor may use what others leave of
their shares, and comes down as soon as they want it. Governors in other processes are foreign load:
all come down together, and go up in steps and again when what they did has been seen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from drowsy.sensors import Device, NoMeter, Sensor, Unread, clock, cpu_thermometer, sensors
from drowsy.sensors.thermometer import SYS

INTERVAL = 0.2  # seconds between readings
_KEPT = 256  # readings, for governors that are seldom called
_FORGOTTEN = 3.0  # seconds after which a governor that was not called draws nothing
# What NVML's watts look back on: a moment, or a second (``NvmlGpu``).
_LOOKS_BACK = {"instant": 0.1, "usage": 1.0}


@dataclass(frozen=True)
class Reading:
    """What a device told. None: not read, or it could not be.

    Args:
        at: seconds.
        since: when what the watts are the mean of began.
        watts: of the device.
        celsius: of the device.
        why: what could not be read, and why.
    """

    at: float
    since: float
    watts: float | None = None
    celsius: float | None = None
    why: str = ""


@dataclass(frozen=True)
class _Draw:
    """What a governor's work is expected to draw.

    Args:
        watts: at the present point.
        awake: at its most accurate one.
        at: seconds, when it said so.
    """

    watts: float
    awake: float
    at: float


class Board:
    """A device's readings and its governors.

    Args:
        name: of the device.
        read: tells a reading; what it raises is a reading of nothing.
        tells: of ``watts`` and ``celsius`` those that it can tell.
        now: the clock of its readings and governors, in seconds.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Reading],
        tells: tuple[str, ...] = ("watts", "celsius"),
        now: Callable[[], float] = clock.now,
    ) -> None:
        self.name, self.tells, self._read, self._now = name, tells, read, now
        self.changed_at = float("-inf")  # when a governor last changed what is drawn
        self._readings: deque[tuple[int, Reading]] = deque(maxlen=_KEPT)
        self.newest = 0  # number of the last reading; they count from 1
        self._governors: WeakSet[object] = WeakSet()
        self._draws: WeakKeyDictionary[object, _Draw] = WeakKeyDictionary()
        self._stop: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def sample(self) -> None:
        """Read the sensors once; never raises."""
        try:
            reading = self._read()
        except Exception as error:
            now = self._now()
            reading = Reading(now, now, why=f"{type(error).__name__}: {error}")
        number = self.newest + 1
        self._readings.append((number, reading))
        self.newest = number

    def after(self, last: int) -> list[tuple[int, Reading]]:
        """Readings later than number ``last``, each with its number."""
        if self.newest <= last:
            return []
        return [each for each in list(self._readings) if each[0] > last]

    def tell(self, governor: object, watts: float, awake: float, now: float) -> None:
        """A governor says what its work is expected to draw, now and at its most accurate point."""
        self._draws[governor] = _Draw(watts, awake, now)

    def others(self, governor: object, now: float) -> tuple[float, float]:
        """Watts that the other governors are expected to draw, now and at the most."""
        if len(self._draws) < 2:
            return 0.0, 0.0
        others = [
            draw
            for other, draw in list(self._draws.items())
            if other is not governor and now - draw.at < _FORGOTTEN
        ]
        return sum(draw.watts for draw in others), sum(draw.awake for draw in others)

    def start(self) -> None:
        """Have a thread read the sensors from now on."""
        with self._lock:
            if self._stop is None:
                self.sample()
                self._stop = clock.every(INTERVAL, self.sample)

    def join(self, governor: object) -> None:
        """A governor uses the board."""
        self._governors.add(governor)

    def leave(self, governor: object) -> None:
        """A governor is done; with the last one the thread ends."""
        with self._lock:
            self._governors.discard(governor)
            self._draws.pop(governor, None)
            if not self._governors and self._stop is not None:
                self._stop()
                self._stop = None


_BOARDS: WeakValueDictionary[str, Board] = WeakValueDictionary()


def board_of(device: Device, wanted: set[str], root: str | Path = SYS) -> Board:
    """The board of a device in this process, read by a thread.

    Args:
        wanted: of ``watts`` and ``celsius`` those that must be told.
        root: where Linux tells temperatures.

    Raises:
        NoMeter: what is wanted cannot be read here.
        ValueError: no such device.
    """
    found, why = [], ""
    try:
        found = sensors(device)
        where = found[0].device.partition(":")[0]
    except NoMeter as error:
        if "watts" in wanted or str(device).startswith("cuda"):
            raise
        where, why = "cpu", str(error)
    name = found[0].device if where == "cuda" else "cpu"
    if (board := _BOARDS.get(name)) and wanted <= set(board.tells):
        board.start()  # the last governor may have left
        return board
    thermometer = None
    if where == "cpu":
        try:
            thermometer = cpu_thermometer(root)
        except NoMeter:
            if "celsius" in wanted:
                raise
    told = where == "cuda" or thermometer is not None
    tells = ("watts",) * bool(found) + ("celsius",) * told
    celsius = thermometer.celsius if thermometer else None
    board = Board(name, Reader(found, celsius, why), tells)
    board.start()
    _BOARDS[name] = board
    return board


class Reader:
    """Reads the sensors of one device.

    Args:
        metered: what tells its watts or counts its joules, which are added up.
        celsius: reads its temperature; None: the first sensor tells it, if any does.
        why: why nothing is metered.
    """

    def __init__(
        self, metered: list[Sensor], celsius: Callable[[], float] | None = None, why: str = ""
    ) -> None:
        self._metered, self._celsius, self._why = metered, celsius, why
        self._counted: list[tuple[float | None, int]] | None = None
        self._at = clock.now()

    def __call__(self) -> Reading:
        before, self._at = self._at, clock.now()
        power = [sensor for sensor in self._metered if sensor.power]
        if power:
            samples = [sensor.sample(full=True) for sensor in power]
            watts = _sum([sample.watts for sample in samples])
            since = self._at - max(_LOOKS_BACK[str(sensor.power)] for sensor in power)
            celsius, why = samples[0].celsius, ""
        else:
            watts, why = self._from_counters(self._at - before)
            since, celsius = before, None
        if self._celsius is not None:
            try:
                celsius = self._celsius()
            except Unread as error:
                why = f"{why}; {error}".lstrip("; ")
        return Reading(self._at, since, watts, celsius, why)

    def _from_counters(self, seconds: float) -> tuple[float | None, str]:
        """The mean power since the last reading."""
        if not self._metered:
            return None, self._why
        counts = [sensor.count() for sensor in self._metered]
        last, self._counted = self._counted, [(each.joules, each.run) for each in counts]
        why = next((each.why for each in counts if each.joules is None), "")
        if last is None or seconds <= 0:
            return None, why
        parts = []
        for (then, run), (now, of) in zip(last, self._counted, strict=True):
            same = then is not None and now is not None and run == of
            parts.append((now - then) / seconds if same else None)  # type: ignore[operator]
            if run != of:
                why = "the counter began anew"
        return _sum(parts), why


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None
