"""Whether targets are a network's at all: where awake it does no better than who guesses, they are
most likely not, and what sleeps then seems to lose nothing.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from drowsy.evaluation.metrics import Counts, Task
from drowsy.knob.metrics import METRICS

# So many standard deviations of the number of right guesses are left to chance: 5 of 100.
_CHANCE = 1.645
# A network that is right this much more often than guesses, of what these leave, and has so many
# standard deviations of bad luck, would seem to guess in one case of a thousand.
_SKILL, _LUCK = 0.2, 3.0
# Of maps and boxes of which not one is right.
_MANY = 16


def check_targets(task: Task, counts: Counts, outputs: Any, targets: Any) -> None:
    """Raise ValueError where a network awake does no better than guessing; warn where it may not.

    Args:
        task: classification, segmentation and detection are looked at.
        counts: awake, with values of the images.
        outputs: awake; of maps and boxes None will do.
        targets: as the task checked them; None for none.
    """
    metric = METRICS[task.quality(True)]
    if targets is None or not metric.is_fraction:
        return
    values = counts.values[metric.name]
    count, right = len(values), float(values.sum())
    if task.name == "classification":
        classes = outputs.shape[1]
        chance = 1 / classes
        most = count * chance + _CHANCE * math.sqrt(count * chance * (1 - chance))
        if right > most or right == count:
            return
        skill = chance + _SKILL * (1 - chance)
        sure = right < count * skill - _LUCK * math.sqrt(count * skill * (1 - skill))
        told = (
            f"labels: awake the network is right in {right:.0f} of {count} images, as who guesses "
            f"among {classes} classes is{_moved(outputs, targets, right, most)}"
        )
    else:
        if right > 0:
            return
        sure = count >= _MANY
        told = f"labels: awake the network has {metric.title} 0 on each of {count} images"
    told += (
        "; nothing can be lost of that, allowed: labels in the network's own numbers, or None to "
        "compare with the network awake"
    )
    if sure:
        raise ValueError(told)
    warnings.warn(told, stacklevel=3)


def _moved(outputs: Tensor, targets: Tensor, right: float, most: float) -> str:
    """Whether labels that are one off would be right, in words."""
    first = outputs.argmax(1)
    for step, why in ((-1, "do they count from 1?"), (1, "does the network have one class more?")):
        found = int((first == targets.to(first.device) + step).sum())
        if found > max(2 * right, most):
            return f"; with labels {step:+d} it is in {found}: {why}"
    return ""
