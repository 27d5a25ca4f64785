"""Classification: outputs are logits ``[N, classes]``, labels are classes ``[N]``."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.evaluation.metrics import Task


def check_logits(output: Any, images: Tensor) -> Tensor:
    """What a network put out for these images, in float32.

    Raises:
        TypeError: no tensor.
        ValueError: not one row for each image.
    """
    allowed = "one tensor of logits [N, classes]"
    if not isinstance(output, Tensor):
        raise TypeError(f"model: its output is {type(output).__name__}, allowed: {allowed}")
    if output.dim() != 2 or len(output) != len(images):
        raise ValueError(
            f"model: its output has shape {tuple(output.shape)} for {len(images)} images, "
            f"allowed: {allowed}"
        )
    return output.float()


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

    def right_within(self, places: int) -> int:
        """Images whose label is among the first so many choices."""
        return int((self.place < places).sum())

    def agreeing(self) -> int:
        """Images whose first choice is the baseline's."""
        return int((rank(self.logits, self.baseline.argmax(1)) < 1).sum())

    def divergence(self) -> float:
        """KL(baseline || this) in nats, summed over the images."""
        mine, theirs = self.logits.log_softmax(1), self.baseline.log_softmax(1)
        return float(F.kl_div(mine, theirs, reduction="sum", log_target=True))


def rank(logits: Tensor, target: Tensor) -> Tensor:
    """Place of the target among the logits, 0 is first; last where a logit is NaN."""
    own = logits.gather(1, target[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < target[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return rank.masked_fill_(logits.isnan().any(1), logits.shape[1])


CLASSIFICATION = Task(
    Answers,
    {
        "top1": lambda answers: answers.right_within(1),
        "top5": lambda answers: answers.right_within(5),
        "agreement": Answers.agreeing,
        "divergence": Answers.divergence,
    },
)
