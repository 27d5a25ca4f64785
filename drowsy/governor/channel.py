"""One figure of a sensor, as far as it can be believed.

A reading is no news where there is none, where it is no finite number or one that cannot be, and
where it stalls: it repeats the last to the digit, and has done so for longer than this sensor does
by chance. Without news the last estimate stands, and a margin grows. Each outage is told once.
"""

from __future__ import annotations

import logging
import math

log = logging.getLogger("drowsy.governor")

_BY_CHANCE = 1e-6  # how seldom a sound sensor may be taken for a stalled one
_REPEATS_GAIN = 0.05
_LEAST_REPEATS = 0.05  # share of readings that repeat the last: what is thought of any sensor
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
        self._repeating, self._run = 0.5, 0
        self._news_at: float | None = None
        self._fault = ""

    def take(self, value: object, at: float, why: str = "") -> float | None:
        """What a reading says; None where it is no news."""
        fault = self._judge(value, why)
        if fault:
            self.doubt(fault)
            return None
        self._news_at = at
        if self._fault:
            log.info("%s: is told again", self.name)
            self._fault = ""
        return float(value)  # type: ignore[arg-type]

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

    def _judge(self, value: object, why: str) -> str:
        """Why a reading is no news; empty where it is."""
        if value is None:
            return why or "cannot be read"
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return f"reads {value!r}, which is no number"
        if not self._low < value < self._high:
            return f"reads {value:.6g}, allowed: between {self._low:.6g} and {self._high:.6g}"
        repeats = value == self._last
        self._last, self._run = value, self._run + 1 if repeats else 0
        if self._stalls and self._run * math.log(self._repeating) < math.log(_BY_CHANCE):
            return f"has read {value:.6g} {self._run + 1} times in a row, which it does not do"
        self._repeating += _REPEATS_GAIN * (repeats - self._repeating)
        self._repeating = min(max(self._repeating, _LEAST_REPEATS), 0.99)
        return ""
