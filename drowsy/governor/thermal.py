"""How hot the device will be: a first-order model whose every constant is learned.

    time constant * dT/dt = ambient + resistance * watts - T

Ambient (what the device would come to without a load, others' heat included), resistance and the
temperature itself are a Kalman filter's state, which is linear once the time constant is known. It
is not: so there is a filter for each of a range of time constants, each weighted by how well it
foretold the readings.

Sensors round to a degree. A reading that repeats the last says little, and one that differs says
that the temperature has just passed between the two. One that still repeats itself when more power
must have heated the device by two degrees is stuck, and not believed until it moves: the model goes
on by itself.
"""

from __future__ import annotations

import numpy as np

_CONSTANTS = np.geomspace(4, 512, 8)  # seconds
# Standard deviation in steps of the sensor: of a reading, and of where it goes from one step to the
# next.
_ROUNDING, _CROSSING = 0.4, 0.4
_NEXT = 1.5  # steps that are one to the next
_STEP = 1.0, 0.1  # degrees: what sensors round to, until it is seen, and at least
_UNSEEN = 0.3  # of such a step: what the temperature may be above a reading that does not move
_MOST_REPEATS = 50  # after which a repeated reading says no less
_STUCK = 2.0  # degrees that added power must have brought while the reading did not move
_AMBIENT = 30.0, 15.0  # degrees, and their standard deviation
_HEATED = 50.0  # degrees that the dearest point is thought to add, give or take half of it
_FROM_GUESS = 5.0  # factor: how far the resistance can be from the guess
_WANDER_AMBIENT = 0.08  # degrees: standard deviation after a second
_WANDER_RESISTANCE = 0.002  # of itself, after a second
_WANDER_TEMPERATURE = 0.05  # degrees, after a second: what a first-order model leaves out
_FADE = 50_000.0  # seconds in which ambient and resistance come back to what was guessed
_FORGETTING = 60.0  # seconds in which what models foretold loses two thirds of its weight
_MOST_SPREAD = 1.5  # degrees: standard deviation of the temperature that is allowed for
_CERTAINTY = 1.5  # standard deviations kept from the limit
LEAST_AHEAD = 2.0  # seconds: what passes until a reading has led to a change, and that to less heat
_GATE = 5.0
_HOT_NEWS = 2  # implausibly hot readings in a row until they are believed
_COLD_NEWS = 150  # implausibly cold readings in a row until they are believed


