"""What a knob for video does with frames in a row: which areas are awake, and the answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import taken
from drowsy.evaluation.tasks import NAMES, find_task
from drowsy.knob.metrics import METRICS
from drowsy.tuning.clips.knob import VideoKnob
from drowsy.tuning.clips.point import VideoPoint
from drowsy.video.areas import Box

_WHY = {"first": "all: the first", "cut": "all: a cut", "turn": "all", "rate 0": "all"}


@dataclass(frozen=True)
class Moment:
    """A frame at a point.

    Args:
        boxes: the areas that were awake.
        computed: what was computed, in words.
        answer: of the network, in words; empty where its task has none to tell.
        strays: whether it is another answer than awake's.
    """

    boxes: tuple[Box, ...]
    computed: str
    answer: str
    strays: bool


class Film:
    """A clip, and what the awake network says of its frames.

    Args:
        knob: stays as it is.
        clip: frames ``[T, C, H, W]`` in a row.
        classes: their names; None for numbers.
    """

    def __init__(self, knob: VideoKnob, clip: Tensor, classes: Sequence[str] | None) -> None:
        self._knob, self._frames, self._classes = knob, clip.split(1), classes
        awake = [_at(knob, knob.awake)(frame) for frame in self._frames]
        told = str(knob.contents.made.get("task", "")).partition(" (")[0]
        # Of a function, which no file holds, nothing is known of its answers.
        self._task: Task | None = None
        if told in NAMES:
            self._task = find_task(told, clip[:1], None, lambda: taken(awake[0], 1))
            pairs = zip(awake, self._frames, strict=True)
            awake = [self._task.take(each, frame) for each, frame in pairs]
            known = awake[0].shape[1] if self._task.name == "classification" else None
            if classes is not None and len(classes) != known:
                raise ValueError(
                    f"classes: got {len(classes)} names, allowed: {known} of the network's"
                    if known
                    else f"classes: got some, allowed: None of a network for {told}"
                )
        self._awake: list[Any] = awake

    def at(self, point: VideoPoint) -> list[Moment]:
        """Its frames, one after another, at a point."""
        knob, found = _at(self._knob, point), []
        for frame, awake in zip(self._frames, self._awake, strict=True):
            output = knob(frame)
            (look,) = knob.looks
            assert look is not None, "it has looked at a frame"
            computed = _WHY.get(look.why, f"{look.work:.0%}")
            if look.why == "skipped":
                computed = "none: repeated"
            answer, strays = self._answer(output, awake, frame)
            found.append(Moment(look.boxes, computed, answer, strays))
        return found

    def _answer(self, output: Any, awake: Any, frame: Tensor) -> tuple[str, bool]:
        task = self._task
        if task is None:
            return "", False
        own = task.take(output, frame)
        if task.name == "classification":
            place, others = int(own[0].argmax()), int(awake[0].argmax())
            share = float(own[0].float().softmax(0)[place])
            name = f"class {place}" if self._classes is None else self._classes[place]
            return f"{name} {share:.0%}", place != others
        quality = task.quality(labelled=False)
        value = float(task.count(own, awake, None).values[quality][0])
        return METRICS[quality].told(value), False


def _at(knob: VideoKnob, point: VideoPoint) -> VideoKnob:
    """The knob at a point, with a memory of its own."""
    twin = copy.copy(knob)
    twin.set(point)
    return twin
