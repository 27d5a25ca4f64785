"""Classification: outputs are logits ``[N, classes]``, labels are classes ``[N]``."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import main
from drowsy.images.checks import as_tensor, check_labels


def check_logits(output: Any, images: Tensor) -> Tensor:
    """What a network put out for these images, in float32.

    Raises:
        TypeError: no tensor, alone or as ``logits``.
        ValueError: not one row for each image.
    """
    allowed = "one tensor of logits [N, classes]"
    found = main(output)
    if found is None:
        raise TypeError(f"model: its output is {type(output).__name__}, allowed: {allowed}")
    if found.dim() != 2 or len(found) != len(images):
        raise ValueError(
            f"model: its output has shape {tuple(found.shape)} for {len(images)} images, "
            f"allowed: {allowed}"
        )
    return found.float()


def check_classes(labels: Any, images: Tensor) -> Tensor:
    """Labels as int64 ``[N]``; raises as ``check_labels`` does."""
    labels = as_tensor(labels)
    check_labels(labels, images)
    return labels


class Answers:
    """Logits, those that they compare with, and the right answers where these are known.

    Raises:
        ValueError: a label that is none of the network's classes.
    """

    def __init__(self, logits: Tensor, baseline: Tensor, labels: Tensor | None) -> None:
        if labels is not None:
            low, high = labels.aminmax()
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(
                    f"labels: got {int(low)} to {int(high)}, allowed: 0 to {logits.shape[1] - 1}, "
                    "the network's classes"
                )
        self.logits, self.baseline, self.labels = logits, baseline, labels

    @functools.cached_property
    def place(self) -> Tensor:
        """int64 ``[N]``: how many classes come before the label."""
        assert self.labels is not None
        return rank(self.logits, self.labels.to(self.logits.device))

    def right_within(self, places: int) -> Tensor:
        """Bool ``[N]``: whether the label is among the first so many choices."""
        return self.place < places

    def agreeing(self) -> Tensor:
        """Bool ``[N]``: whether the first choice is the baseline's."""
        return rank(self.logits, self.baseline.argmax(1)) < 1

    def divergence(self) -> Tensor:
        """KL(baseline || this) in nats, ``[N, classes]``: what each class adds to it."""
        mine, theirs = self.logits.log_softmax(1), self.baseline.log_softmax(1)
        return F.kl_div(mine, theirs, reduction="none", log_target=True)


def rank(logits: Tensor, target: Tensor) -> Tensor:
    """Place of the target among the logits, 0 is first; last where a logit is NaN."""
    own = logits.gather(1, target[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < target[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return rank.masked_fill_(logits.isnan().any(1), logits.shape[1])


CLASSIFICATION = Task(
    "classification",
    check_logits,
    check_classes,
    Answers,
    {
        "top1": functools.partial(Answers.right_within, places=1),
        "top5": functools.partial(Answers.right_within, places=5),
        "agreement": Answers.agreeing,
        "divergence": Answers.divergence,
    },
    principal=("top1", "agreement"),
    damage="divergence",
)
