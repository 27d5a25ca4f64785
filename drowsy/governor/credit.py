"""How often a budget may still be broken by trying a more accurate point.

Every rise may prove wrong, at the cost of a call or two over budget. A measurement over budget
costs a unit of credit, one within it earns a hundredth: so that where load comes and goes the
governor tries again as often as breaks the budget about once in a hundred, and not more often.
"""

from __future__ import annotations

_EARNED = 0.01  # by a measurement within the budget
_MOST, _LEAST = 5.0, -1.0
_NEEDED = 1.0  # to rise
_LOOKED_AT = 3  # measurements of a point before a more accurate one is tried


class Credit:
    """Of one budget.

    Attributes:
        measured: how many measurements there were.
        over: how many of them exceeded the budget.
    """

    def __init__(self) -> None:
        self.measured = self.over = 0
        self._credit = _MOST
        self._since = 0

    @property
    def may_rise(self) -> bool:
        """Whether the present point was looked at, and there is credit for a more accurate one."""
        return self._since >= _LOOKED_AT and self._credit >= _NEEDED

    def measure(self, over: bool, feasible: bool) -> None:
        """Count a measurement; where no point held the budget, what exceeds it costs nothing."""
        self.measured += 1
        self._since += 1
        if not over:
            self._credit = min(self._credit + _EARNED, _MOST)
        else:
            self.over += 1
            if feasible:
                self._credit = max(self._credit - 1, _LEAST)

    def turned(self) -> None:
        """The point is another one."""
        self._since = 0
