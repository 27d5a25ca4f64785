"""One viewer: what is set for this one alone, and what comes of it picture by picture."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from drowsy.knob.point import OperatingPoint
from drowsy.live import picture as pictures
from drowsy.live.budgets import OFFERED, Governing, unholdable
from drowsy.live.feed import Feed, Picture
from drowsy.live.hands import Hand, KnobHand, StreamHand
from drowsy.live.lines import Track
from drowsy.live.network import Network
from drowsy.live.sensing import Sensing
from drowsy.sensors import clock

# Every so many pictures are looked at awake too, and so many of these looks are remembered.
CHECKED, REMEMBERED = 4, 25


@dataclass(frozen=True)
class Shot:
    """What one picture came to.

    Args:
        picture: which it was.
        image: an address that holds it, with who sleeps over it.
        seen: what is laid over it, in words.
        answers: the network's, with their shares.
        told: the setting, in words.
        saved: what the setting saves of the hand's cost, as a fraction.
        point: of the knob; None for a stream.
        figures: by name, None where it was not measured: ``latency_ms``, ``watts``, ``celsius``,
            ``likeness`` (to the network awake, a mean of the last checks at this setting) and
            ``multiplied`` (share of the multiplications awake).
        checks: how many ``likeness`` is of.
    """

    picture: Picture
    image: str
    seen: str
    answers: list[tuple[str, float]]
    told: str
    saved: float
    point: OperatingPoint | None
    figures: dict[str, float | None]
    checks: int


class Viewer:
    """Settings of one viewer over what all share.

    Args:
        network, feed, sensing: shared.
        refresh: of a stream (``drowsy.Stream``); None turns the knob.

    Attributes:
        hand: what the slider turns.
        governing: holds budgets.
        layer: whose sleepers are shown; None for all layers.
        tracks: the last minute of each figure.
    """

    def __init__(
        self, network: Network, feed: Feed, sensing: Sensing, refresh: str | None = None
    ) -> None:
        self._network, self._feed, self._sensing = network, feed, sensing
        self.hand: Hand = KnobHand(network) if refresh is None else StreamHand(network, refresh)
        self.governing = Governing(self.hand, sensing)
        self.unholdable = {
            budget.name: why
            for budget in OFFERED
            if (why := unholdable(budget, self.hand, sensing))
        }
        self.layer: str | None = None
        self.tracks = {name: Track() for name in _FIGURES}
        self._seen = -1
        self._looks = 0
        self._checks: deque[float] = deque(maxlen=REMEMBERED)
        self._checked_at: Any = None
        self._looking, self._closed = False, False
        self._door = threading.Lock()

    @property
    def unmeasured(self) -> dict[str, str]:
        """Why there are no watts or degrees, by figure."""
        return self._sensing.why

    @property
    def point(self) -> OperatingPoint | None:
        """The knob's in force; None for a stream."""
        return self.hand.point if isinstance(self.hand, KnobHand) else None

    def save(self, saving: float) -> None:
        """Turn the slider: save at least this fraction, from the next picture on.

        Raises:
            ValueError, LookupError: no setting saves as much.
        """
        with self._network.lock:
            self.hand.save(saving)

    def hold(self, budgets: dict[str, float]) -> None:
        """Have a governor hold these budgets; none gives the slider back.

        Raises:
            ValueError: one that cannot be held. What was in force stays.
        """
        for name in budgets:
            if name in self.unholdable:
                raise ValueError(f"{name}: cannot be held: {self.unholdable[name]}")
        with self._network.lock:
            self.governing.hold(budgets)

    def look(self) -> Shot | None:
        """Run the network on the picture of the moment; None where that is still the last one."""
        self._begin()
        picture = self._feed.newest
        if picture is None or picture.number == self._seen:
            return None
        self._seen = picture.number
        frame = self._network.frame(picture.pixels)
        with self._network.lock:
            # The maps of this picture, whatever other viewers ran before.
            self._network.knob.reseed(0, picture.number)
            output, took = _timed(self.governing, frame)
            self._check(output, frame)
            image, seen = self._drawn(picture, frame)
        told, point = self.hand.told, self.point
        figures: dict[str, float | None] = {
            "latency_ms": took,
            **self._sensing.now(),
            "likeness": fmean(self._checks) if self._checks else None,
            "multiplied": self.hand.multiplied,
        }
        now = clock.now()
        for name, track in self.tracks.items():
            track.note(now, figures[name])
        return Shot(
            picture,
            image,
            seen,
            self._network.answers(output, frame),
            told,
            self.hand.saved,
            point,
            figures,
            len(self._checks),
        )

    def close(self) -> None:
        """Look no more."""
        with self._door:
            self._closed = True
            if self._looking:
                self._feed.leave()
            self._looking = False
        self.governing.close()

    def _begin(self) -> None:
        """With the first look it is one of those for whom pictures are decoded."""
        with self._door:
            if not self._looking and not self._closed:
                self._feed.join()
                self._looking = True

    def _check(self, output: Any, frame: Tensor) -> None:
        """Compare with the network awake, on some pictures; at another setting anew."""
        setting = self.hand.point, self.hand.saved
        if setting != self._checked_at:
            self._checks.clear()
            self._checked_at = setting
        if self._looks % CHECKED == 0:
            awake = self._network.awake(frame)
            self._checks.append(self._network.likeness(output, awake, frame))
        self._looks += 1

    def _drawn(self, picture: Picture, frame: Tensor) -> tuple[str, str]:
        """The picture with who sleeps over it, and that in words."""
        if isinstance(self.hand, StreamHand):
            look = self.hand.look
            assert look is not None, "it has looked at this picture"
            why = {"first": ", as this is its first", "cut": ", as the picture changed at once"}
            seen = f"areas that sleep are dark; {look.work:.0%} of the work"
            return pictures.of_stream(picture.pixels, look), seen + why.get(look.why, "")
        point, knob = self.hand.point, self._network.knob
        view = None if point.view is None or point.view.is_whole else point.view
        seen = "" if view is None or view.covers else "the dark border is not shown to the network"
        if not knob.share_asleep(point):
            return pictures.of_knob(picture.pixels, view, None), seen or "nobody sleeps"
        share = knob.sleep_map(frame, point, layer=self.layer, first=picture.number)[0]
        whose = "of all layers' work" if self.layer is None else f"of {self.layer}'s work"
        told = [f"violet sleeps: {float(share.mean()):.0%} {whose}", seen]
        return pictures.of_knob(picture.pixels, view, share), "; ".join(filter(None, told))


_FIGURES = ("latency_ms", "watts", "celsius", "likeness", "multiplied")


def _timed(run: Any, frame: Tensor) -> tuple[Any, float]:
    """What a frame comes to, and its milliseconds."""
    start = time.perf_counter()
    output = run(frame)
    if frame.is_cuda:
        torch.cuda.synchronize(frame.device)
    return output, 1e3 * (time.perf_counter() - start)
