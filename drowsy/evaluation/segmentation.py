"""Segmentation: outputs are logits ``[N, classes, H, W]``, labels are classes ``[N, H, W]``."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import main

IGNORED = 255


def check_maps(output: Any, images: Tensor, allowed: str) -> Tensor:
    """The map ``[N, C, H, W]`` that a network put out for these images, in float32.

    Raises:
        TypeError: no tensor, alone or as ``logits`` or ``out``.
        ValueError: of another shape.
    """
    found = main(output)
    if found is None:
        raise TypeError(f"model: its output is {type(output).__name__}, allowed: {allowed}")
    if found.dim() != 4 or len(found) != len(images):
        raise ValueError(
            f"model: its output has shape {tuple(found.shape)} for {len(images)} images, "
            f"allowed: {allowed}"
        )
    return found.float()


def check_masks(labels: Any, images: Tensor) -> Tensor:
    """Labels as int64 ``[N, H, W]``; raises TypeError or ValueError for others."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: got {kind}, allowed: a tensor of integers, the pixels' classes")
    if labels.dim() != 3 or len(labels) != len(images):
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for {len(images)} images, allowed: "
            f"({len(images)}, H, W)"
        )
    return labels.long()


class Masks:
    """Logits of pixels, those awake, and the right classes where these are known.

    Logits are brought to the labels' size, as networks that put out smaller maps are used
    (bilinear); labels of ``ignored`` do not count.

    Raises:
        ValueError: a label that is none of the network's classes.
    """

    def __init__(
        self, logits: Tensor, awake: Tensor, labels: Tensor | None, ignored: int = IGNORED
    ) -> None:
        self.logits, self.awake, self.labels, self.ignored = logits, awake, labels, ignored
        classes = logits.shape[1]
        if labels is not None:
            wrong = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
            if wrong.numel():
                raise ValueError(
                    f"labels: got {int(wrong[0])}, allowed: 0 to {classes - 1}, the network's "
                    f"classes, or {ignored}, which does not count"
                )

    @functools.cached_property
    def classes(self) -> Tensor:
        """int64 ``[N, H, W]``: the first choices; -1 where a logit is NaN."""
        return _first(self.logits)

    @functools.cached_property
    def awake_classes(self) -> Tensor:
        return _first(self.awake)

    def overlap(self) -> Tensor:
        """float64 ``[N]``: intersection over union, the mean of the classes that occur.

        A class occurs in an image where the target or the output has it, at pixels that count. The
        target is the labels, or without any what the network chooses awake. A class of the network
        that does not count as a label is none: where it is put out, another is missed. 1 where no
        pixel counts.
        """
        if self.labels is None:
            found, target = self.classes, self.awake_classes
        else:
            target = self.labels.to(self.logits.device)
            found = self.classes
            if target.shape != found.shape:
                found = torch.stack([_first(_resized(e[None], target))[0] for e in self.logits])
        count = self.logits.shape[1]
        return torch.stack(
            [_mean_overlap(*pair, count, self.ignored) for pair in zip(found, target, strict=True)]
        )

    def agreement(self) -> Tensor:
        """float64 ``[N]``: share of the pixels whose first choice is the one awake."""
        return (self.classes == self.awake_classes).flatten(1).double().mean(1)

    def divergence(self) -> Tensor:
        """float64 ``[N]``: KL(awake || this) in nats, the mean of the pixels."""
        each = []
        # One image at a time: a set of maps and their logarithms is large.
        for mine, theirs in zip(self.logits, self.awake, strict=True):
            parts = F.kl_div(
                mine.log_softmax(0), theirs.log_softmax(0), reduction="none", log_target=True
            )
            each.append(parts.sum(dtype=torch.float64) / mine[0].numel())
        return torch.stack(each)


def _first(logits: Tensor) -> Tensor:
    """The first choices of pixels; -1 where a logit is NaN."""
    return logits.argmax(1).masked_fill_(logits.isnan().any(1), -1)


def _resized(logits: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)


def _mean_overlap(found: Tensor, target: Tensor, classes: int, ignored: int) -> Tensor:
    """Mean intersection over union of one image's classes that occur."""
    counting = target != ignored
    # What is no class (-1, of NaN) is one more, in the union of the target's class alone.
    cells = (target[counting] + 1) * (classes + 1) + found[counting] + 1
    table = torch.bincount(cells, minlength=(classes + 1) ** 2).view(classes + 1, classes + 1)
    both = table.diagonal()[1:].double()
    either = (table.sum(0) + table.sum(1))[1:] - both
    there = either > 0
    there[ignored : ignored + 1] = False
    if not there.any():
        return both.new_ones(())
    return (both[there] / either[there]).mean()


def segmentation(ignored: int = IGNORED) -> Task:
    """The task of networks that give every pixel a class.

    Args:
        ignored: the label of pixels that do not count, 0 or more.
    """
    if isinstance(ignored, bool) or not isinstance(ignored, int) or ignored < 0:
        raise ValueError(f"ignored: got {ignored!r}, allowed: an integer, 0 or more")
    return Task(
        "segmentation",
        functools.partial(check_maps, allowed="one tensor of logits [N, classes, H, W]"),
        check_masks,
        functools.partial(Masks, ignored=ignored),
        {"miou": Masks.overlap, "agreement": Masks.agreement, "divergence": Masks.divergence},
        principal=("miou", "miou"),
        damage="divergence",
        told=["segmentation", ignored],
    )
