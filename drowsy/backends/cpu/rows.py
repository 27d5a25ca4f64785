"""Tensors as rows of channels, one row to a pixel or position: runs and products of many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def runs(pixels: Tensor, run: int) -> Tensor:
    """Every ``run`` pixels that follow each other in ``[N, H, W, IC]``, as overlapping rows."""
    channels = pixels.shape[3]
    first = pixels.numel() // channels - run + 1
    return pixels.as_strided((first, run * channels), (channels, 1), pixels.storage_offset())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by oneDNN like the dense convolution.

    ``F.linear`` itself takes MKL for float32, which reaches two thirds to nine tenths of oneDNN's
    rate on the shapes of convolutions (AMD Zen 4).
    """
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
