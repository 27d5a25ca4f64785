"""The second half of a split-K convolution: add the parts, then the epilogue.

A layer with few output tiles leaves most of a GPU idle; its K steps are split over programs, each
of which leaves its float32 sums in a workspace. Parts are added in a fixed order, so results repeat
bit for bit, which atomics would not give.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from drowsy_kernels.epilogue import finish_at, offsets
from drowsy_kernels.launch import VIEWS


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def add_parts_kernel(
    partial,
    bias,
    slopes,
    post_slopes,
    scale,
    bitmap,
    residual,
    y,
    listed,
    count,
    rows,
    positions,
    cell_p,
    cell_c,
    cell_rows,
    words,
    OC: tl.constexpr,
    WIDE: tl.constexpr,
    MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``partial`` [SPLIT_K, rows, OC], ``y`` [rows, OC]; a program per tile, channels fastest.

    ``listed``: where the first ``count`` rows of ``partial`` belong; the others mean nothing.
    """
    TILES_N: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    first_c = tl.program_id(0) % TILES_N * BLOCK_N
    first_m = tl.program_id(0) // TILES_N * BLOCK_M
    last_m = rows
    if listed is not None:
        last_m = tl.load(count)
        if first_m >= last_m:
            return
    m_all = first_m + tl.arange(0, BLOCK_M)
    m_m = m_all < last_m
    c = first_c + tl.arange(0, BLOCK_N)
    m_c = c < OC
    o_y = offsets(m_all, OC, WIDE)[:, None] + c[None, :]
    m_tile = m_m[:, None] & m_c[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in tl.static_range(SPLIT_K):
        acc += tl.load(partial + o_y, mask=m_tile, other=0.0)
        partial += tl.cast(rows, tl.int64) * OC
    m = tl.minimum(m_all, last_m - 1)
    m_y = m_all
    if listed is not None:
        m = tl.load(listed + m)
        m_y = m
    n = m // positions
    row = n * cell_rows + (m - n * positions) // cell_p
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
