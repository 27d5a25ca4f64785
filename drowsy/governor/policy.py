"""Which point is the best now: a pure function of what is expected and what is allowed.

A point *fits* a limit where what it is expected to cost, and about twice the doubt of that, is
within the budget. To leave the present point for a more accurate one takes more: it must fit a
smaller budget, so that noise does not send it back. Of the points that fit all limits the most
accurate is chosen, downwards at once and upwards at most half of the way. Where none fits it is the
one nearest to fitting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

CERTAINTY = 2.2  # standard deviations: one call in seventy is slower
_SLACK, _NOISE_SLACK = 0.01, 0.7  # of a budget, and of the noise, that a rise leaves free
_NEARER = 0.98  # what is to be gained by leaving one point that does not fit for another


@dataclass(frozen=True)
class Limit:
    """A budget, and what every point is expected to take of it.

    Args:
        name: of the budget.
        budget: what is allowed, in the unit of ``expected``.
        rise: what a more accurate point than the present one may take at most.
        expected: ``[points]``, the most accurate first.
        doubt: ``[points]``: standard deviations.

    Attributes:
        upper: ``[points]``: what is expected and what is kept for doubt.
    """

    name: str
    budget: float
    rise: float
    expected: np.ndarray
    doubt: np.ndarray
    upper: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "upper", self.expected + CERTAINTY * self.doubt)

    def told(self, point: int) -> str:
        """What a point is expected to take of the budget, in words."""
        doubt = CERTAINTY * self.doubt[point]
        return f"{self.name} {self.expected[point]:.4g} + {doubt:.2g} of {self.budget:.4g}"


@dataclass(frozen=True)
class Choice:
    """A point and why.

    Args:
        point: its position.
        reason: in words; empty where the present point stays.
        limit: name of the budget that decided; None where none did.
        feasible: whether any point fits; None where it is too close to say.
    """

    point: int
    reason: str = ""
    limit: str | None = None
    feasible: bool | None = True


def rise_to(noise: float) -> float:
    """Of a budget, what a more accurate point may take, where figures scatter by so much."""
    return max(1 - _SLACK - _NOISE_SLACK * noise, 0.5)


def choose(limits: Sequence[Limit], present: int, allowed: int, highest: int) -> Choice:
    """The point to be at.

    Args:
        limits: one or more.
        present: the point in force.
        allowed: how many points, from the most accurate on, the floor allows.
        highest: the most accurate point that may be tried now.
    """
    loads = [limit.upper[:allowed] / limit.budget for limit in limits]
    load = np.maximum.reduce(loads)
    if present >= allowed:
        return _fall(limits, loads, load, allowed - 1, "above the floor")
    if load[present] > 1:
        return _fall(limits, loads, load, present)
    if highest >= present:
        return Choice(present)
    fits = np.arange(present) >= highest
    for limit in limits:
        fits &= limit.upper[:present] <= limit.rise
    goal = int(fits.argmax())
    if not fits[goal]:
        return Choice(present)
    # At most half of the way, or a little less if that does not fit.
    bound = goal + (present - goal) // 2
    later = fits[bound:]
    point = bound + int(later.argmax()) if later.any() else int(np.flatnonzero(fits)[-1])
    tightest = max(limits, key=lambda limit: limit.expected[point] / limit.budget)
    return Choice(point, f"room for more: {tightest.told(point)}", tightest.name)


def _fall(
    limits: Sequence[Limit],
    loads: Sequence[np.ndarray],
    load: np.ndarray,
    present: int,
    why: str = "",
) -> Choice:
    """The most accurate point that fits, or the nearest to it."""
    worst = limits[int(np.argmax([each[present] for each in loads]))]
    fits = load <= 1
    if fits.any():
        # One that is more accurate, and yet takes less, must not be one that a hair lets fit.
        later = fits[present:].argmax() + present
        point = int(later if fits[later] else fits.argmax())
        return Choice(point, why or f"over budget: {worst.told(present)}", worst.name)
    point = int(load.argmin())
    if load[point] > _NEARER * load[present]:
        point = present
    worst = limits[int(np.argmax([each[point] for each in loads]))]
    hopeless = worst.expected[point] > worst.budget
    reason = f"no point holds {worst.told(point)}: the nearest"
    return Choice(point, reason, worst.name, False if hopeless else None)
