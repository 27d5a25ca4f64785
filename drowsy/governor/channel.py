"""One figure of a sensor, as far as it can be believed.

A reading is no news where there is none, where it is no finite number or one that cannot be, and
where it stalls: it repeats the last to the digit, and has done so for longer than this sensor does
by chance. Without news the last estimate stands, and a margin grows. Each outage is told once.
"""

from __future__ import annotations

import logging
import math
from numbers import Real
from typing import Any

log = logging.getLogger("drowsy.governor")

_BY_CHANCE = 1e-9  # how seldom a sound sensor may be taken for a stalled one
_REPEATS_GAIN = 0.01
_LEAST_REPEATS = 0.05  # share of readings that repeat the last: what is thought of any sensor
_FIRST = 0.9  # the same of one that is not known yet
_QUIET = 2.0  # seconds without news that mean nothing


class Channel:
    """Readings of one figure.

    Args:
        name: for messages.
        low, high: what can be, the bounds excluded.
        stalls: whether one that repeats itself is ever taken for stalled.
    """

    def __init__(self, name: str, low: float, high: float, stalls: bool = True) -> None:
        self.name, self._low, self._high, self._stalls = name, low, high, stalls
        self._last: float | None = None
        self._repeating, self._run = _FIRST, 0
        self._news_at: float | None = None
        self._fault = ""

    def take(self, value: object, why: str = "", least: float = -math.inf) -> float | None:
        """What a reading says; None where it is no news.

        Args:
            why: it could not be read.
            least: what it must be for another reason than that of its kind.
        """
        fault = self._judge(value, why, max(least, self._low))
        if fault:
            self.doubt(fault)
            return None
        return float(value)  # type: ignore[arg-type]

    def believe(self, at: float) -> None:
        """Say that what was taken is believed."""
        self._news_at = at
        if self._fault:
            log.info("%s: is told again", self.name)
            self._fault = ""

    def doubt(self, fault: str) -> None:
        """Say, once an outage, why a reading is not believed."""
        if not self._fault:
            log.warning("%s: %s; the last estimate stands, with a growing margin", self.name, fault)
        self._fault = fault

    def quiet(self, now: float) -> float:
        """Seconds without news, beyond those that mean nothing."""
        if self._news_at is None:
            self._news_at = now
        return max(0.0, now - self._news_at - _QUIET)

    def _judge(self, value: Any, why: str, least: float) -> str:
        """Why a reading is no news; empty where it is."""
        if value is None:
            return why or "cannot be read"
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            return f"reads {str(value)[:40]!r}, which is no number"
        number: Any = value
        if not least < number < self._high:
            told = str(value)[:12]
            return f"reads {told}, believed: from {least:.4g} to {self._high:.4g}"
        if number == self._last:
            self._run += 1
            if self._stalls and self._run * math.log(self._repeating) < math.log(_BY_CHANCE):
                return f"has read {value} {self._run + 1} times in a row, which it does not do"
            return ""
        # How often it repeats itself is learned when a run of repeats has ended.
        kept = (1 - _REPEATS_GAIN) ** self._run
        share = (1 - kept + kept * self._repeating) * (1 - _REPEATS_GAIN)
        self._repeating = min(max(share, _LEAST_REPEATS), 0.99)
        self._last, self._run = number, 0
        return ""
