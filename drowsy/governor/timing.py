"""How long a call takes where it runs, without waiting for it.

On the CPU it is over when it returns. On a GPU two events are recorded around it on its stream, and
asked for later whether the GPU has passed them: nobody waits, and the readings come some calls
late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

_IN_FLIGHT = 64  # calls at most whose events are waited for; those beyond are not timed

Timed = tuple[Any, float]  # what was said of a call, and its milliseconds


class HostTimer:
    """Times calls that are over when they return.

    Args:
        now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._done: list[Timed] = []

    def start(self) -> Any:
        return self._now()

    def stop(self, start: Any, what: Any) -> None:
        self._done.append((what, 1e3 * (self._now() - start)))

    def done(self) -> list[Timed]:
        """Calls that are over and were not told yet, the first first."""
        done, self._done = self._done, []
        return done


class CudaTimer:
    """Times what is enqueued on the current stream of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[tuple[torch.cuda.Event, torch.cuda.Event]] = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(_IN_FLIGHT)
        ]
        self._running: deque[tuple[Any, torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> Any:
        """Two events, the first recorded; None where as many are awaited as may be."""
        if not self._free or torch.cuda.is_current_stream_capturing():
            return None
        events = self._free.pop()
        events[0].record(torch.cuda.current_stream(self._device))
        return events

    def stop(self, events: Any, what: Any) -> None:
        if events is not None:
            events[1].record(torch.cuda.current_stream(self._device))
            self._running.append((what, *events))

    def done(self) -> list[Timed]:
        """Calls that the GPU has finished and that were not told yet, the first first."""
        told = []
        while self._running and self._running[0][2].query():
            what, start, end = self._running.popleft()
            told.append((what, start.elapsed_time(end)))
            self._free.append((start, end))
        return told