class Thermal:
    """The device's temperature, now and to come.

    Args:
        watts: of the dearest point: the scale on which the unknown resistance is guessed.
    """

    def __init__(self, watts: float) -> None:
        models = len(_CONSTANTS)
        resistance = _HEATED / watts
        # Temperature, ambient, resistance.
        self._state = np.tile([_AMBIENT[0], _AMBIENT[0], resistance], (models, 1))
        self._covariance = np.tile(
            np.diag([1e4, _AMBIENT[1] ** 2, (resistance / 2) ** 2]), (models, 1, 1)
        )
        self._guess = resistance
        self._evidence = np.zeros(models)
        self._last: float | None = None
        self._step = _STEP[0]
        self._repeats = self._odd = 0
        # Power when the reading last moved, and what power above it has added to the heat since.
        self._watts_then, self._added = watts, 0.0
        self._watts = watts

    @property
    def celsius(self) -> float:
        """The temperature now, as the most credible model has it."""
        return float(self._state[self._best, 0])

    @property
    def time_constant(self) -> float:
        """Seconds, of the most credible model."""
        return float(_CONSTANTS[self._best])

    @property
    def _best(self) -> int:
        return int(self._evidence.argmax())

    def advance(self, seconds: float, watts: float) -> None:
        """Let time pass in which the device drew this much."""
        state, covariance = self._state, self._covariance
        toward = -np.expm1(-seconds / _CONSTANTS)
        step = np.tile(np.eye(3), (len(_CONSTANTS), 1, 1))
        step[:, 0, 0] -= toward
        step[:, 0, 1] = toward
        step[:, 0, 2] = toward * watts
        # What is never excited would drift without bounds: it fades to what was guessed.
        kept = np.exp(-seconds / _FADE)
        step[:, 1, 1] = step[:, 2, 2] = kept
        self._state = (step @ state[:, :, None])[:, :, 0]
        self._state[:, 1:] += (1 - kept) * np.array([_AMBIENT[0], self._guess])
        self._covariance = step @ covariance @ step.transpose(0, 2, 1)
        self._covariance[:, 0, 0] += seconds * _WANDER_TEMPERATURE**2
        self._covariance[:, 1, 1] += seconds * _WANDER_AMBIENT**2
        self._covariance[:, 2, 2] += seconds * (_WANDER_RESISTANCE * self._guess) ** 2
        self._evidence *= np.exp(-seconds / _FORGETTING)
        best = self._best
        added = float(state[best, 2]) * (watts - self._watts_then)
        self._added += float(toward[best]) * (added - self._added)
        self._watts = watts

    def observe(self, celsius: float) -> bool:
        """Learn from a reading; False where it is not believed."""
        first = self._last is None
        measured, noise = self._heard(celsius)
        if self._added > _STUCK:
            return False
        surprise = measured - self._state[:, 0]
        variance = self._covariance[:, 0, 0] + noise
        best = self._best
        cold = surprise[best] < 0
        if not first and surprise[best] ** 2 > _GATE**2 * variance[best]:
            self._odd = min(self._odd, 0) - 1 if cold else max(self._odd, 0) + 1
            if self._odd < _HOT_NEWS and -self._odd < _COLD_NEWS:
                return False
            # Believed after all: all that was known of the present state is in doubt.
            self._covariance[:, 0, 0] += surprise**2
            self._covariance[:, 1, 1] += surprise**2
            variance = self._covariance[:, 0, 0] + noise
        self._odd = 0
        self._evidence -= 0.5 * (np.minimum(surprise**2 / variance, _GATE**2) + np.log(variance))
        self._evidence -= self._evidence.max()
        gain = self._covariance[:, :, 0] / variance[:, None]
        self._state += gain * surprise[:, None]
        self._state[:, 2] = np.clip(
            self._state[:, 2], self._guess / _FROM_GUESS, self._guess * _FROM_GUESS
        )
        self._covariance -= gain[:, :, None] * gain[:, None, :] * variance[:, None, None]
        return True

    def _heard(self, celsius: float) -> tuple[float, float]:
        """What a reading says of the temperature, and the variance of that."""
        last, self._last = self._last, celsius
        if celsius == last:
            self._repeats = min(self._repeats + 1, _MOST_REPEATS)
            return celsius, (_ROUNDING * self._step) ** 2 * (1 + self._repeats)
        self._repeats, self._watts_then, self._added = 0, self._watts, 0.0
        if last is None:
            return celsius, _ROUNDING**2
        far = abs(celsius - last)
        self._step = max(min(self._step, far), _STEP[1])
        if far > _NEXT * self._step:
            return celsius, (_ROUNDING * self._step) ** 2
        return (celsius + last) / 2, (_CROSSING * self._step) ** 2

    def most_watts(self, limit: float, ahead: float, margin: float = 0.0) -> float:
        """What may be drawn for a while from now on without exceeding the limit.

        Args:
            limit: degrees.
            ahead: how long, over the time constant, beside ``LEAST_AHEAD`` seconds.
            margin: degrees to stay below.
        """
        temperature, ambient, resistance = self._state.T
        spread = np.minimum(np.sqrt(self._covariance[:, 0, 0]), _MOST_SPREAD)
        toward = -np.expm1(-(ahead + LEAST_AHEAD / _CONSTANTS))
        margin += _UNSEEN * self._step
        room = limit - margin - _CERTAINTY * spread - temperature
        allowed = (room / toward + temperature - ambient) / resistance
        weights = np.exp(self._evidence)
        return float(allowed @ weights / weights.sum())
