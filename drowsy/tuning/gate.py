"""Many threads on one network, each at an operating point of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

Point = TypeVar("Point")


class Gate(Generic[Point]):
    """Lets inferences at one point run side by side, and turns between points when none runs.

    Args:
        turn: puts a point in force; called while nothing runs.
        streams: the order of what a device was only asked for; None where a call that has returned
            is over.
    """

    def __init__(self, turn: Callable[[Point], None], streams: Streams | None = None) -> None:
        self._turn, self._streams = turn, streams
        self._changed = threading.Condition()
        self._point: Point | None = None
        self._inside = 0
        self._queue: deque[object] = deque()

    @contextmanager
    def at(self, point: Point) -> Iterator[None]:
        """Run a block at this point, in the order of arrival: nobody waits for ever."""
        with self._changed:
            self._enter(point)
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()
                # Before anybody else has the lock.
                if self._streams is not None:
                    self._streams.ran()

    def _enter(self, point: Point) -> None:
        place = object()
        self._queue.append(place)
        try:
            while self._queue[0] is not place or (self._inside and self._point is not point):
                self._changed.wait()
            if self._point is not point:
                if self._streams is not None:
                    self._streams.before_turn()
                # Where the turn fails, the network is known to be at no point.
                self._point = None
                self._turn(point)
                self._point = point
                if self._streams is not None:
                    self._streams.turned()
            elif self._streams is not None:
                self._streams.before_run()
            self._inside += 1
        finally:
            self._queue.remove(place)
            self._changed.notify_all()


class Streams:
    """Keeps turns and inferences apart that CUDA streams of several threads have yet to run.

    A call returns when its kernels are queued. So a turn waits on its stream for what other streams
    were asked for before, and an inference waits on its stream for the turn; the host waits for
    nothing. One thread, on one stream, is in order by itself. Nothing is recorded while a graph is
    captured, which no other stream may reach into.

    Args:
        device: that the network is on.
        cuda: ``torch.cuda``, or what stands in for it.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        # Of every stream the event after its last inference; and of the last turn.
        self._ran: dict[Any, Any] = {}
        self._turned: tuple[Any, Any] | None = None

    def before_turn(self) -> None:
        """A point is about to be put in force: after what other streams were asked for."""
        if (here := self._here()) is not None:
            self.before_run()
            for stream, event in self._ran.items():
                if stream != here:
                    here.wait_event(event)
            self._ran.clear()

    def turned(self) -> None:
        """It is in force, as far as the host knows."""
        if (here := self._here()) is not None:
            self._turned = here, here.record_event()

    def before_run(self) -> None:
        """An inference is about to be asked for: after the last turn."""
        here = self._here()
        if here is not None and self._turned is not None and self._turned[0] != here:
            here.wait_event(self._turned[1])

    def ran(self) -> None:
        """An inference was asked for."""
        if (here := self._here()) is not None:
            self._ran[here] = here.record_event()

    def _here(self) -> Any:
        """The stream that is asked now; None while it is captured."""
        if self._cuda.is_current_stream_capturing():
            return None
        return self._cuda.current_stream(self._device)
