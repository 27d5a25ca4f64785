"""What a search has measured so far, and what single layers tell of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from drowsy.evaluation.measurer import Measurer
from drowsy.knob.costs import add_gains
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting
from drowsy.knob.tradeoffs import undominated
from drowsy.searches.race import Race
from drowsy.searches.settings import single_settings, spread

# Without a budget, a search measures as many settings beyond the single layers and uniform rates.
REFINEMENTS = 256
# How a layer's damage grows with its rate, below and above 1/2: powers that fit interpolated and
# corrected lattices (at 7/8, 9 to 18 times the damage of 1/2 on three networks).
_GROWTH_BELOW, _GROWTH_ABOVE = 1.0, 4.0
# The same below 1/2 where the flattest parts of a picture sleep first: from 1/4 to 1/2 in all
# layers, 8 times the damage in CARN-M and 16 in UltraFace.
_GROWTH_SEEN = 3.0


class Trials:
    """What a search has measured, within its budget.

    A point counts when the search first asks for it, also if the store knows it: so a resumed
    search takes the same steps as one that was never stopped. To a search, tied layers are one, and
    layers that rest are none.
    """

    def __init__(self, measurer: Measurer | Race, budget: int | None) -> None:
        self.measurer = measurer
        self.layers, self.k = len(measurer.ties), measurer.net.k
        if budget is None:
            budget = len(single_settings(self.layers, self.k)) + self.k + REFINEMENTS
        self.budget = budget
        self.gains = np.stack([measurer.gains[tie].sum(axis=0) for tie in measurer.ties])
        self.points: dict[Setting, OperatingPoint] = {}

    @property
    def found(self) -> dict[Setting, OperatingPoint]:
        """The points by settings of all layers."""
        return dict(zip(self._of_layers(self.points), self.points.values(), strict=True))

    @property
    def sees(self) -> bool:
        """Whether who sleeps first depends on the picture."""
        layers = self.measurer.net.layers.values()
        return any(layer.sleep.source.sees for layer in layers)

    @property
    def left(self) -> int:
        return self.budget - len(self.points)

    def measure(self, settings: Iterable[Setting], label: str) -> int:
        """Measure those that are new, as many as the budget allows; returns their number."""
        new = [each for each in dict.fromkeys(settings) if each not in self.points][: self.left]
        if new:
            points = self.measurer.measure(self._of_layers(new), label)
            self.points |= zip(new, points.values(), strict=True)
        return len(new)

    def _of_layers(self, settings: Iterable[Setting]) -> list[Setting]:
        return spread(settings, self.measurer.ties, len(self.measurer.names))

    def damage(self, setting: Setting) -> float:
        # Not accuracy: divergence resolves harm that flips no image yet, and needs no labels.
        return max(self.points[setting].figure(self.measurer.damage) or 0.0, 0.0)

    def saved(self, settings: Sequence[Setting]) -> np.ndarray:
        return add_gains(self.gains, settings)

    def frontier(self) -> list[Setting]:
        """Measured settings that are optimal in saving and damage, by saving."""
        settings = list(self.points)
        harm = np.array([self.damage(setting) for setting in settings])
        return [settings[i] for i in undominated(self.saved(settings), harm)]


def sensitivity(trials: Trials, share: float = 0.5) -> np.ndarray:
    """``[layers, k]`` damages of each layer alone, in at most ``share`` of the budget.

    Where the budget is short, fewer rates are measured, and damages of the others lie between or
    beyond as ``_growth`` says.
    """
    layers, k = trials.layers, trials.k
    depth = min(max(int(share * trials.budget - 1) // layers, 1), k - 1)
    rates, growth = spread_rates(k, depth), _growth(k, trials.sees)
    settings = [s for s in single_settings(layers, k) if max(s) in rates]
    trials.measure(settings, "each layer alone")
    damage = np.zeros((layers, k))
    for setting in filter(trials.points.__contains__, settings):
        layer = int(np.argmax(setting))
        damage[layer, setting[layer]] = trials.damage(setting)
    if depth == 1:
        return damage[:, k // 2][:, None] * growth
    # More sleep cannot help a layer; what says so is noise.
    damage = np.maximum.accumulate(damage, axis=1)
    return np.array([np.interp(growth, growth[rates], row[rates]) for row in damage])


def _growth(k: int, sees: bool) -> np.ndarray:
    """How a layer's damage grows with its rate, in units of that at the middle rate.

    ``sees``: whether who sleeps first depends on the picture.
    """
    times = np.arange(k) / (k // 2)
    below = _GROWTH_SEEN if sees else _GROWTH_BELOW
    return np.where(times <= 1, times**below, times**_GROWTH_ABOVE)


def spread_rates(k: int, depth: int) -> np.ndarray:
    """0 and ``depth`` rates to measure, in 1/k.

    The middle one, at which patterns are most regular; the highest; then always what is farthest
    from those.
    """
    rates = [0, k // 2, k - 1][: depth + 1]
    while len(rates) <= depth:
        rates.append(max(range(k), key=lambda j: (min(abs(j - r) for r in rates), j)))
    return np.unique(rates)
