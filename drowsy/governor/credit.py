"""Which more accurate points may be tried, so that a budget is not broken too often.

Every rise may prove wrong, at the cost of a call or two over budget. Two things allow it.

*Hindsight*: the point would have held nearly all of what was measured lately. What comes once in
a hundred, such as a machine's hiccups, is not worth keeping away from, and a point that also the
worst of late would have let through needs nobody's leave.

*Credit*, for points that would not, which are tried since the world may have changed: a measurement
over budget costs a unit, one within it earns a sixtieth. So where load comes and goes the governor
tries again as often as breaks the budget one time in sixty, and not more often.

What no point would have held is nobody's fault, and counts for nothing.
"""

from __future__ import annotations

import numpy as np

_EARNED = 1 / 60  # by a measurement within the budget
_MOST, _LEAST = 5.0, -1.0
_NEEDED, _SAVED = 1.0, 3.0  # to rise by credit, and after it ran out
_SHARE = 0.01  # of the measurements of late that may be over, to rise by hindsight
_GAIN = 1 / 256  # of one measurement on that share
_LOOKED_AT = 3  # measurements of a point before a more accurate one is tried


class Credit:
    """Of one budget.

    Args:
        points: how many the floor allows.

    Attributes:
        measured: how many measurements there were.
        over: how many of them exceeded the budget.
    """

    def __init__(self, points: int) -> None:
        self.measured = self.over = 0
        self._credit, self._needed = _MOST, _NEEDED
        self._over = np.zeros(points)  # share of late measurements, had they been of this point
        self._since = 0

    def highest(self, present: int) -> int:
        """The most accurate point that may be tried from this one; itself where it is to stay."""
        if self._since < _LOOKED_AT:
            return present
        if self._credit >= self._needed:
            return 0
        good = np.flatnonzero(self._over[:present] <= _SHARE)
        return int(good[0]) if len(good) else present

    def measure(self, over: np.ndarray, at: int) -> None:
        """Count a measurement.

        Args:
            over: bool ``[points]``: whether it exceeds the budget, had it been of each point.
            at: the point that it was of.
        """
        over = over[: len(self._over)]
        self.measured += 1
        self._since += 1
        broken = bool(over[at])
        self.over += broken
        if over.all():
            over = np.zeros_like(over)
        elif broken:
            self._credit = max(self._credit - 1, _LEAST)
        if not broken:
            self._credit = min(self._credit + _EARNED, _MOST)
        # It is spent on several tries in a row: each starts where good news is, not at any time.
        if self._credit < _NEEDED:
            self._needed = _SAVED
        elif self._credit >= _SAVED:
            self._needed = _NEEDED
        self._over += _GAIN * (over - self._over)

    def turned(self) -> None:
        """The point is another one."""
        self._since = 0
