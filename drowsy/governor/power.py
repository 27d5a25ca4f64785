"""What a device draws and how hot it is, and the limits that watts, joules and degrees set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drowsy.governor.board import INTERVAL, Board, Reading
from drowsy.governor.channel import Channel
from drowsy.governor.credit import Credit
from drowsy.governor.estimator import OWN, Estimator
from drowsy.governor.pace import Pace
from drowsy.governor.policy import Limit, rise_to
from drowsy.governor.thermal import Thermal
from drowsy.sensors.sensor import MOST_WATTS

BUDGETS = ("watts", "celsius", "joules_per_image")

_SCALES = 0.6, 1.7  # least and most that our work may draw over what was recorded
_CHEAP = 22.0  # eight far readings until it is believed that less is drawn
# How much of its readings' noise the power may exceed its budget by: most of it is the sensor's,
# and a second evens out the rest; of heat, the time constant does.
_NOISE, _HEAT_NOISE = 0.35, 0.0
_AHEAD, _RISE_AHEAD = 0.05, 0.2  # of the device's time constant: to stay at a point, to rise to it
_MARGIN = 0.01, 0.10  # of a budget, a second without news, and at most
_DEGREES = 0.05, 3.0  # the same for a temperature
_LAG = 0.3  # seconds that sensors may be behind what they say
_LEAST_OF_DRAW = 0.7  # of what our work was recorded to draw that a device must be said to draw
_LEAST_WATTS = 1e-3  # that a limit of heat becomes, where nothing may be drawn


@dataclass(frozen=True)
class Draws:
    """What every point is expected to draw, as recorded and at the present pace; ``[points]``.

    Args:
        mine: watts of our own work.
        all: and of the other governors'.
        seconds: between calls.
        rate: images a second.
        others: watts of the other governors'.
        share: of what foreign load leaves.
    """

    mine: np.ndarray
    all: np.ndarray
    seconds: np.ndarray
    rate: np.ndarray
    others: float
    share: float


class Power:
    """A device as one governor has it.

    Args:
        owner: the governor.
        board: of the device.
        points: with the joules that were recorded.
        budgets: of ``BUDGETS`` those that there are.
        credits: of these.

    Attributes:
        limits: as of the last readings.
    """

    def __init__(
        self,
        owner: object,
        board: Board,
        points: Sequence[Any],
        budgets: Mapping[str, float],
        credits: Mapping[str, Credit],
    ) -> None:
        self._owner, self._board, self._budgets, self._credits = owner, board, budgets, credits
        self._joules = np.array([point.joules for point in points], float)
        self.limits: list[Limit] = []
        self._pace = Pace()
        self._read = 0  # number of the last reading that was used
        self._power = Estimator(len(points), offset_doubt=1.0, scales=_SCALES, cheap=_CHEAP)
        self._watts = Channel("watts", 0, MOST_WATTS)
        self._heat = Channel("celsius", -40, 150, stalls=False)
        self._thermal: Thermal | None = None
        self._thermal_at = 0.0
        self._draws: Draws | None = None
        self._followed_at = self._changed_at = -np.inf

    @property
    def celsius(self) -> float | None:
        """The temperature now; None before it was read."""
        return None if self._thermal is None else self._thermal.celsius

    def called(self, now: float) -> bool:
        """A call begins; whether there is anything to ``follow``: readings, or other draws."""
        self._pace.called(now)
        if self._pace.seconds is None:
            return False
        board = self._board
        return (
            board.newest > self._read
            or board.changed_at != self._changed_at
            or now - self._followed_at > INTERVAL
        )

    def follow(self, images: int, busy: np.ndarray | None, at: int, now: float) -> None:
        """Learn from new readings of the device, and set the limits.

        Args:
            images: in a batch.
            busy: seconds that a call takes, ``[points]``; None where it is not known.
            at: the present point.
        """
        self._followed_at, self._changed_at = now, self._board.changed_at
        self._draws = draws = self._expected_draws(images, busy, at, now)
        for number, reading in self._board.after(self._read):
            self._read = number
            watts = self._hear_watts(reading, draws, at)
            if "celsius" in self._budgets:
                self._hear_celsius(reading, watts, draws, at)
        self.limits = self._limits(draws, now)

    def turned(self, at: int, now: float) -> None:
        """The point is another one."""
        draws = self._draws
        if draws is not None:
            self._pace.turned(float(draws.seconds[at]))
            self._board.tell(self._owner, float(draws.mine[at]), float(draws.mine[0]), now)
        self._board.changed_at = now

    # --- what is expected -------------------------------------------------------------------------

    def _expected_draws(self, images: int, busy: np.ndarray | None, at: int, now: float) -> Draws:
        """What the points are expected to draw; the other governors are told."""
        seconds = self._pace.between(busy, at)
        if not isinstance(seconds, np.ndarray):
            seconds = np.full(len(self._joules), seconds)
        rate = images / seconds
        mine = self._joules * rate
        awake = float(mine[0])
        self._board.tell(self._owner, float(mine[at]), awake, now)
        others, others_awake = self._board.others(self._owner, now)
        return Draws(mine, mine + others, seconds, rate, others, awake / (awake + others_awake))

    # --- what is read -----------------------------------------------------------------------------

    def _hear_watts(self, reading: Reading, draws: Draws, at: int) -> float | None:
        """The device's power, where it is believed."""
        if "watts" not in self._board.tells:
            return None
        # No device draws much less than our own work alone was recorded to.
        least = _LEAST_OF_DRAW * float(draws.all[at])
        watts = self._watts.take(reading.watts, reading.why, least)
        if watts is None:
            return None
        self._watts.believe(reading.at)
        # What was drawn before a change says nothing of the point after it.
        if reading.since < self._board.changed_at + _LAG:
            return watts
        self._power.observe(at, float(draws.all[at]), watts)
        spent = {"watts": self._power.expect(draws.all, 0.0)[0]}
        spent["joules_per_image"] = spent["watts"] * draws.mine / (draws.all * draws.rate)
        for name, values in spent.items():
            if name in self._budgets:
                self._credits[name].measure(values > self._budgets[name], at)
        return watts

    def _hear_celsius(self, reading: Reading, watts: float | None, draws: Draws, at: int) -> None:
        celsius = self._heat.take(reading.celsius, reading.why)
        if self._thermal is None:
            if celsius is None:
                return
            self._thermal = Thermal(float(self._power.expect(draws.all, 0.0)[0].max()))
            self._thermal_at = reading.at
        if watts is None:
            watts = self._power.mean(at, float(draws.all[at]))
        self._thermal.advance(max(reading.at - self._thermal_at, 0.0), watts)
        self._thermal_at = max(reading.at, self._thermal_at)
        if celsius is None:
            return
        if self._thermal.observe(celsius):
            self._heat.believe(reading.at)
        else:
            self._heat.doubt(f"reads {celsius:.4g} where the model has {self._thermal.celsius:.4g}")
        # Of points that draw less nothing is known.
        over = (celsius > self._budgets["celsius"]) & (draws.all >= draws.all[at])
        self._credits["celsius"].measure(over, at)

    # --- what it allows ---------------------------------------------------------------------------

    def _limits(self, draws: Draws, now: float) -> list[Limit]:
        """Every budget as the policy sees it."""
        limits, budgets = [], self._budgets
        expected, doubt = self._power.expect(draws.all, _NOISE)
        rise = rise_to(_NOISE * self._power.noise)
        left = 1 - min(_MARGIN[0] * self._watts.quiet(now), _MARGIN[1])
        if "watts" in budgets:
            most = budgets["watts"] * left
            limits.append(self._shared("watts", most, most * rise, expected, doubt, draws))
        if "joules_per_image" in budgets:
            most = budgets["joules_per_image"] * left
            images = draws.rate * draws.all / draws.mine
            limits.append(
                Limit("joules_per_image", most, most * rise, expected / images, doubt / images)
            )
        if self._thermal is not None:
            margin = min(_DEGREES[0] * self._heat.quiet(now), _DEGREES[1])
            most, more = (
                max(self._thermal.most_watts(budgets["celsius"], ahead, margin), _LEAST_WATTS)
                for ahead in (_AHEAD, _RISE_AHEAD)
            )
            rise = min(more, most) * rise_to(_HEAT_NOISE)
            if "watts" in self._board.tells:
                expected, doubt = self._power.expect(draws.all, _HEAT_NOISE)
            else:
                # The device's heat was learned over these very watts, however wrong they are: all
                # that is in doubt is how points differ.
                expected, doubt = draws.all, OWN * draws.all
            limits.append(self._shared("celsius", most, rise, expected, doubt, draws))
        return limits

    def _shared(
        self,
        name: str,
        most: float,
        rise: float,
        expected: np.ndarray,
        doubt: np.ndarray,
        draws: Draws,
    ) -> Limit:
        """A limit of watts of the device, of which other governors have their shares."""
        if draws.others > 0:
            # What the others draw and our share beside it, whatever that adds up to: they come
            # down.
            foreign = self._power.offset
            beside = foreign + self._power.scale * draws.others
            most = max(most, beside + draws.share * (most - foreign))
            rise = max(rise, beside + draws.share * (rise - foreign))
        return Limit(name, most, rise, expected, doubt)
