"""Clips as they are tuned on: two parts, to choose and to report, and what ways do on them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy.evaluation.guessing import check_targets
from drowsy.evaluation.identity import Context, fingerprint_data, fingerprint_network
from drowsy.evaluation.intervals import grouped
from drowsy.evaluation.metrics import Counts, Task
from drowsy.evaluation.outputs import joined
from drowsy.evaluation.store import Store
from drowsy.images.checks import as_tensor, check_clips
from drowsy.network.net import DrowsyNet
from drowsy.tuning.journal import Journal
from drowsy.video.ways import Player, Way

# Frames in a row whose losses are one draw: neighbours err alike.
BLOCK = 8
# Frames of a part, at least.
_FEWEST = 6
# The one setting in the store of a way, which is its context's.
_ONLY = (0,)


@dataclass(frozen=True)
class Stretch:
    """Frames in a row ``[T, C, H, W]``, and what is right of them, if that is known."""

    frames: Tensor
    labels: Any

    def part(self, first: int, last: int) -> Stretch:
        """Some of its frames."""
        labels = None if self.labels is None else self.labels[first:last]
        return Stretch(self.frames[first:last], labels)


def gather(clips: Any, labels: Any, like: Tensor, *, cut: bool = True) -> list[Stretch]:
    """Clips with their labels, where the network is and in its dtype.

    Args:
        clips, labels: as for ``drowsy.tune``.
        like: any of the network's parameters.
        cut: whether a single clip will be cut into two parts.

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
    fewest = 2 * _FEWEST if cut and len(given) == 1 else _FEWEST
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


def fingerprint_clips(stretches: Sequence[Stretch]) -> str:
    """SHA-256 over the frames as the network sees them, and their labels, clip by clip."""
    digest = hashlib.sha256()
    for each in stretches:
        digest.update(fingerprint_data(each.frames, each.labels).encode())
    return digest.hexdigest()


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
        store, journal: where what ways do is kept, by which a run resumes; None keeps nothing.
    """

    def __init__(
        self,
        net: DrowsyNet,
        stretches: Sequence[Stretch],
        task: Task,
        store: Store | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.task, self._net, self._stretches = task, net, stretches
        self._store, self._journal = store, Journal(None, {}) if journal is None else journal
        self._labels = [
            None if each.labels is None else task.check(each.labels, each.frames)
            for each in stretches
        ]

    @cached_property
    def _awake(self) -> list[list[Any]]:
        """What the network as it is says of every frame, by stretch."""
        awake = Player(self._net, Way())
        return [
            [self.task.take(awake(frame), frame) for frame in each.frames.split(1)]
            for each in self._stretches
        ]

    @cached_property
    def _known_by(self) -> tuple[str, str]:
        """Fingerprints of the network and of what it is shown."""
        return fingerprint_network(self._net), fingerprint_clips(self._stretches)

    @property
    def frames(self) -> int:
        """How many count."""
        return sum(len(each.frames) - 1 for each in self._stretches)

    def steady(self, metric: str) -> float:
        """How good by a metric the awake network's answer to the frame before is for a frame."""
        return float(
            np.mean(
                [
                    self.task.count(before, now, None).values[metric][0]
                    for awake in self._awake
                    for before, now in itertools.pairwise(awake)
                ]
            )
        )

    def seen(self, way: Way) -> Seen:
        """What a way does, as it is known, or found now and kept."""
        if self._store is None:
            return self._seen(*self._looked_at(way))
        network, data = self._known_by
        told: dict[str, Any] = {"way": way.to_dict()}
        if self.task.told is not None:
            told["task"] = self.task.told
        context = Context(network, data, told, 0)
        counts, work = self._store.results(context).get(_ONLY), None
        if counts is None:
            counts, work = self._looked_at(way)
            self._store.put(context, _ONLY, counts)
        key = f"work on {data[:16]}: {way}"
        return self._seen(counts, self._journal.get(key, lambda: work or self._looked_at(way)[1]))

    def _seen(self, counts: Counts, work: Sequence[float]) -> Seen:
        ends = np.cumsum([len(each.frames) - 1 for each in self._stretches])[:-1]
        values = {
            name: np.split(each.astype(np.float64), ends) for name, each in counts.values.items()
        }
        mean, peak = work
        return Seen(values, mean, peak)

    def _looked_at(self, way: Way) -> tuple[Counts, tuple[float, float]]:
        """Of frames that count: every metric, and the mean and largest share of the work."""
        counted: list[Counts] = []
        work: list[float] = []
        steady: list[float] = []
        for stretch, labels, awake in zip(self._stretches, self._labels, self._awake, strict=True):
            player = Player(self._net, way)
            for time, frame in enumerate(stretch.frames.split(1)):
                output = self.task.take(player(frame), frame)
                (look,) = player.looks
                assert look is not None, "it has looked at a frame"
                if time == 0:
                    continue
                targets = None if labels is None else labels[time : time + 1]
                counted.append(self.task.count(output, awake[time], targets))
                work.append(look.work)
                steady += [look.work] if look.why != "cut" else []
        first, *others = counted
        return sum(others, first), (float(np.mean(work)), max(steady or work))

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
        """How much less of a metric than awake, and the interval of clips and blocks of frames.

        Clips are drawn again, and in each of them blocks of frames in a row; None where all are one
        block, of which nothing can be drawn again.
        """
        loss = float(awake.each(metric).mean() - seen.each(metric).mean())
        pairs = zip(awake.values[metric], seen.values[metric], strict=True)
        clips = [_blocks(one - other) for one, other in pairs]
        if sum(map(len, clips)) == 1:
            return loss, None
        found = grouped(clips)
        return loss, (found.low, found.high)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Means of about ``BLOCK`` frames in a row."""
    parts = np.array_split(values, max(round(len(values) / BLOCK), 1))
    return np.array([part.mean() for part in parts])
