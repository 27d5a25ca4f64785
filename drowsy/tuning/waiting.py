"""Whether the machine was a process's own while it timed something, or others took its cores.

Linux counts for every thread how long it could have run and no core was free for it
(``/proc/self/task/*/schedstat``). Where threads wait for each other at the end of every layer, what
any of them waits is lost to all; on a machine that does nothing else it is next to nothing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from drowsy.tuning.journal import Journal

_TASKS = Path("/proc/self/task")
# Of the time that was timed: below this, milliseconds are what they are on a quiet machine.
BUSY = 0.1
# Threads that may wait at a time, and more.
_MOST = 1e5
# What its warning begins with.
SIGN = "a busy machine"
# What was timed meanwhile, and what to do.
_TOLD = {
    "measuring": (
        "points were measured",
        "their milliseconds are not to be trusted: measure again (knob.measure, drowsy bench)",
    ),
    "choosing": ("points were chosen", "tune may choose others"),
}


class Waiting:
    """How long the threads of this process waited for a core, of the seconds that blocks took.

        waiting = Waiting()
        with waiting.watched():
            ...

    Attributes:
        seconds: of all blocks.
        waited: seconds of all threads together in them; 0 where no system tells.
    """

    def __init__(self) -> None:
        self.seconds = self.waited = 0.0
        self._known: set[str] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch a block, and add what it finds."""
        start, before = time.perf_counter(), _waits()
        yield
        # A thread that has ended is no longer told of; one that has begun had not waited before.
        found = {name: each - before.get(name, 0.0) for name, each in _waits().items()}
        self.add(time.perf_counter() - start, sum(found.values()))

    def timed(self, journal: Journal, key: str, take: Callable[[], Any]) -> Any:
        """What a journal knows of a timing, or what is taken now; either is added, once a key."""

        def taken() -> Any:
            waiting = Waiting()
            with waiting.watched():
                found = take()
            journal.get(_waiting(key), lambda: (waiting.seconds, waiting.waited))
            return found

        found = journal.get(key, taken)
        if key not in self._known:
            self._known.add(key)
            self.add(*journal.get(_waiting(key), lambda: (0.0, 0.0)))
        return found

    def add(self, seconds: float, waited: float) -> None:
        """What was found elsewhere."""
        self.seconds += seconds
        self.waited += waited

    @property
    def share(self) -> float:
        """Seconds waited in every second; 0 where nothing was watched."""
        return round(self.waited / self.seconds, 3) if self.seconds else 0.0


def _waiting(key: str) -> str:
    return f"{key}: waiting"


def _waits() -> dict[str, float]:
    """Seconds that each thread has waited so far; none where the system does not tell."""
    found = {}
    for path in _TASKS.glob("*/schedstat"):
        # A thread may have ended meanwhile.
        with suppress(OSError, IndexError, ValueError):
            found[path.parent.name] = 1e-9 * int(path.read_text().split()[1])
    return found


def noted(made: Mapping[str, Any], **shares: float) -> dict[str, Any]:
    """What is told of a knob, and in it how long threads waited while it was measured or chosen."""
    return {**made, "waited": {**_noted(made), **shares}}


def busy(made: Mapping[str, Any], names: Iterable[str] = tuple(_TOLD)) -> list[str]:
    """A line for each of ``noted`` that was timed on a busy machine; none on a quiet one."""
    return [
        f"{SIGN}: while {_TOLD[name][0]}, threads waited {share:.2f} s for a core in every second; "
        f"{_TOLD[name][1]} on a quiet one, or with fewer threads"
        for name in names
        if (share := _noted(made).get(name, 0.0)) >= BUSY
    ]


def warn_if_busy(made: Mapping[str, Any], *names: str, stacklevel: int) -> None:
    """Warn of what was timed on a busy machine, once; ``stacklevel`` as of the caller's own."""
    if told := busy(made, names):
        warnings.warn("; ".join(told), RuntimeWarning, stacklevel=stacklevel + 1)


def _noted(made: Mapping[str, Any]) -> dict[str, float]:
    """What a file tells of it, which may be a stranger's."""
    told = made.get("waited")
    told = told if isinstance(told, Mapping) else {}
    numbers = {n: told[n] for n in _TOLD if type(told.get(n)) in (int, float)}
    return {n: value for n, value in numbers.items() if 0 <= value < _MOST}
