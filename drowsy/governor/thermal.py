"""How hot the device will be: a first-order model whose every constant is learned.

    time constant * dT/dt = ambient + resistance * watts - T

Ambient (what the device would come to without a load, others' heat included), resistance and the
temperature itself are a Kalman filter's state, which is linear once the time constant is known. It
is not: so there is a filter for each of a range of time constants, each weighted by how well it
foretold the readings. What may be drawn is what the most careful of the credible ones allows.

Sensors round to a degree, so that a reading often repeats the last. Repeated for long it is either
true or stuck. It is then still believed where it is hotter than expected, and no longer where it is
colder: while nothing new is heard the model goes on by itself.
"""

from __future__ import annotations

import numpy as np

from drowsy.governor.estimator import BAD_NEWS

_CONSTANTS = np.geomspace(4, 512, 8)  # seconds
_ROUNDING = 0.4  # degrees: standard deviation of a reading, rounded to a degree
_AMBIENT = 30.0, 15.0  # degrees, and their standard deviation
_HEATED = 50.0  # degrees that the dearest point is thought to add, give or take half of it
_WANDER_AMBIENT = 0.08  # degrees: standard deviation after a second
_WANDER_RESISTANCE = 0.002  # of itself, after a second
_WANDER_TEMPERATURE = 0.05  # degrees, after a second: what a first-order model leaves out
_FORGETTING = 60.0  # seconds in which what models foretold loses two thirds of its weight
_CREDIBLE = 0.05  # of the most credible model's weight
_CERTAINTY = 2.0  # standard deviations kept from the limit
LEAST_AHEAD = 2.0  # seconds: what passes until a reading has led to a change, and that to less heat
_GATE = 5.0
_REPEATED = 20  # readings to the digit the same, after which cold ones are no news
_COLD_NEWS = 60  # implausibly cold ones, and no two the same, until they are believed


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
        self._repeats = self._odd = 0

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
        self._state = (step @ state[:, :, None])[:, :, 0]
        self._covariance = step @ covariance @ step.transpose(0, 2, 1)
        self._covariance[:, 0, 0] += seconds * _WANDER_TEMPERATURE**2
        self._covariance[:, 1, 1] += seconds * _WANDER_AMBIENT**2
        self._covariance[:, 2, 2] += seconds * (_WANDER_RESISTANCE * self._guess) ** 2
        self._evidence *= np.exp(-seconds / _FORGETTING)

    def observe(self, celsius: float) -> bool:
        """Learn from a reading; False where it is not believed."""
        first, self._repeats = self._last is None, self._repeats + 1
        if celsius != self._last:
            self._repeats, self._last = 0, celsius
        surprise = celsius - self._state[:, 0]
        variance = self._covariance[:, 0, 0] + _ROUNDING**2
        best = self._best
        cold = surprise[best] < 0
        if self._repeats > _REPEATED and cold:
            return surprise[best] ** 2 <= _GATE**2 * variance[best]
        if not first and surprise[best] ** 2 > _GATE**2 * variance[best]:
            self._odd = min(self._odd, 0) - 1 if cold else max(self._odd, 0) + 1
            if self._odd < BAD_NEWS and -self._odd < _COLD_NEWS:
                return False
            # Believed after all: all that was known of the present state is in doubt.
            self._covariance[:, 0, 0] += surprise**2
            self._covariance[:, 1, 1] += surprise**2
            variance = self._covariance[:, 0, 0] + _ROUNDING**2
        self._odd = 0
        self._evidence -= 0.5 * (np.minimum(surprise**2 / variance, _GATE**2) + np.log(variance))
        self._evidence -= self._evidence.max()
        gain = self._covariance[:, :, 0] / variance[:, None]
        self._state += gain * surprise[:, None]
        self._state[:, 2] = np.clip(self._state[:, 2], 0.05 * self._guess, 20 * self._guess)
        self._covariance -= gain[:, :, None] * gain[:, None, :] * variance[:, None, None]
        return True

    def most_watts(self, limit: float, ahead: float, margin: float = 0.0) -> float:
        """What may be drawn for a while from now on without exceeding the limit.

        Args:
            limit: degrees.
            ahead: how long, over the time constant; ``LEAST_AHEAD`` seconds at least.
            margin: degrees to stay below.
        """
        credible = self._evidence >= self._evidence.max() + np.log(_CREDIBLE)
        temperature, ambient, resistance = self._state[credible].T
        spread = np.sqrt(self._covariance[credible, 0, 0])
        toward = -np.expm1(-np.maximum(ahead, LEAST_AHEAD / _CONSTANTS[credible]))
        room = limit - margin - _CERTAINTY * spread - temperature
        return float((((room / toward) + temperature - ambient) / resistance).min())
