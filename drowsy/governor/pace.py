"""How often calls come, and how often they would at another point.

A caller that comes back as soon as it is answered waits for the network, and a faster point is
called more often. One that leaves time in between is paced by what it is given (a camera), and
calls as often whatever the point, as long as the network keeps up.
"""

from __future__ import annotations

import numpy as np

_GAIN = 0.1
_WAITING = 0.05  # of the time between calls that a caller who waits for us takes for himself
_PAUSE = 10.0  # times the usual: a pause between calls, and no longer their pace


class Pace:
    """The time between calls.

    Attributes:
        seconds: smoothed; None before the second call.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._last: float | None = None

    def called(self, now: float) -> None:
        """A call begins."""
        if self._last is not None:
            taken = max(now - self._last, 1e-6)
            if self.seconds is None:
                self.seconds = taken
            elif taken < _PAUSE * self.seconds:
                self.seconds += _GAIN * (taken - self.seconds)
            else:
                self.seconds *= 1 + _GAIN
        self._last = now

    def between(self, latency: np.ndarray | None, present: int) -> np.ndarray | float:
        """Seconds between calls at every point.

        Args:
            latency: seconds a call, ``[points]``, the present point's as measured; None: not known.
        """
        assert self.seconds is not None
        if latency is None:
            return self.seconds
        gap = self.seconds - latency[present]
        if gap > _WAITING * self.seconds:
            return np.maximum(latency, self.seconds)
        return latency + max(gap, 0.0)

    def turned(self, seconds: float) -> None:
        """The point is another one, at which calls are expected to come so often."""
        self.seconds = seconds
