"""What a run of ``tune`` can afford in its time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from drowsy.tuning.workbench import SEARCH_CALIBRATION

# Passes over the search and the report images, in those of the network awake.
_SEARCH_PASSES, _REPORT_PASSES = 18, 8
# A pass asleep, in those awake, corrections included.
_ASLEEP = 1.5
# Part of the time for a search of rates.
SEARCHING = 0.4


@dataclass(frozen=True)
class Plan:
    """What is afforded: images of each split, and seconds for a search of rates."""

    calibration: int
    search: int
    report: int
    seconds: float
    an_image: float

    @classmethod
    def of(cls, images: int, seconds: float, minutes: float) -> Plan:
        """For so many images, of which each takes so many seconds awake."""
        calibration = min(max(images // 8, 1), 128)
        afforded = int(0.6 * 60 * minutes / (seconds * (_SEARCH_PASSES + _REPORT_PASSES)))
        half = (images - calibration) // 2
        each = min(half, max(afforded, min(half, 50)))
        return cls(calibration, each, each, SEARCHING * 60 * minutes, seconds)

    def settings(self, correction: str, few: int, spent: float = 0.0) -> int:
        """Settings that a search measures; a corrected one costs its calibration too.

        Args:
            correction: as in ``Sleep``.
            few: images that it measures on.
            spent: seconds that are not left for it.
        """
        calibrating = min(SEARCH_CALIBRATION, 2 * few, self.calibration)
        # Settings share work, but for what corrections change; and what sleeps
        # takes longer where sleepers are computed too.
        passes = 0.6 * few if correction == "none" else _ASLEEP * (2 * calibrating + few)
        return int(max(self.seconds - spent, 0.0) / (self.an_image * passes))

    def on(self, images: Mapping[str, int]) -> Plan:
        """The same on so many images of each split."""
        return replace(self, **images)

    @property
    def splits(self) -> dict[str, range]:
        """Where each of them lies among the images."""
        ends = [0, *itertools.accumulate((self.calibration, self.search, self.report))]
        names = ("calibration", "search", "report")
        return {n: range(a, b) for n, (a, b) in zip(names, itertools.pairwise(ends), strict=True)}
