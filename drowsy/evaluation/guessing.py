"""Whether targets are a network's at all: where awake it does no better with an image's own than
with those of other images, they are most likely not, and what sleeps then seems to lose nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.evaluation.metrics import Counts, Task
from drowsy.knob.metrics import METRICS

# Targets are shuffled so many times. Where none of these does as well, they are no guesses: guesses
# pass for right in one case of a thousand. Where more than 5 of 100 do, they may well be.
_SHUFFLES, _SURELY, _LIKELY = 999, 0.001, 0.05
# A network that is right this much more often than guesses, of what these leave, would seem to
# guess in one case of a thousand.
_SKILL, _LUCK = 0.2, 0.001
# Of maps and boxes of which not one is right, and of maps that are as those of others.
_MANY = 16
# So many images are shuffled; of maps so few, of so many pixels a side.
_MOST, _MAPS, _SIDE = 4096, 64, 32


def looked_at(task: Task, outputs: Any, start: int = 0) -> Tensor | None:
    """What ``check_targets`` needs of a task's outputs for a batch that starts there."""
    if task.name == "classification":
        found: Tensor = outputs
        return found
    if task.name == "segmentation" and start < _MAPS:
        return _thinned(outputs)
    return None


def check_targets(task: Task, counts: Counts, outputs: Tensor | None, targets: Any) -> None:
    """Raise ValueError where a network awake does no better than guessing; warn where it may not.

    Args:
        task: classification, segmentation and detection are looked at.
        counts: awake, with values of the images.
        outputs: awake, as ``looked_at`` keeps them; of maps these may be of the first images alone.
        targets: as the task checked them; None for none.
    """
    metric = METRICS[task.quality(True)]
    if targets is None or not metric.is_fraction:
        return
    values = counts.values[metric.name]
    count, right = len(values), float(values.sum())
    if right == count:
        return
    if task.name == "classification" and outputs is not None:
        found = _of_labels(outputs, targets, right)
    elif right == 0:
        found = f"awake the network has {metric.title} 0 on each of {count} images", count >= _MANY
    elif task.name == "segmentation" and outputs is not None:
        found = _of_maps(task, outputs, targets)
    else:
        found = None
    if found is None:
        return
    told = (
        f"labels: {found[0]}; nothing can be lost of that, allowed: labels in the network's own "
        "numbers, or None to compare with the network awake"
    )
    if found[1]:
        raise ValueError(told)
    warnings.warn(told, stacklevel=3)


def _of_labels(outputs: Tensor, labels: Tensor, right: float) -> tuple[str, bool] | None:
    """What is wrong with classes, and whether surely; None for nothing."""
    count, classes = outputs.shape[:2]
    first, labels = outputs.argmax(1).cpu(), labels.cpu()
    some, theirs = first[:_MOST], labels[:_MOST]
    # Shuffled labels of one class are the same labels.
    alike = bool((theirs == theirs[0]).all())

    def guessed(order: Tensor, generator: torch.Generator) -> float:
        other = torch.randint(classes, order.shape, generator=generator) if alike else theirs[order]
        return float((some == other).double().mean())

    own = float((some == theirs).double().mean())
    likely, chance = _as_good(own, guessed, len(some))
    sure = _at_most(round(right), count, chance + _SKILL * (1 - chance)) < _LUCK
    if likely <= (_SURELY if sure else _LIKELY):
        return None
    told = (
        f"awake the network is right in {right:.0f} of {count} images, as who guesses among "
        f"{classes} classes (by chance: {chance * count:.3g})"
    )
    # Labels that are one off.
    for step, why in ((-1, "do they count from 1?"), (1, "does the network have one class more?")):
        moved = int((first == labels + step).sum())
        if moved > 2 * max(right, chance * count):
            told += f"; with labels {step:+d} it is in {moved}: {why}"
            break
    return told, sure


def _of_maps(task: Task, outputs: Tensor, labels: Tensor) -> tuple[str, bool] | None:
    """What is wrong with maps of classes, and whether surely; None for nothing."""
    outputs = outputs[:_MAPS]
    first = _thinned(outputs).argmax(1).cpu()
    labels = labels[: len(first)].cpu()
    # Nearest: classes are no numbers.
    theirs = F.interpolate(labels[:, None].double(), first.shape[-2:]).long().flatten(1)
    first, counting = first.flatten(1), theirs != task.told[1]
    if (theirs == theirs[0]).all():
        return None
    shares = torch.stack(
        [
            ((first == each) & there).sum(1) / there.sum().clamp(min=1)
            for each, there in zip(theirs, counting, strict=True)
        ],
        1,
    ).double()
    own = float(shares.diagonal().mean())

    def guessed(order: Tensor, _: torch.Generator) -> float:
        return float(shares[torch.arange(len(order)), order].mean())

    likely, chance = _as_good(own, guessed, len(first))
    sure = len(first) >= _MANY and likely > _LIKELY
    if likely <= (_SURELY if len(first) >= _MANY else _LIKELY):
        return None
    return (
        f"awake the network is right in {own:.1%} of the pixels of {len(first)} images, and with "
        f"the maps of other images in {chance:.1%}"
    ), sure


def _as_good(
    own: float, guessed: Callable[[Tensor, torch.Generator], float], count: int
) -> tuple[float, float]:
    """How likely guesses are as good as ``own``, and how good they are."""
    generator = torch.Generator().manual_seed(0)
    found = [
        guessed(torch.randperm(count, generator=generator), generator) for _ in range(_SHUFFLES)
    ]
    # What is the same in another order is equal but for rounding.
    as_good = sum(each >= own - 1e-9 for each in found)
    return (1 + as_good) / (1 + _SHUFFLES), math.fsum(found) / _SHUFFLES


def _at_most(right: int, count: int, share: float) -> float:
    """How likely so few of ``count`` are right: the tail of the binomial."""
    if share >= 1:
        return float(right >= count)
    one, zero = math.log(share), math.log1p(-share)
    every = math.lgamma(count + 1)
    return math.fsum(
        math.exp(
            every - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * one + (count - k) * zero
        )
        for k in range(right + 1)
    )


def _thinned(maps: Tensor) -> Tensor:
    """``[N, C, H, W]`` of at most ``_SIDE`` pixels a side, evenly apart."""
    sides = [min(_SIDE, side) for side in maps.shape[-2:]]
    return F.interpolate(maps, sides)
