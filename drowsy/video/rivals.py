"""Ways to spend less on a clip: remembering, and what it has to beat.

Each answers every frame of a clip, given what the awake network says of it. Skipping needs no more
than that: it repeats earlier answers.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.images.scaling import Size, scale_images
from drowsy.knob.costs import network_cost
from drowsy.network.net import DrowsyNet
from drowsy.video.cuts import DEFAULT_CUT
from drowsy.video.stream import Stream

Answer = tuple[Tensor, Tensor]
"""Logits ``[K]`` and the last feature map ``[C, h, w]``."""


@dataclass(frozen=True)
class Told:
    """What a way said of a clip.

    Args:
        answers: one a frame.
        work: share of the network's multiplications that each frame took.
    """

    answers: list[Answer]
    work: list[float]


Way = Callable[[DrowsyNet, Tensor, list[Answer]], Told]
"""A way to answer the frames ``[T, C, H, W]`` of a clip, given the awake network's answers."""


def every_nth(n: int) -> Way:
    """The awake network on every ``n``-th frame, at full work; its answer repeated in between."""

    def run(_: DrowsyNet, clip: Tensor, awake: list[Answer]) -> Told:
        at = [n * (time // n) for time in range(len(clip))]
        return Told([awake[i] for i in at], [float(i == time) for time, i in enumerate(at)])

    return run


def spread(n: int) -> Way:
    """The awake network on every ``n``-th frame, its work spread over ``n``: late, even power."""

    def run(_: DrowsyNet, clip: Tensor, awake: list[Answer]) -> Told:
        # Begun with frame n*j, an answer is there at the end of frame n*j + n - 1.
        at = [max(n * ((time - n + 1) // n), 0) for time in range(len(clip))]
        return Told([awake[i] for i in at], [1.0] + [1 / n] * (len(clip) - 1))

    return run


def scaled(saving: Fraction) -> Way:
    """Frames scaled down to the largest size that saves so much."""

    def run(net: DrowsyNet, clip: Tensor, awake: list[Answer]) -> Told:
        size, work = scaled_size(net, clip, saving)
        answers = []
        for frame in scale_images(clip, size, "bilinear").split(1):
            logits, features = net(frame)
            whole = awake[0][1].shape[1:]
            features = F.interpolate(features, whole, mode="bilinear", align_corners=False)
            answers.append((logits[0], features[0]))
        return Told(answers, [work] * len(answers))

    return run


def scaled_size(net: DrowsyNet, clip: Tensor, saving: Fraction) -> tuple[Size, float]:
    """The largest size that saves at least so much, and its share of the work."""
    channels, height, width = clip.shape[1:]
    short = min(height, width)

    def size(side: int) -> Size:
        return max(round(height * side / short), 1), max(round(width * side / short), 1)

    def work(side: int) -> float:
        return network_cost(net, (channels, *size(side))).multiplies / full

    full = network_cost(net, (channels, height, width)).multiplies
    # Below a quarter of the sides, networks of this kind answer nothing.
    sides = range(short // 4, short + 1)
    largest = sides[bisect.bisect_right(sides, float(1 - saving), key=work) - 1]
    return size(largest), work(largest)


def remembering(refresh: str, rate: Fraction, cut: float | None = DEFAULT_CUT) -> Way:
    """A stream."""

    def run(net: DrowsyNet, clip: Tensor, awake: list[Answer]) -> Told:
        stream = Stream(net, refresh=refresh, rate=rate, cut=cut)
        answers, work = [], []
        for frame in clip.split(1):
            logits, features = stream(frame)
            (look,) = stream.looks
            assert look is not None
            answers.append((logits[0], features[0]))
            work.append(look.work)
        return Told(answers, work)

    return run


def filling(rate: Fraction) -> Way:
    """Neurons asleep by a lattice in every frame, filled from their awake neighbours."""

    def run(net: DrowsyNet, clip: Tensor, awake: list[Answer]) -> Told:
        with net.kept():
            net.set(rate, fill="interpolate")
            answers = [_first(net(frame)) for frame in clip.split(1)]
        return Told(answers, [float(1 - rate)] * len(answers))

    return run


def ways(rate: Fraction) -> dict[str, Way]:
    """All ways at one saving of multiplications, by name."""
    n = round(1 / (1 - rate))
    found = {
        "spatial fill": filling(rate),
        "scaled down": scaled(rate),
        f"spread over {n}": spread(n),
        f"dense every {n}": every_nth(n),
        "bands": remembering("bands", rate),
    }
    if rate == Fraction(3, 4):
        found["quads"] = remembering("quads", rate)
    return found | {"change": remembering("change", rate)}


def awake_answers(net: DrowsyNet, clip: Tensor) -> list[Answer]:
    """What the awake network says of every frame."""
    with torch.inference_mode():
        return [_first(net(frame)) for frame in clip.split(1)]


def _first(output: Any) -> Answer:
    logits, features = output
    return logits[0], features[0]
