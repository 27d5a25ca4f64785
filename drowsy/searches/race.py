"""Racing: measure settings on few images first, and on all of them only what may be optimal.

A race has rungs, each of about twice the images of the one before. After each rung

1. the settings that lead so far, in saving and accuracy, are measured on all images: accuracies on
   all images are facts, and others can be held against them;
2. a setting is dropped if it cannot match a fact. Let another setting save as much and be right on
   a share ``p`` of all images, and this one on a share ``x < p`` of the rung's ``m``. If it were as
   good on all images, so few on ``m`` of them drawn at random would have a probability of at most
   ``exp(-m KL(x || p))``: Chernoff's bound, for draws without replacement too (Hoeffding, JASA
   1963, theorems 1 and 4), and for means over several seeds, which lie between 0 and 1. Below
   ``(1 - CONFIDENCE) / looks`` it is dropped; ``looks`` are the rungs before the last.

So a setting of the true frontier is dropped with a probability of 1% at most. Images must be in
random order, for the rungs are the first ones.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from drowsy.evaluation.metrics import Counts
from drowsy.knob.costs import ROUNDING, add_gains
from drowsy.knob.metrics import METRICS
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting

if TYPE_CHECKING:
    from drowsy.evaluation.measurer import Measurer


CONFIDENCE = 0.99
# Images of the first rung, at least.
FEWEST = 100


class Race:
    """Measures as a ``Measurer`` does, and stops early where a setting cannot be optimal.

    What it drops comes back as a point of fewer images. Results of every stretch of images go into
    the store, and their sums as results of all images: no image is evaluated twice, a killed race
    resumes along the same steps, and a search without racing finds what a race has completed.

    Args:
        measurer: of all images, which are in random order.
        objectives: fractions such as ``top1``, ``top5``, ``agreement``, ``miou`` or ``f1``; a
            setting is dropped if it cannot be optimal in any of them.

    Attributes:
        image_evaluations: what the settings asked for so far took, those in the store included.

    Raises:
        ValueError: an unknown objective, one that needs labels where there are none, or images in
            the order of their classes.
    """

    def __init__(self, measurer: Measurer, objectives: Sequence[str]) -> None:
        labels = measurer.work.labels
        # The bound is one for what lies between 0 and 1.
        allowed = [name for name in measurer.objectives if METRICS[name].is_fraction]
        for name in objectives:
            if name not in allowed:
                raise ValueError(f"objective: got {name!r}, allowed: {', '.join(allowed)}")
        if _are_classes(labels) and bool((labels.diff() >= 0).all()) and labels[0] < labels[-1]:
            raise ValueError(
                "racing: the images are in the order of their classes, allowed: a random order, "
                "since the first ones stand for all"
            )
        self.measurer, self.objectives = measurer, tuple(objectives)
        self.net, self.names = measurer.net, measurer.names
        self.gains, self.free, self.ties = measurer.gains, measurer.free, measurer.ties
        self.damage = measurer.damage
        self._values = True
        self.stops = _stops(len(measurer.images), measurer.work.batch)
        self.image_evaluations = 0
        self._complete: dict[Setting, OperatingPoint] = {}

    def measure(
        self, settings: Iterable[Setting], label: str = "settings", values: bool = True
    ) -> dict[Setting, OperatingPoint]:
        """Points of these settings: of all images, or of those it took to drop them."""
        self._values = values
        with self.measurer.steady():
            return self._measure(settings, label)

    def _measure(self, settings: Iterable[Setting], label: str) -> dict[Setting, OperatingPoint]:
        wanted = list(dict.fromkeys(settings))
        begun = self.measurer.known(range(self.stops[0]))
        # Measured on all images by a search without racing.
        there = self.measurer.known() - begun
        for setting, counts in self.measurer.counts([s for s in wanted if s in there]).items():
            self._finish(setting, counts)
        points: dict[Setting, OperatingPoint] = {}
        open_: dict[Setting, list[Counts]] = {s: [] for s in wanted if s not in self._complete}
        for rung, (start, stop) in enumerate(pairwise((0, *self.stops))):
            self._run(open_, start, stop, label)
            if stop == self.stops[-1]:
                break
            leaders = {s: open_.pop(s) for s in self._leaders(open_)}
            for low, high in pairwise(self.stops[rung:]):
                self._run(leaders, low, high, label)
            for setting in self._hopeless(open_):
                counts = open_.pop(setting)
                points[setting] = self.measurer.point(setting, counts)
                self._spend(counts)
        points |= {s: self._complete[s] for s in wanted if s in self._complete}
        return {setting: points[setting] for setting in wanted}

    def _run(
        self, settings: dict[Setting, list[Counts]], start: int, stop: int, label: str
    ) -> None:
        """Add the counts of images ``start`` to ``stop``; after the last ones, all is known."""
        if not settings:
            return
        label = f"{label}, images {start} to {stop}"
        found = self.measurer.counts(settings, label, range(start, stop), self._values)
        for setting, more in found.items():
            so_far = settings[setting]
            settings[setting] = list(map(operator.add, so_far, more)) if so_far else more
            if stop == self.stops[-1]:
                self.measurer.keep(setting, settings[setting])
                self._finish(setting, settings[setting])

    def _finish(self, setting: Setting, counts: list[Counts]) -> None:
        self._complete[setting] = self.measurer.point(setting, counts)
        self._spend(counts)

    def _spend(self, counts: list[Counts]) -> None:
        self.image_evaluations += sum(each.images for each in counts)

    # --- who goes on --------------------------------------------------------------------------

    def _leaders(self, open_: dict[Setting, list[Counts]]) -> list[Setting]:
        """Settings that nothing which saves more matches so far, in some objective."""
        settings, points = list(open_), self._points(open_)
        there = add_gains(self.gains, [*settings, *self._complete])
        pool = [*points, *self._complete.values()]
        lead = np.zeros(len(points), bool)
        for name in self.objectives:
            bar = _bar(there, _values(pool, name), there[: len(points)] + ROUNDING)
            lead |= _values(points, name) > bar
        return [settings[i] for i in np.flatnonzero(lead)]

    def _hopeless(self, open_: dict[Setting, list[Counts]]) -> list[Setting]:
        """Settings that cannot match one of all images which saves as much, in any objective."""
        settings, points = list(open_), self._points(open_)
        here, there = add_gains(self.gains, settings), add_gains(self.gains, list(self._complete))
        images = np.array([point.images for point in points])
        lost = np.ones(len(points), bool)
        looks = len(self.stops) - 1
        for name in self.objectives:
            p = _bar(there, _values(self._complete.values(), name), here - ROUNDING)
            x = _values(points, name)
            doubt = np.exp(-images * _kl(x, np.maximum(x, p)))
            lost &= doubt < (1 - CONFIDENCE) / looks
        return [settings[i] for i in np.flatnonzero(lost)]

    def _points(self, open_: dict[Setting, list[Counts]]) -> list[OperatingPoint]:
        return [self.measurer.point(setting, counts) for setting, counts in open_.items()]


def _are_classes(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()


def _stops(images: int, batch: int) -> tuple[int, ...]:
    """Where rungs end: all images, a half, a quarter and so on, in whole batches."""
    stops = {images}
    for halvings in range(1, max(int(math.log2(images / FEWEST)), 0) + 1):
        stop = -(-images // 2**halvings)
        stops.add(min(-(-stop // batch) * batch, images))
    return tuple(sorted(stops))


def _values(points: Iterable[OperatingPoint], objective: str) -> np.ndarray:
    return np.array([point.figure(objective) for point in points])


def _bar(savings: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The best value of what saves this much or more; 0 where nothing does."""
    order = np.argsort(savings)
    best = np.maximum.accumulate(values[order][::-1])[::-1]
    return np.append(best, 0.0)[np.searchsorted(savings[order], at)]


def _kl(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """KL divergence of coins that fall on their side ``x`` and ``p`` of the time, in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [np.where(q > 0, q * np.log(q / r), 0.0) for q, r in ((x, p), (1 - x, 1 - p))]
    return sides[0] + sides[1]
