"""Whether the machine was a process's own while it timed something, or others took its cores.

Linux counts for every thread how long it could have run and no core was free for it
(``/proc/self/task/*/schedstat``). Where threads wait for each other at the end of every layer, what
any of them waits is lost to all; on a machine that does nothing else it is next to nothing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TASKS = Path("/proc/self/task")
# Of the time that was timed: below this, milliseconds are what they are on a quiet machine.
BUSY = 0.1
# Threads that may wait at a time, and more.
_MOST = 1e5
# What was timed meanwhile, and what becomes of it.
_TOLD = {
    "measuring": (
        "while points were measured",
        "milliseconds are not to be trusted; knob.measure() on a quiet machine measures again",
    ),
    "choosing": (
        "while points were chosen",
        "tune on a quiet machine may choose others",
    ),
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

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch a block, and add what it finds."""
        start, before = time.perf_counter(), _waits()
        yield
        # A thread that has ended is no longer told of; one that has begun had not waited before.
        found = {name: each - before.get(name, 0.0) for name, each in _waits().items()}
        self.add(time.perf_counter() - start, sum(found.values()))

    def add(self, seconds: float, waited: float) -> None:
        """What was found elsewhere."""
        self.seconds += seconds
        self.waited += waited

    @property
    def share(self) -> float:
        """Seconds waited in every second; 0 where nothing was watched."""
        return round(self.waited / self.seconds, 3) if self.seconds else 0.0


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
        f"a busy machine: {_TOLD[name][0]}, threads waited {share:.2f} s for a core in every "
        "second, as other programs run, or torch has more threads than there are cores "
        f"(OMP_NUM_THREADS, torch.set_num_threads): {_TOLD[name][1]}"
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
