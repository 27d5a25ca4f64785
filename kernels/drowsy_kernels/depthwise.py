"""Depthwise convolution: one input channel per group, so there is no GEMM to do.

A program multiplies and adds ``BLOCK_M`` output positions, flattened over the batch, by ``BLOCK_N``
channels; loads and stores are vectors along the channels.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from drowsy_kernels.epilogue import all_asleep, finish_at, store_rest
from drowsy_kernels.launch import VIEWS


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def depthwise_kernel(
    x,
    w,
    bias,
    slopes,
    post_slopes,
    scale,
    bitmap,
    residual,
    y,
    listed,
    count,
    images,
    height,
    width,
    out_width,
    positions,
    cell_p,
    cell_c,
    cell_rows,
    words,
    IC: tl.constexpr,
    OC: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    CHECK_TAPS: tl.constexpr,
    WIDE: tl.constexpr,
    MAP: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    EXIT_EARLY: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``x`` [N, H, W, IC], ``w`` [KH * KW, OC], ``y`` [N * P, OC]; channel tiles fastest.

    ``listed``: the rows that are computed, of which there are ``count``, as in ``conv2d_kernel``.
    """
    TILES_N: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    first_m = tl.program_id(0) // TILES_N * BLOCK_M
    first_c = tl.program_id(0) % TILES_N * BLOCK_N
    last_c = tl.minimum(first_c + BLOCK_N, OC)
    last_m = images * positions
    if listed is not None:
        last_m = tl.load(count)
        if first_m >= last_m:
            return
    m_all = first_m + tl.arange(0, BLOCK_M)
    m_m = m_all < last_m
    m = tl.minimum(m_all, last_m - 1)
    m_y = m_all
    if listed is not None:
        m = tl.load(listed + m)
        m_y = m
    c = first_c + tl.arange(0, BLOCK_N)
    m_c = c < OC
    n = m // positions
    p = m - n * positions
    row = m
    if bitmap is not None:
        row = n * cell_rows + p // cell_p
        if EXIT_EARLY:
            if all_asleep(bitmap, row, first_c, last_c, cell_c, words, TILE_WORDS):
                store_rest(
                    y,
                    residual,
                    post_slopes,
                    m_all,
                    m_m,
                    c,
                    m_c,
                    OC,
                    POST_ACTIVATION,
                    POST_SLOPE,
                    WIDE,
                    BLOCK_M,
                    BLOCK_N,
                )
                return

    out_y = p // out_width
    in_y = out_y * STRIDE_H - TOP
    in_x = (p - out_y * out_width) * STRIDE_W - LEFT
    if WIDE:
        n = n.to(tl.int64)
    o_x = (((n * height + in_y) * width + in_x) * IC)[:, None] + (c // (OC // IC))[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for ky in range(KH):
        for kx in tl.static_range(KW):
            m_x = m_c[None, :]
            if CHECK_TAPS:
                at_y, at_x = in_y + ky * DILATION_H, in_x + kx * DILATION_W
                m_tap = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
                m_x = m_x & m_tap[:, None]
            p_x = x + (ky * DILATION_H * width + kx * DILATION_W) * IC + o_x
            b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
            b_w = tl.load(w + (ky * KW + kx) * OC + c, mask=m_c, other=0.0).to(tl.float32)
            acc += b_x * b_w[None, :]

    finish_at(
        acc,
        y,
        residual,
        bias,
        slopes,
        post_slopes,
        scale,
        bitmap,
        row,
        m_y,
        m_m,
        c,
        m_c,
        first_c,
        cell_c,
        words,
        OC,
        MAP,
        ACTIVATION,
        SLOPE,
        POST_ACTIVATION,
        POST_SLOPE,
        WIDE,
        BLOCK_M,
        BLOCK_N,
    )
