"""An energy counter read again and again: what it counted in between, or why nobody can say.

Counters wrap around, and they are reset: by a driver that is reloaded, by a machine that slept. To
the eye both are a number that became smaller. What tells them apart is power. From 100 J to 0 J in
0.02 s, with a range of 262,143 J, would be a wrap at 13 megawatts: it was a reset, and what was
drawn around it is not known. The same holds for a leap forward, and for a pause so long that there
may have been two wraps. Then the count begins anew, as another *run*, and has no difference from
the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from drowsy.sensors.sensor import MOST_WATTS, Count, Unread, clock


class Counter:
    """An energy counter, followed from its first reading on.

    A reset passes for a wrap only where the counter stood, by chance, within ``MOST_WATTS`` of its
    range's end: with samples every 0.02 s, the last 150 J of the 262,143 J that RAPL has.

    Args:
        read: the counter in its own unit, never negative; raises ``Unread``.
        per_joule: units in a joule.
        update: seconds between the counter's own updates, at most.
        span: units after which it wraps around; infinity: never.

    Raises:
        Unread: it cannot be read now.
    """

    def __init__(
        self, read: Callable[[], int], per_joule: int, update: float, span: float = math.inf
    ) -> None:
        self._read, self._per_joule, self._update, self._span = read, per_joule, update, span
        self._at = clock.now()
        self._last = read()
        self._total: float = self._last
        self._run, self._why = 0, ""

    def count(self) -> Count:
        """Where the count is now."""
        before = clock.now()
        try:
            now = self._read()
        except Unread as error:
            return Count(None, self._run, str(error))
        seconds = clock.now() - self._at  # since before the last reading: never too short
        most = MOST_WATTS * self._per_joule * (seconds + self._update)
        step = (now - self._last) % self._span
        if step <= most < self._span:
            self._total += step
        else:
            self._run, self._why = self._run + 1, self._lost(now, step, seconds, most)
            self._total = now
        self._last, self._at = now, before
        return Count(self._total / self._per_joule, self._run, self._why)

    def _lost(self, now: int, step: float, seconds: float, most: float) -> str:
        """Why the step to ``now`` counts nothing."""
        if most >= self._span:
            return (
                f"was not read for {seconds:.3g} s, in which it may have wrapped more than once: "
                f"its range is {self._joules(self._span)}"
            )
        stands = f"from {self._joules(self._last)} to {self._joules(now)} within {seconds:.3g} s"
        if now > self._last:
            return f"leapt {stands}, more than {MOST_WATTS:,.0f} W would take: was it reset?"
        wrap = "" if math.isinf(step) else f", and a wrap would mean {self._joules(step)}"
        return f"went back {stands}{wrap}: was it reset?"

    def _joules(self, units: float) -> str:
        return f"{units / self._per_joule:,.1f} J"
