"""Clips as they are tuned on: two parts, to choose and to report, and what ways do on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy.evaluation.guessing import check_targets
from drowsy.evaluation.intervals import paired
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import joined
from drowsy.images.checks import as_tensor, check_clips
from drowsy.network.net import DrowsyNet
from drowsy.video.ways import Player, Way

# Frames in a row whose losses are one draw: neighbours err alike.
BLOCK = 8
# Frames of a part, at least.
_FEWEST = 6


@dataclass(frozen=True)
class Stretch:
    """Frames in a row ``[T, C, H, W]``, and what is right of them, if that is known."""

    frames: Tensor
    labels: Any

    def part(self, first: int, last: int) -> Stretch:
        """Some of its frames."""
        labels = None if self.labels is None else self.labels[first:last]
        return Stretch(self.frames[first:last], labels)


def gather(clips: Any, labels: Any, like: Tensor) -> list[Stretch]:
    """Clips with their labels, where the network is and in its dtype.

    Raises:
        TypeError, ValueError: other clips than tensors ``[T, C, H, W]``, one or in a list, of one
            size; labels that do not fit them.
    """
    alone = isinstance(clips, Tensor)
    if not alone and not isinstance(clips, (list, tuple)):
        raise TypeError(
            f"clips: got {type(clips).__name__}, allowed: a tensor [T, C, H, W], or a list of them"
        )
    given = [clips] if alone else list(clips)
    # A single clip is cut into two parts.
    fewest = 2 * _FEWEST if len(given) == 1 else _FEWEST
    check_clips({str(n): clip for n, clip in enumerate(given)}, fewest)
    if given[0].device != like.device:
        raise ValueError(
            f"clips: lie on {given[0].device}, the network on {like.device}, allowed: one device"
        )
    told = [None] * len(given)
    if labels is not None:
        told = [labels] if alone else _entries(labels, "labels", len(given), "clips")
        for n, (own, clip) in enumerate(zip(told, given, strict=True)):
            _entries(own, "labels" if alone else f"labels: clip {n}", len(clip), "frames")
    return [
        Stretch(clip.to(like.dtype), None if own is None else as_tensor(own))
        for clip, own in zip(given, told, strict=True)
    ]


def _entries(labels: Any, where: str, count: int, what: str) -> list[Any]:
    """Labels one by one; raises unless they are so many, in a form that has a length."""
    many = isinstance(labels, (list, tuple, range, np.ndarray, Tensor))
    if not many or getattr(labels, "ndim", 1) == 0:
        kind = "one number" if many else type(labels).__name__
        raise TypeError(
            f"{where}: got {kind}, allowed: a tensor, an array or a list, with one of each of "
            f"{count} {what}; or None for labels, without any"
        )
    if len(labels) != count:
        raise ValueError(f"{where}: got {len(labels)} for {count} {what}, allowed: one of each")
    return list(labels)


def split(stretches: Sequence[Stretch]) -> tuple[list[Stretch], list[Stretch], str]:
    """Those to choose by, those to report on, and how they were told apart."""
    if len(stretches) > 1:
        told = "every second clip is chosen on, the others are reported on"
        return list(stretches[::2]), list(stretches[1::2]), told
    (only,) = stretches
    half = len(only.frames) // 2
    told = "the first half of the clip is chosen on, the second is reported on"
    return [only.part(0, half)], [only.part(half, len(only.frames))], told


def shortened(stretches: Sequence[Stretch], frames: int) -> list[Stretch]:
    """The beginnings of these, so many frames of all together, or a few of each."""
    each = max(frames // len(stretches), _FEWEST)
    return [stretch.part(0, min(each, len(stretch.frames))) for stretch in stretches]


@dataclass(frozen=True)
class Seen:
    """What a way does on footage, of frames after the first of each stretch.

    Args:
        values: of every metric what it is of each frame, by stretch.
        work: mean share of the multiplications.
        peak: largest share of a frame that is not dense for a cut.
    """

    values: Mapping[str, list[np.ndarray]]
    work: float
    peak: float

    def each(self, metric: str) -> np.ndarray:
        """What a metric is of each frame."""
        return np.concatenate(self.values[metric])

    def figures(self) -> dict[str, float]:
        """The mean of every metric."""
        return {name: float(self.each(name).mean()) for name in self.values}


class Footage:
    """Stretches of clips, and what the awake network says of them.

    Args:
        net: a converted network.
        stretches: one or more.
        task: what outputs are, and how they are judged.
    """

    def __init__(self, net: DrowsyNet, stretches: Sequence[Stretch], task: Task) -> None:
        self.task, self._net, self._stretches = task, net, stretches
        self._labels = [
            None if each.labels is None else task.check(each.labels, each.frames)
            for each in stretches
        ]
        awake = Player(net, Way())
        self._awake = [
            [task.take(awake(frame), frame) for frame in each.frames.split(1)] for each in stretches
        ]

    @property
    def frames(self) -> int:
        """How many count."""
        return sum(len(each.frames) - 1 for each in self._stretches)

    def seen(self, way: Way) -> Seen:
        """What a way does."""
        values: dict[str, list[np.ndarray]] = {}
        work: list[float] = []
        steady: list[float] = []
        for stretch, labels, awake in zip(self._stretches, self._labels, self._awake, strict=True):
            player = Player(self._net, way)
            counted = []
            for time, frame in enumerate(stretch.frames.split(1)):
                output = self.task.take(player(frame), frame)
                (look,) = player.looks
                assert look is not None, "it has looked at a frame"
                if time == 0:
                    continue
                targets = None if labels is None else labels[time : time + 1]
                counted.append(self.task.count(output, awake[time], targets).values)
                work.append(look.work)
                steady += [look.work] if look.why != "cut" else []
            for name in counted[0]:
                each = np.array([float(one[name][0]) for one in counted])
                values.setdefault(name, []).append(each)
        return Seen(values, float(np.mean(work)), max(steady or work))

    def check_targets(self) -> None:
        """Raise ValueError or warn where the network awake does no better than who guesses.

        Raises:
            ValueError: labels that the network's outputs do not allow, too.
        """
        outputs = [output for awake in self._awake for output in awake]
        targets = [
            labels[time : time + 1]
            for labels, awake in zip(self._labels, self._awake, strict=True)
            for time in range(len(awake))
            if labels is not None
        ]
        if not targets:
            return
        first, *others = (
            self.task.count(output, output, each)
            for output, each in zip(outputs, targets, strict=True)
        )
        counts = sum(others, first)
        if self.task.name == "classification":
            check_targets(self.task, counts, joined(outputs), torch.cat(targets))
        else:
            check_targets(self.task, counts, None, targets)

    def lost(
        self, awake: Seen, seen: Seen, metric: str
    ) -> tuple[float, tuple[float, float] | None]:
        """How much less of a metric than awake, and the interval of blocks of frames in a row.

        None where these are one block, of which nothing can be drawn again.
        """
        loss = float(awake.each(metric).mean() - seen.each(metric).mean())
        one, other = (_blocks(each.values[metric]) for each in (awake, seen))
        if len(one) == 1:
            return loss, None
        found = paired(one, other)
        return loss, (found.low, found.high)


def _blocks(stretches: Sequence[np.ndarray]) -> np.ndarray:
    """Means of about ``BLOCK`` frames in a row."""
    return np.array(
        [
            part.mean()
            for values in stretches
            for part in np.array_split(values, max(round(len(values) / BLOCK), 1))
        ]
    )
