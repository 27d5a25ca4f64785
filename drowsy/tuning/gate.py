"""Many threads on one network, each at an operating point of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Point = TypeVar("Point")


class Gate(Generic[Point]):
    """Lets inferences at one point run side by side, and turns between points when none runs.

    Args:
        turn: puts a point in force; called while nothing runs.
    """

    def __init__(self, turn: Callable[[Point], None]) -> None:
        self._turn = turn
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

    def _enter(self, point: Point) -> None:
        place = object()
        self._queue.append(place)
        try:
            while self._queue[0] is not place or (self._inside and self._point is not point):
                self._changed.wait()
            if self._point is not point:
                # Where the turn fails, the network is known to be at no point.
                self._point = None
                self._turn(point)
                self._point = point
            self._inside += 1
        finally:
            self._queue.remove(place)
            self._changed.notify_all()
