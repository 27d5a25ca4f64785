"""Slopes of ``prelu`` for tests of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def slopes_of(activation: str, channels: int, like: Tensor) -> Tensor | None:
    """``[channels]`` for ``prelu``, negative and beyond 1 too; None for all other activations.

    Of an odd number of channels all have one slope, which lies in memory once.
    """
    if activation != "prelu":
        return None
    if channels % 2:
        return torch.full((1,), -1.3).to(like).expand(channels)
    return torch.linspace(-1.5, 2, channels).to(like)
