"""A viewer's own hold on what all share: what it turns, only its own pictures follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from drowsy.knob.point import OperatingPoint
from drowsy.live.network import Network
from drowsy.live.rates import Rate
from drowsy.reporting.words import saves
from drowsy.video.stream import Look, Stream


class KnobHand:
    """Holds one point of the knob; a governor may turn it, as it would the knob.

    Attributes:
        point: at which this hand's calls run.
        saves: what the slider saves, in a word.
        most: the largest saving.
    """

    def __init__(self, network: Network) -> None:
        self._knob = network.knob
        self.point: OperatingPoint = self._knob.awake
        self.saves = saves(self._knob.cost)
        self.most = max(map(self._knob.saved, self._knob.points))

    @property
    def points(self) -> Sequence[OperatingPoint]:
        """What it can be set to."""
        return self._knob.points

    def set(self, point: OperatingPoint) -> None:
        """Hold this point from the next call on."""
        self.point = point

    def save(self, saving: float) -> None:
        """Hold the most accurate point that saves at least this; NoSuchPoint where none does."""
        with self._knob.at(saving=saving) as point:
            self.point = point

    @property
    def saved(self) -> float:
        """What the point saves, as a fraction of the cost awake."""
        return self._knob.saved(self.point)

    @property
    def multiplied(self) -> float:
        """Share of the multiplications awake that a picture takes."""
        return 1 - self.point.saving

    @property
    def told(self) -> str:
        """What the point does, in words."""
        return self._knob.describe(self.point)

    def __call__(self, frame: Tensor) -> Any:
        with self._knob.at(self.point):
            return self._knob(frame)


class StreamHand:
    """A stream of this viewer's own over the shared network: the slider is the rate of its areas.

    Attributes:
        points: the rates, with what a frame takes at each.
        point: the rate in force.
        saves, most: as for ``KnobHand``.

    Raises:
        ValueError: no such refresh.
    """

    saves = "multiplications"

    def __init__(self, network: Network, refresh: str) -> None:
        self._stream = Stream(network.converted, refresh=refresh, rate=0)
        self.points = network.rates(refresh)
        self.point = self.points[0]
        self.most = self.points[-1].saving

    def set(self, point: Rate) -> None:
        """Let this share of the picture sleep, from the next frame on."""
        self._stream.set(point.rate)
        self.point = point

    def save(self, saving: float) -> None:
        """Let the least share of the picture sleep that is at least this."""
        self.set(next(point for point in self.points if point.saving >= saving - 1e-9))

    @property
    def saved(self) -> float:
        """Share of the picture that sleeps."""
        return self.point.saving

    @property
    def look(self) -> Look | None:
        """What was awake in the last frame."""
        return self._stream.looks[0]

    @property
    def multiplied(self) -> float:
        """Share of the multiplications awake that the last frame took."""
        return 1.0 if self.look is None else self.look.work

    @property
    def told(self) -> str:
        """What is set, in words."""
        rate = self.point.rate
        return f"{self._stream.refresh}, {rate} of the picture asleep" if rate else "awake"

    def __call__(self, frame: Tensor) -> Any:
        return self._stream(frame)


Hand = KnobHand | StreamHand
