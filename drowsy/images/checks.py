"""What images, labels, batches and splits must be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(labels: Any) -> Any:
    """Labels as a tensor where they are integers in any form, or an array; else as they are.

    Integers become int64.
    """
    if isinstance(labels, (list, tuple, range)):
        try:
            array = np.asarray(labels)
        except ValueError:  # of entries of several shapes
            return labels
        if array.size and array.dtype.kind not in "iu":
            return labels
        labels = array.astype(np.int64)
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind not in "iufb":
            return labels
        labels = torch.from_numpy(labels.astype(np.int64) if labels.dtype.kind in "iu" else labels)
    if isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex()):
        return labels if labels.dtype == torch.bool else labels.long()
    return labels


def check_labels(labels: Tensor | None, images: Tensor) -> None:
    """Raise unless ``labels`` is None or an int64 class number for each image."""
    if labels is None:
        return
    if isinstance(labels, (list, tuple, np.ndarray)):
        kind = np.asarray(labels).dtype
        raise TypeError(f"labels: got {kind} in a list, allowed: integers, the classes")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: got {kind}, allowed: int64 class numbers")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for {len(images)} images, "
            f"allowed: ({len(images)},)"
        )


def check_images(images: Tensor) -> None:
    """Raise unless ``images`` is a finite floating-point ``[N, C, H, W]`` tensor with N >= 1."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: got {kind}, allowed: a floating-point tensor")
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(f"images: got shape {tuple(images.shape)}, allowed: [N, C, H, W], N >= 1")
    bad = (~images.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise ValueError(f"images: number {int(bad[0])} holds NaN or infinity")


def check_clips(clips: Mapping[str, Tensor], fewest: int) -> None:
    """Raise unless these are finite clips ``[T, C, H, W]`` by name, their frames of one size.

    Args:
        clips: one or more.
        fewest: frames of each.
    """
    if not clips:
        raise ValueError("clips: got none, allowed: one or more")
    (first, like), *_ = clips.items()
    for name, clip in clips.items():
        if not isinstance(clip, Tensor) or not clip.is_floating_point():
            kind = clip.dtype if isinstance(clip, Tensor) else type(clip).__name__
            raise TypeError(f"clips: {name}: got {kind}, allowed: a floating-point tensor")
        if clip.dim() != 4 or 0 in clip.shape or len(clip) < fewest:
            raise ValueError(
                f"clips: {name}: got shape {tuple(clip.shape)}, allowed: [T, C, H, W], T of "
                f"{fewest} or more"
            )
        if clip.shape[1:] != like.shape[1:] or clip.device != like.device:
            raise ValueError(
                f"clips: {name}: got frames of {tuple(clip.shape[1:])} on {clip.device}, allowed: "
                f"{tuple(like.shape[1:])} on {like.device}, as {first} has"
            )
        if not clip.isfinite().all():
            raise ValueError(f"clips: {name}: holds NaN or infinity, allowed: finite numbers")


def check_batch(batch: int) -> None:
    """Raise unless as many images can go through a network at once."""
    if batch < 1:
        raise ValueError(f"batch: got {batch}, allowed: 1 or more")


def check_splits(splits: Mapping[str, range], count: int) -> None:
    """Raise unless these are disjoint ranges of ``count`` images, none empty."""
    for name, span in splits.items():
        if not isinstance(span, range):
            raise TypeError(f"{name}: got {type(span).__name__}, allowed: a range")
        if span.step != 1 or not 0 <= span.start < span.stop <= count:
            raise ValueError(
                f"{name}: got {span.start}:{span.stop}, allowed: a range within 0:{count}"
            )
    named = sorted(splits.items(), key=lambda item: item[1].start)
    for (name, span), (other, later) in itertools.pairwise(named):
        if later.start < span.stop:
            raise ValueError(
                f"{other}: got {later.start}:{later.stop}, which overlaps {name} "
                f"{span.start}:{span.stop}, allowed: disjoint ranges"
            )
