"""What each point costs here and now, from what was recorded for it and what is measured.

    figure = offset + (scale + own[point]) * recorded[point]

*Offset* is what others take (a device's other load), *scale* how this machine, now, differs from
the recording, and *own* how one point does. All three are learned by one Kalman filter; latencies,
which stretch as a whole, have no offset. What is learned at one point so tells of all the others,
and the doubt that is left grows with the distance from what was measured.

**Steps.** A measurement far from what was expected is a fault, a hiccup, or the world that changed.
It is not learned from at first. What is not expected adds up (a sum of standard deviations beyond
the first, Page's test): two far ones on the dear side are believed, or some more that are nearer.
On the cheap side it takes more of them: to be wrong about the first costs a little accuracy, to be
wrong about the second breaks a budget. How many it takes on the dear side is learned too: where far
ones have mostly been followed by more the first is believed, where they have come alone the third.

**Own** corrections fade, those of points that are not visited too: a point that was found dear
while others were busy is tried again.
"""

from __future__ import annotations

import numpy as np

_GATE = 4.0  # standard deviations that a measurement may be off to be learned from at once
_DRIFT = 1.0  # standard deviations a measurement that do not add up
# What adds up to a step, of which far ones each add 3: where none was followed by another, how much
# less where all were, and at least: one far one.
_DEAR = 8.0, 6.0, 2.9
_FOLLOWED = 0.5, 0.1  # share of far ones that are followed by more: at first, and the gain of one
_NOISE = 0.02, 0.003, 0.3  # standard deviation over the figure: at first, least, most
_NOISE_GAIN = 0.02  # of one measurement on the noise
_WANDER = 0.03  # variance a measurement over the noise's: the last six or so count
OWN = 0.02  # standard deviation of points' own corrections
_FADE = 32 / 30_000  # of own corrections, every 32 measurements


class Estimator:
    """Figures of all points, in the unit of what is recorded.

    Args:
        points: how many there are. scale_doubt: standard deviation of the scale, which is thought
        to be 1. offset_doubt: standard deviation of the offset in the figure's unit; 0: there is
        none. scales: least and most that the scale can be. cheap: standard deviations that add up
        to a step to what costs less; of far measurements each
            adds 3.
    """

    def __init__(
        self,
        points: int,
        *,
        scale_doubt: float = 0.1,
        offset_doubt: float = 0.0,
        scales: tuple[float, float] = (1e-9, 1e9),
        cheap: float = 10.0,
    ) -> None:
        self.offset, self.scale, self.own = 0.0, 1.0, np.zeros(points)
        # Covariance of offset and scale; own corrections are taken as independent.
        self._oo, self._os, self._ss = offset_doubt**2, 0.0, scale_doubt**2
        self._own_variance = np.full(points, OWN**2)
        self._has_offset, self._scales, self._cheap = offset_doubt > 0, scales, cheap
        self._noise = _NOISE[0] ** 2
        self._sums = 0.0, 0.0  # of what was dearer than expected, and cheaper
        self._followed = _FOLLOWED[0]
        # After a far one: offset and scale before it, and the factor of these that the next exceeds
        # if it follows.
        self._before: tuple[float, float, float] | None = None
        self.seen = 0
        self.warm = False  # whether what is measured was measured before, the first time aside

    @property
    def noise(self) -> float:
        """Standard deviation of a measurement over the figure."""
        return float(self._noise**0.5)

    def expect(self, recorded: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Figures of all points, and standard deviations.

        Args:
            recorded: float64 ``[points]``: what these would measure if nothing had changed.
            noise: how much of a measurement's noise, which is an extent of the figure's own and not
                of the sensor, counts: 0, of the figure's mean; 1, of each measurement.
        """
        mean = self.offset + (self.scale + self.own) * recorded
        variance = (self._ss + self._own_variance) * recorded
        variance += 2 * self._os
        variance *= recorded
        variance += self._oo
        return mean, np.sqrt(variance + (noise * noise * self._noise) * mean * mean)

    def mean(self, point: int, recorded: float) -> float:
        """The figure of one point."""
        return self.offset + (self.scale + float(self.own[point])) * recorded

    def observe(self, point: int, recorded: float, measured: float) -> None:
        """Learn from one measurement at a point."""
        mean = self.mean(point, recorded)
        noise = self._noise * mean * mean
        if self._has_offset:
            self._oo += _WANDER * noise
        else:
            self._ss += _WANDER * noise / recorded**2
        variance = self._variance(point, recorded) + noise
        surprise = measured - mean
        deviations = surprise / variance**0.5
        far = abs(deviations) > _GATE
        self._hear_what_follows(deviations, recorded, measured, mean)
        if self._stepped(deviations) or not self.seen:
            # Of the others' load where there may be one, else of everything.
            if self._has_offset:
                self._oo += surprise * surprise
            else:
                self._ss += (surprise / recorded) ** 2
            variance += surprise * surprise
        elif far:
            return
        else:
            relative = min((surprise / mean) ** 2, 9 * self._noise)
            self._noise += _NOISE_GAIN * (relative - self._noise)
            self._noise = min(max(self._noise, _NOISE[1] ** 2), _NOISE[2] ** 2)
        self._learn(point, recorded, surprise, variance)

    def _variance(self, point: int, recorded: float) -> float:
        own = float(self._own_variance[point])
        return self._oo + recorded * (2 * self._os + recorded * (self._ss + own))

    def _hear_what_follows(
        self, deviations: float, recorded: float, measured: float, mean: float
    ) -> None:
        """Whether the first of far dear measurements is followed by another."""
        if self._before is not None:
            offset, scale, factor = self._before
            followed = measured > factor * (offset + scale * recorded)
            self._followed += _FOLLOWED[1] * (followed - self._followed)
            self._before = None
        elif deviations > _GATE:
            self._before = self.offset, self.scale, (1 + measured / mean) / 2

    def _stepped(self, deviations: float) -> bool:
        """Whether what was not expected has added up to a step."""
        deviations = min(max(deviations, -_GATE), _GATE)
        dear = max(self._sums[0] + deviations - _DRIFT, 0.0)
        cheap = max(self._sums[1] - deviations - _DRIFT, 0.0)
        enough = max(_DEAR[0] - _DEAR[1] * self._followed, _DEAR[2])
        stepped = dear > enough or cheap > self._cheap
        self._sums = (0.0, 0.0) if stepped else (dear, cheap)
        return stepped

    def _learn(self, point: int, recorded: float, surprise: float, variance: float) -> None:
        offset_gain = (self._oo + recorded * self._os) / variance
        scale_gain = (self._os + recorded * self._ss) / variance
        own_gain = recorded * float(self._own_variance[point]) / variance
        low, high = self._scales
        self.offset = max(self.offset + offset_gain * surprise, 0.0)
        self.scale = min(max(self.scale + scale_gain * surprise, low), high)
        self.own[point] += own_gain * surprise
        self._oo -= offset_gain * offset_gain * variance
        self._os -= offset_gain * scale_gain * variance
        self._ss -= scale_gain * scale_gain * variance
        self._own_variance[point] -= own_gain * recorded * float(self._own_variance[point])
        self.seen += 1
        if self.seen % 32 == 0:
            self.own *= 1 - _FADE
            self._own_variance += _FADE * (OWN**2 - self._own_variance)
