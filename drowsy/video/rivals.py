"""What remembering has to beat: every way to spend less on a clip, at one saving.

Each answers every frame of a clip, given what the awake network says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from drowsy.images.scaling import Size
from drowsy.network.net import DrowsyNet
from drowsy.video.cuts import DEFAULT_CUT, Cuts
from drowsy.video.ways import Player, Way


@dataclass(frozen=True)
class Told:
    """What was said of a clip.

    Args:
        answers: the network's outputs, one a frame.
        work: share of the network's multiplications that each frame took.
    """

    answers: Sequence[Any]
    work: Sequence[float]


Rival = Callable[[DrowsyNet, Tensor, Sequence[Any]], Told]
"""Answers the frames ``[T, C, H, W]`` of a clip, given the awake network's answers."""


def played(way: Way, cut: float | None = DEFAULT_CUT) -> Rival:
    """A way that frames can be answered by one after another."""

    def run(net: DrowsyNet, clip: Tensor, awake: Sequence[Any]) -> Told:
        player = Player(net, way, cut=cut)
        answers, work = [], []
        for frame in clip.split(1):
            answers.append(player(frame))
            (look,) = player.looks
            assert look is not None, "it has looked at a frame"
            work.append(look.work)
        return Told(answers, work)

    return run


def spread(n: int) -> Rival:
    """The awake network on every ``n``-th frame, its work spread over ``n``: late, even power.

    After a cut it begins with that frame, and until its answer is there repeats the one before.
    """

    def run(_: DrowsyNet, clip: Tensor, awake: Sequence[Any]) -> Told:
        cuts, begun, answers = Cuts(), 0, [awake[0]]
        cuts.found(clip[0])
        for time, frame in enumerate(clip[1:], 1):
            if cuts.found(frame):
                begun = time
            # Begun with a frame, an answer is there at the end of the n-th, itself the first.
            there = time - begun + 1
            answers.append(awake[begun] if there == n else answers[-1])
            begun += n if there == n else 0
        return Told(answers, [1.0] + [1 / n] * (len(clip) - 1))

    return run


def filling(rate: Fraction) -> Rival:
    """Neurons asleep by a lattice in every frame, filled from their awake neighbours."""

    def run(net: DrowsyNet, clip: Tensor, awake: Sequence[Any]) -> Told:
        with net.kept():
            net.set(rate, fill="interpolate")
            answers = [net(frame) for frame in clip.split(1)]
        return Told(answers, [float(1 - rate)] * len(answers))

    return run


def rivals(rate: Fraction, size: Size | None) -> dict[str, Rival]:
    """All of them at one saving of multiplications, by name.

    Args:
        rate: share of the multiplications to save, 1/2 or 3/4, say.
        size: ``(H, W)`` of frames that saves so much; None where the network takes no other.
    """
    n = round(1 / (1 - rate))
    found = {"spatial fill": filling(rate)}
    if size is not None:
        found["scaled down"] = played(Way(size=size))
    found[f"spread over {n}"] = spread(n)
    found[f"dense every {n}"] = played(Way(every=n))
    for refresh in ("bands", "quads", "change"):
        # At 1/2 quads are two bands of half the width each.
        if refresh != "quads" or rate == Fraction(3, 4):
            found[refresh] = played(Way(refresh=refresh, rate=rate))
    return found


def awake_answers(net: DrowsyNet, clip: Tensor) -> list[Any]:
    """What the awake network says of every frame ``[T, C, H, W]``."""
    with torch.inference_mode():
        return [net(frame) for frame in clip.split(1)]
