"""What images and labels must be."""

from __future__ import annotations

import torch
from torch import Tensor


def check_labels(labels: Tensor | None, images: Tensor) -> None:
    """Raise unless ``labels`` is None or an int64 class number for each image."""
    if labels is None:
        return
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
