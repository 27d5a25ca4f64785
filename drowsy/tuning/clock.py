"""How much of the time of a run is over: stages that have had their share offer no more.

What a clock says differs from run to run. It is written to the journal as it is first asked, so
that a run that resumes decides alike.
"""

from __future__ import annotations

import time
from typing import Any

from drowsy.files.messages import quoted
from drowsy.tuning.journal import Journal

now = time.monotonic
_MOST = 1_000_000


def check_minutes(minutes: Any) -> None:
    """Raise ValueError unless a run may take so long."""
    number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if not number or not 0 < minutes <= _MOST:
        raise ValueError(
            f"minutes: got {quoted(minutes)}, allowed: a number above 0, up to {_MOST}"
        )


class Clock:
    """The clock of a run, which starts now.

    Args:
        minutes: that the run may take.
        journal: of what it says.
        run: in words, what tells this run from others that the journal may know.
    """

    def __init__(self, minutes: float, journal: Journal, run: str) -> None:
        self.minutes = minutes
        self._journal, self._run = journal, run
        self._over, self._since, self._asked = 0.0, now(), 0

    def over(self) -> float:
        """Fraction of the minutes that is over, or was when a run before asked this."""
        self._asked += 1
        name = f"time over, {self._run}, {self._asked}"
        # From the last answer on, so that a run that resumes goes on from where it was.
        self._over = float(self._journal.get(name, self._now))
        self._since = now()
        return self._over

    def _now(self) -> float:
        return round(self._over + (now() - self._since) / (60 * self.minutes), 4)

    def has(self, share: float) -> bool:
        """Whether no more than this share of the minutes is over."""
        return self.over() <= share
