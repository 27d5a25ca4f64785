"""How well a setting does, in sums over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """Sums over the images of one evaluation.

    ``top1`` and ``top5`` are None without labels. ``agree`` counts images whose first choice is
    that of the baseline, the network at rate 0; ``divergence`` sums KL(baseline || this) in nats.
    """

    images: int
    top1: int | None
    top5: int | None
    agree: int
    divergence: float

    def __add__(self, other: Counts) -> Counts:
        """Counts over the images of both."""
        return Counts(
            self.images + other.images,
            None if self.top1 is None or other.top1 is None else self.top1 + other.top1,
            None if self.top5 is None or other.top5 is None else self.top5 + other.top5,
            self.agree + other.agree,
            self.divergence + other.divergence,
        )

    def rates(self) -> dict[str, float | None]:
        """Fractions of the images: top1, top5, agreement; and the mean divergence."""
        sums = {
            "top1": self.top1,
            "top5": self.top5,
            "agreement": self.agree,
            "divergence": self.divergence,
        }
        return {name: None if v is None else v / self.images for name, v in sums.items()}


def rank(logits: Tensor, target: Tensor) -> Tensor:
    """Place of the target among the logits, 0 is first; last where a logit is NaN."""
    own = logits.gather(1, target[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < target[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return rank.masked_fill_(logits.isnan().any(1), logits.shape[1])


PANELS = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)", "agreement": "agreement (%)"}
