"""Smaller images: scaled down, or their middle."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
INTERPOLATIONS = ("bicubic", "bilinear")


def scale_images(images: Tensor, size: Size, interpolation: str = "bicubic") -> Tensor:
    """Images ``[N, C, H, W]`` scaled down to ``size``, antialiased; as they are at their own."""
    if tuple(images.shape[-2:]) == size:
        return images
    # Half precision is not scaled on every device.
    pixels = images.float() if images.element_size() < 4 else images
    return F.interpolate(pixels, size, mode=interpolation, antialias=True).to(images.dtype)


def crop_images(images: Tensor, size: Size) -> Tensor:
    """The middle ``size`` of images ``[N, C, H, W]``; as they are where that is all of them."""
    if tuple(images.shape[-2:]) == size:
        return images
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
