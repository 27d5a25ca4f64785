"""Inferences side by side, and the knob turned between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets a network's inferences run side by side, and the knob turn between them.

    Whoever turns the knob waits for the inferences that run; an inference waits while it is turned.
    So each sees one setting whole. A thread that turns the knob in the midst of its own inference
    (in a hook) does not wait: what of the network is still to run sees the new setting.
    """

    def __init__(self) -> None:
        self._free = threading.Condition(threading.RLock())
        self._inferences = self._waiting = 0

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        # A copy of a network has inferences of its own.
        return Turns, ()

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """Of one inference."""
        with self._free:
            # Whoever waits to turn the knob comes first, and so in the end.
            self._free.wait_for(lambda: not self._waiting)
            self._inferences += 1
        try:
            yield
        finally:
            with self._free:
                self._inferences -= 1
                self._free.notify_all()

    @contextmanager
    def turning(self, inside: bool) -> Iterator[None]:
        """Of whoever turns the knob; ``inside`` an inference of this network or not."""
        with self._free:
            if not inside:
                self._waiting += 1
                try:
                    self._free.wait_for(lambda: self._inferences == 0)
                finally:
                    self._waiting -= 1
                    self._free.notify_all()
            # Nobody begins an inference while this is held.
            yield
