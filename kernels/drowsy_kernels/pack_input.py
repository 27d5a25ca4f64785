"""Lay a first layer's input out so that a row of the filter reads one contiguous run.

A pixel of a photograph has three channels: too few for a K step, too narrow for a vector. With the
channels padded to four or eight and the padding of the convolution written out around the image,
the ``KW * 4`` inputs under a row of the filter are contiguous, aligned and never outside. To the
implicit GEMM that is a filter of one column whose pixels have ``KW * 4`` channels and overlap. The
pass also takes the place of the change to channels_last that such inputs mostly need.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack_input_kernel(
    x,
    packed,
    pixels,
    height,
    width,
    padded_height,
    padded_width,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    CHANNELS: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``packed`` [N, padded_height, padded_width, PITCH]; ``x`` by its strides."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = pixel // padded_width
    at_x = pixel - line * padded_width - LEFT
    n = line // padded_height
    at_y = line - n * padded_height - TOP
    c = tl.arange(0, PITCH)
    inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width) & (pixel < pixels)
    # Strides are whatever the input has: offsets need 64 bits.
    o_pixel = n.to(tl.int64) * stride_n
    o_pixel += at_y.to(tl.int64) * stride_y + at_x.to(tl.int64) * stride_x
    m_x = inside[:, None] & (c < CHANNELS)[None, :]
    b_x = tl.load(x + o_pixel[:, None] + (c.to(tl.int64) * stride_c)[None, :], mask=m_x, other=0)
    o_packed = pixel.to(tl.int64)[:, None] * PITCH + c[None, :]
    tl.store(packed + o_packed, b_x, mask=(pixel < pixels)[:, None])
