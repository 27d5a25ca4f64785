"""Latencies as measured, by the shape of the batch, and the limits that they have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from math import inf, prod
from typing import Any

import numpy as np

from drowsy.governor.credit import Credit
from drowsy.governor.estimator import Estimator
from drowsy.governor.policy import Limit, rise_to
from drowsy.governor.timing import Timed

_SHAPES = 64  # of batches whose latencies are told apart
_RECENT, _SHAPES_HELD = 64, 4  # calls, and shapes of batches, that a point is to be good for

Shape = tuple[int, ...]


class Latencies:
    """What a call takes at every point.

    Args:
        points: with the latencies that were recorded, if they were.
        budgets: of ``latency_ms`` and ``images_per_s`` those that there are.
        credits: of these.
    """

    def __init__(
        self, points: Sequence[Any], budgets: Mapping[str, float], credits: Mapping[str, Credit]
    ) -> None:
        known = all(point.latency_ms for point in points)
        self._recorded = np.array([point.latency_ms for point in points], float) if known else None
        self._budgets, self._credits = budgets, credits
        self._estimators: OrderedDict[Shape, Estimator] = OrderedDict()
        self._recent: dict[Shape, int] = {}
        self._calls = 0

    def seconds(self, shape: Shape) -> np.ndarray | None:
        """That a call is expected to take, ``[points]``; None where nothing was recorded."""
        if self._recorded is None:
            return None
        estimator = self._of(shape)
        return 1e-3 * (estimator.scale + estimator.own) * self._recorded

    def hear(self, done: Iterable[Timed]) -> None:
        """Learn from calls that are over; each is told with its point and shape."""
        if self._recorded is None:
            return
        for (at, shape), taken in done:
            estimator = self._of(shape)
            if not estimator.warm:
                estimator.warm = True  # the first call of a shape compiles and allocates
            elif 0 < taken < inf:
                estimator.observe(at, float(self._recorded[at]), taken)
                factors = (estimator.scale + estimator.own) * self._recorded
                would = factors * (taken / factors[at])
                for name, most in self._milliseconds(shape):
                    self._credits[name].measure(would > most, at)

    def limits(self, shape: Shape) -> list[Limit]:
        """For batches of this shape and of the last ones: the knob is not turned for each."""
        limits = []
        for each in self._recent_with(shape):
            bounds = self._milliseconds(each)
            if not bounds:
                continue
            estimator = self._of(each)
            assert self._recorded is not None
            # Each call is to hold the budget, with the noise that it has.
            expected, doubt = estimator.expect(self._recorded, noise=1.0)
            for name, most in bounds:
                limits.append(Limit(name, most, most * rise_to(estimator.noise), expected, doubt))
        return limits

    def _of(self, shape: Shape) -> Estimator:
        """Of batches of this shape; of a new one by that of the last, as if time went with size."""
        found = self._estimators.get(shape)
        if found is not None:
            self._estimators.move_to_end(shape)
            return found
        assert self._recorded is not None
        found = Estimator(len(self._recorded))
        if self._estimators:
            last, known = next(reversed(self._estimators.items()))
            found.scale = known.scale * prod(shape) / max(prod(last), 1)
        self._estimators[shape] = found
        if len(self._estimators) > _SHAPES:
            self._estimators.popitem(last=False)
        return found

    def _milliseconds(self, shape: Shape) -> list[tuple[str, float]]:
        """That a batch of this shape may take, by budget."""
        budgets, found = self._budgets, []
        if "latency_ms" in budgets:
            found.append(("latency_ms", budgets["latency_ms"]))
        if "images_per_s" in budgets:
            found.append(("images_per_s", 1e3 * images_of(shape) / budgets["images_per_s"]))
        return found

    def _recent_with(self, shape: Shape) -> list[Shape]:
        self._calls += 1
        self._recent[shape] = self._calls
        if len(self._recent) > 1:
            for each in [s for s, at in self._recent.items() if self._calls - at >= _RECENT]:
                del self._recent[each]
        if len(self._recent) > _SHAPES_HELD:
            del self._recent[min(self._recent, key=self._recent.__getitem__)]
        return list(self._recent)


def images_of(shape: Shape) -> int:
    """Of a batch; a tensor of three dimensions is one image."""
    return shape[0] if len(shape) == 4 else 1
