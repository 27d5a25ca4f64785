"""How long ways take for a frame, beside the awake network, on the machine at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drowsy.network.net import DrowsyNet
from drowsy.tuning.measuring import joules_of
from drowsy.tuning.timing import in_turns
from drowsy.video.ways import Player, Way

# Frames after which every way that skips begins anew.
_ROUND = 4
# Rounds before it counts: areas are met for the first time, and weights brought into order.
_WARM = 3


@dataclass(frozen=True)
class Pace:
    """Of the awake network's time for a frame: what a way takes in the mean, and at most.

    Args:
        mean, slowest: of a frame, as fractions.
        awake_ms: milliseconds a frame of the network, meanwhile.
    """

    mean: float
    slowest: float
    awake_ms: float


def pace(net: DrowsyNet, way: Way, clip: Tensor, seconds: float) -> Pace:
    """Time a way and the awake network, which take turns at every frame.

    Args:
        net: a converted network.
        way: what is timed.
        clip: frames ``[T, C, H, W]``, shown forth and back.
        seconds: for both together.
    """
    turns = _round(way)
    runs = {name: _Show(net, each, clip) for name, each in (("awake", Way()), ("way", way))}
    with torch.inference_mode():
        for _ in range(_WARM * turns):
            for run in runs.values():
                run()
    taken = in_turns(runs, seconds, cuda=clip.is_cuda, turns=2 * turns)
    awake, own = (np.array(taken[name]) for name in runs)
    whole = len(own) // turns * turns
    # What slows the machine down for a while slows neighbours down alike, which ratios do not see.
    of_a_round = np.median((own / awake)[:whole].reshape(-1, turns), axis=0)
    return Pace(float(of_a_round.mean()), float(of_a_round.max()), float(np.median(awake)))


def joules_a_frame(net: DrowsyNet, ways: Sequence[Way], clip: Tensor) -> list[float | None]:
    """Joules a frame of each way, some five seconds each; None where nothing meters the device.

    Args:
        net, clip: as for ``pace``.
        ways: what is metered.
    """

    def a_round(way: Way) -> Callable[[], None]:
        show = _Show(net, way, clip)

        def run() -> None:
            for _ in range(_round(way)):
                show()

        return run

    with torch.inference_mode():
        found = joules_of(
            {str(n): a_round(way) for n, way in enumerate(ways)},
            {str(n): _round(way) for n, way in enumerate(ways)},
            clip.device,
        )
    return list(found.values())


def _round(way: Way) -> int:
    """Frames after which a way begins anew, as every other one does."""
    return math.lcm(_ROUND, way.every)


class _Show:
    """A way that is shown a clip again and again, a frame a call, without a cut."""

    def __init__(self, net: DrowsyNet, way: Way, clip: Tensor) -> None:
        self._player = Player(net, way)
        self._frames = [*clip.split(1), *clip.flip(0).split(1)]
        self._next = 0

    def __call__(self) -> None:
        self._player(self._frames[self._next % len(self._frames)])
        self._next += 1
