"""Rates at which areas of a picture may sleep, and what a frame takes at each on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from drowsy.network.net import DrowsyNet
from drowsy.tuning.clips.pace import pace
from drowsy.video.areas import REFRESH
from drowsy.video.motions import moved
from drowsy.video.ways import Way

# Rates that a slider may stand at, where a refresh has them.
_RATES = [Fraction(j, 8) for j in range(8)]
# Frames of noise that moves, which are shown meanwhile.
_FRAMES = 8


@dataclass(frozen=True)
class Rate:
    """Share of the picture that sleeps: a point that a governor may choose.

    Args:
        rate: that share.
        latency_ms: of a frame, the mean over those between which areas take turns.
    """

    rate: Fraction
    latency_ms: float
    # A clip without labels tells no loss before it is shown; joules are not measured.
    loss: None = None
    joules: None = None

    @property
    def saving(self) -> float:
        """The rate, as a number: governors take the least that holds their budgets."""
        return float(self.rate)


def rates_of(refresh: str) -> list[Fraction]:
    """The rates that a refresh has, the least first."""
    return [rate for rate in _RATES if _allowed(refresh, rate)]


def measured(net: DrowsyNet, like: Tensor, refresh: str, seconds: float) -> list[Rate]:
    """Milliseconds a frame at every rate, each beside the network awake.

    Args:
        net: a converted network.
        like: a frame ``[1, C, H, W]`` as it takes them; only its size, dtype and device count.
        refresh: of ``drowsy.Stream``.
        seconds: for all rates together; more where a network is slow.

    Raises:
        ValueError: a network that remembers nothing, as it has no graph.
    """
    noise = torch.rand(like.shape[1:], generator=torch.Generator().manual_seed(0))
    clip = moved(noise, "pan", _FRAMES).to(like)
    awake, *others = rates_of(refresh)
    each = seconds / len(others)
    found = {rate: pace(net, Way(refresh=refresh, rate=rate), clip, each) for rate in others}
    awake_ms = sorted(one.awake_ms for one in found.values())[len(found) // 2]
    return [
        Rate(awake, awake_ms),
        *(Rate(rate, one.mean * awake_ms) for rate, one in found.items()),
    ]


def _allowed(refresh: str, rate: Fraction) -> bool:
    try:
        REFRESH[refresh].check(rate)
    except ValueError:
        return False
    return True
