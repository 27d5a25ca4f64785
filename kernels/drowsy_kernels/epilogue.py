"""What every convolution kernel does to its accumulator, as device functions.

``activate`` is torch's activation in float32; ``all_asleep`` and ``asleep`` read the packed sleep
bitmap ``[N, PC, W]`` for a tile whose rows lie in the map rows ``row`` (``n * PC + pc``).
``finish`` is the whole epilogue of a tile, ``store_rest`` that of a tile without an awake neuron.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
import math
import re
from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.launch import check_operand
from torch import Tensor

ACTIVATIONS = (
    "none",
    "relu",
    "relu6",
    "silu",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "sigmoid",
    "tanh",
    "prelu",
    "leaky_relu:SLOPE",
)
"""Activations that a convolution applies before it writes; ``SLOPE`` is a number.

``prelu`` is a leaky ReLU of a slope a channel, which come as a tensor.
"""
# What of a tile the epilogue takes at a time, so that addresses, bits and residuals find registers
# beside the accumulators: bytes of the output, and those of a row at least.
AT_ONCE, NARROWEST = tl.constexpr(64 * 128), tl.constexpr(64)


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def _tanh(v):
    # Of the magnitude, so that the exponential cannot overflow.
    e = tl.exp(-2.0 * tl.abs(v))
    magnitude = (1.0 - e) / (1.0 + e)
    return tl.where(v < 0, -magnitude, magnitude)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, slopes, c, m_c):
    """Comparisons are written so that NaN stays NaN, as in torch.

    ``slopes``: those of ``prelu``, of which the columns of ``v`` read elements ``c * SLOPE``.
    """
    if ACTIVATION == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACTIVATION == "relu6":
        v = tl.where(v < 0, 0.0, tl.where(v > 6, 6.0, v))
    elif ACTIVATION == "leaky_relu":
        v = tl.where(v < 0, v * SLOPE, v)
    elif ACTIVATION == "prelu":
        b_slopes = tl.load(slopes + c * SLOPE, mask=m_c, other=0).to(tl.float32)
        v = tl.where(v < 0, v * b_slopes[None, :], v)
    elif ACTIVATION == "silu":
        v = v * _sigmoid(v)
    elif ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        v = 0.5 * v * (1.0 + _tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)))
    elif ACTIVATION == "hardswish":
        ramp = v + 3.0
        v = v * tl.where(ramp < 0, 0.0, tl.where(ramp > 6, 6.0, ramp)) / 6.0
    elif ACTIVATION == "sigmoid":
        v = _sigmoid(v)
    elif ACTIVATION == "tanh":
        v = _tanh(v)
    return v


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    # Triton's interpreter multiplies the bit patterns of bfloat16; float32 holds the same values.
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def all_asleep(bitmap, row, first_c, last_c, cell_c, words, TILE_WORDS: tl.constexpr):
    """Whether every cell that a tile touches sleeps: rows by channels [first_c, last_c)."""
    first_cell, last_cell = first_c // cell_c, (last_c - 1) // cell_c
    word = first_cell // 32 + tl.arange(0, TILE_WORDS)
    low, high = first_cell - word * 32, last_cell - word * 32
    needed = (high >= 0) & (low < 32)
    every = tl.full([TILE_WORDS], 0xFFFFFFFF, tl.uint32)
    above = every << tl.minimum(tl.maximum(low, 0), 31).to(tl.uint32)
    below = every >> (31 - tl.minimum(tl.maximum(high, 0), 31)).to(tl.uint32)
    m_cells = tl.where(needed, above & below, 0).to(tl.int32, bitcast=True)
    p_words = bitmap + row[:, None] * words + word[None, :]
    awake = ~tl.load(p_words, mask=needed[None, :], other=0) & m_cells[None, :]
    return tl.max(tl.max((awake != 0).to(tl.int32), axis=1), axis=0) == 0


@triton.jit
def asleep(
    bitmap,
    row,
    first_c,
    cell_c,
    words,
    MAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sleep bits of a tile, broadcastable to [BLOCK_M, BLOCK_N]; ``MAP`` as in ``map_mode``."""
    if MAP == "rows":
        cell = first_c // cell_c
        bits = tl.load(bitmap + row * words + cell // 32) >> (cell % 32)
        return (bits & 1)[:, None] != 0
    elif MAP == "words":
        word = first_c // 32 + tl.arange(0, BLOCK_N // 32)
        p_words = bitmap + row[:, None] * words + word[None, :]
        b_words = tl.load(p_words, mask=(word < words)[None, :], other=0)
        bits = b_words[:, :, None] >> tl.arange(0, 32)[None, None, :]
        return tl.reshape(bits & 1, [BLOCK_M, BLOCK_N]) != 0
    elif MAP == "word":
        cell = (first_c + tl.arange(0, BLOCK_N)) // cell_c
        b_word = tl.load(bitmap + row * words + first_c // cell_c // 32)
        return ((b_word[:, None] >> (cell % 32)[None, :]) & 1) != 0
    else:
        cell = (first_c + tl.arange(0, BLOCK_N)) // cell_c
        word = tl.minimum(cell // 32, words - 1)
        if MAP == "columns":
            first = tl.max(row, axis=0)
            return ((tl.load(bitmap + first * words + word) >> (cell % 32)) & 1)[None, :] != 0
        else:
            b_words = tl.load(bitmap + row[:, None] * words + word[None, :])
            return ((b_words >> (cell % 32)[None, :]) & 1) != 0


@triton.jit
def columns(acc, PART: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of ``acc`` from ``PART * WIDTH`` on, ``WIDTH`` being all, half or a quarter."""
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > WIDTH:
        low, high = acc.reshape(acc.shape[0], 2, COLUMNS // 2).permute(0, 2, 1).split()
        HALF: tl.constexpr = COLUMNS // 2 // WIDTH
        acc = low if PART < HALF else high
        if HALF == 2:
            low, high = acc.reshape(acc.shape[0], 2, WIDTH).permute(0, 2, 1).split()
            acc = low if PART % 2 == 0 else high
    return acc


@triton.jit
def finish_at(
    acc,
    y,
    residual,
    bias,
    slopes,
    post_slopes,
    scale,
    bitmap,
    row,
    m,
    m_m,
    c,
    m_c,
    first_c,
    cell_c,
    words,
    OC: tl.constexpr,
    MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``y[m, c] = post(residual + (0 where asleep, else activation(acc + bias) * scale))``.

    ``y`` and ``residual`` are ``[N * P, OC]``; ``row`` are the map rows of ``m``.
    """
    if bias is not None:
        acc += tl.load(bias + c, mask=m_c, other=0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, SLOPE, slopes, c, m_c)
    if scale is not None:
        acc *= tl.load(scale)
    if bitmap is not None:
        b_asleep = asleep(bitmap, row, first_c, cell_c, words, MAP, BLOCK_M, BLOCK_N)
        acc = tl.where(b_asleep, 0.0, acc)
    o_y = offsets(m, OC, WIDE)[:, None] + c[None, :]
    m_tile = m_m[:, None] & m_c[None, :]
    if residual is not None:
        acc += tl.load(residual + o_y, mask=m_tile, other=0).to(tl.float32)
    acc = activate(acc, POST_ACTIVATION, POST_SLOPE, post_slopes, c, m_c)
    tl.store(y + o_y, acc.to(y.dtype.element_ty), mask=m_tile)


@triton.jit
def finish(
    acc,
    y,
    residual,
    bias,
    slopes,
    post_slopes,
    scale,
    bitmap,
    row,
    m,
    m_m,
    first_c,
    last_c,
    cell_c,
    words,
    OC: tl.constexpr,
    MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    listed=None,
    RUN: tl.constexpr = 1,
):
    """``finish_at`` channels [first_c, last_c), as many as ``acc`` has columns or fewer.

    A large tile is taken part by part, in quarters at the finest. ``listed``: a list of channels
    that come in runs of ``RUN`` from multiples of it; its entries [first_c, last_c) are meant then.
    """
    ITEMSIZE: tl.constexpr = y.dtype.element_ty.primitive_bitwidth // 8
    AT_MOST: tl.constexpr = max(AT_ONCE // BLOCK_M, NARROWEST) // ITEMSIZE
    WIDTH: tl.constexpr = min(BLOCK_N, max(AT_MOST, BLOCK_N // 4))
    # Half a word's columns lie in one.
    READ: tl.constexpr = "word" if MAP == "words" and WIDTH < 32 else MAP
    for part in tl.static_range(BLOCK_N // WIDTH):
        first = first_c + part * WIDTH
        c = first + tl.arange(0, WIDTH)
        if listed is None:
            m_c = c < last_c
        else:
            m_c = c < tl.multiple_of(last_c, RUN)
            c = tl.load(listed + c, mask=m_c, other=0)
            c = tl.max_contiguous(tl.multiple_of(c, RUN), RUN)
        finish_at(
            columns(acc, part, WIDTH),
            y,
            residual,
            bias,
            slopes,
            post_slopes,
            scale,
            bitmap,
            row,
            m,
            m_m,
            c,
            m_c,
            first,
            cell_c,
            words,
            OC,
            READ,
            ACTIVATION,
            SLOPE,
            POST_ACTIVATION,
            POST_SLOPE,
            WIDE,
            BLOCK_M,
            WIDTH,
        )


@triton.jit
def store_rest(
    y,
    residual,
    post_slopes,
    m,
    m_m,
    c,
    m_c,
    OC: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``y[m, c] = post(residual)``: what sleepers come out as."""
    o_y = offsets(m, OC, WIDE)[:, None] + c[None, :]
    m_tile = m_m[:, None] & m_c[None, :]
    rest = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if residual is not None:
        rest = tl.load(residual + o_y, mask=m_tile, other=0).to(tl.float32)
    rest = activate(rest, POST_ACTIVATION, POST_SLOPE, post_slopes, c, m_c)
    tl.store(y + o_y, rest.to(y.dtype.element_ty), mask=m_tile)


@triton.jit
def offsets(m, PITCH: tl.constexpr, WIDE: tl.constexpr):
    """``m * PITCH``, in 64 bits where a tensor has 2**31 elements or more."""
    if WIDE:
        m = m.to(tl.int64)
    return m * PITCH


# --- what a launcher passes --------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def parse_activation(name: str) -> tuple[str, float]:
    """``(kind, slope)``; the slope is 0 but for ``leaky_relu``, where it is a finite number."""
    kind, _, slope = name.partition(":")
    number = re.fullmatch(r"-?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?", slope)
    if kind == "leaky_relu" and number and math.isfinite(float(slope)):
        return kind, float(slope)
    if name not in ACTIVATIONS[:-1]:
        raise ValueError(f"activation: got {name!r}, allowed: {', '.join(ACTIVATIONS)}")
    return name, 0.0


def activation_arguments(
    name: str,
    slopes: Tensor | None,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    post: bool = False,
) -> dict[str, Any]:
    """What a kernel is told of an activation, checked.

    Args:
        name: one of ``ACTIVATIONS``.
        slopes: of ``prelu``, ``[channels]`` of this dtype or float32, on this device; its elements
            may be one in memory (``expand``). None for all others.
        channels, dtype, device: of the output.
        post: whether it is the activation after the residual.

    Raises:
        ValueError, TypeError: another activation, or slopes that do not belong to it.
    """
    kind, slope = parse_activation(name)
    before = "post_" if post else ""
    if (kind == "prelu") != (slopes is not None):
        raise ValueError(
            f"{before}slopes: got {'none' if slopes is None else 'some'} with {before}activation "
            f"{name!r}, allowed: a tensor [{channels}] with prelu, None with all others"
        )
    if slopes is not None:
        # One slope for all channels lies in memory once, and they read it with step 0.
        one = tuple(slopes.shape) == (channels,) and slopes.stride() == (0,)
        own, shape, slope = (slopes[:1], (1,), 0) if one else (slopes, (channels,), 1)
        dtypes = (dtype, torch.float32)
        check_operand(f"{before}slopes", own, dtypes=dtypes, shape=shape, device=device)
    words = {"ACTIVATION": kind, "SLOPE": slope}
    return {f"{before}{word}".upper(): value for word, value in words.items()} | {
        f"{before}slopes": slopes
    }


def map_mode(
    bitmap: Tensor | None,
    cell_c: int,
    segmented: bool,
    out_channels: int,
    span: int,
    block_n: int,
) -> str:
    """How the epilogue reads a tile's bits: the cheapest way that its cells allow.

    ``rows``: one channel cell covers the tile. ``columns``: one position cell does. ``words``: a
    channel is a cell and tiles start at whole words. ``any``: a bit per neuron.

    Args:
        bitmap: the bitmap or None.
        cell_c: channels of a cell.
        segmented: whether a tile's rows lie within one position cell.
        out_channels: channels of all groups.
        span: channels after which tiles start anew.
        block_n: channels of a tile.
    """
    if bitmap is None:
        return "none"

    def aligned(unit: int) -> bool:
        return block_n % unit == 0 and (span == out_channels or span % unit == 0)

    if cell_c >= out_channels or cell_c % span == 0:
        return "rows"
    if cell_c % block_n == 0 and aligned(block_n):
        return "rows"
    if segmented:
        return "columns"
    return "words" if cell_c == 1 and aligned(32) else "any"


def tile_words(cell_c: int, span: int, out_channels: int, block_n: int) -> int:
    """Bitmap words that a tile's channels can touch, rounded up to a power of two."""
    if cell_c == 1 and block_n % 32 == 0 and (span == out_channels or span % 32 == 0):
        return block_n // 32
    cells = (block_n - 2) // cell_c + 2
    words = (cells - 2) // 32 + 2
    return 1 << (words - 1).bit_length()
