"""What sleepers output, written over them after the awake neurons are there.

A convolution that works through a list of awake neurons leaves the sleepers as they were. This
kernel writes each of them once and touches no awake neuron: 0 (plus the residual that the layer
adds), or a value made from awake neighbours of the same image and channel. ``drowsy.neuron``
specifies the fills.

A program whose block has no sleeper returns after reading the block's bits. A neighbour is looked
up in the bitmap first and loaded only if it is awake, so that what a sleeper holds, NaN too, is
never read; and since awake neurons are only read and sleepers only written, the order of programs
does not matter.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.epilogue import activate, activation_arguments, asleep, map_mode
from drowsy_kernels.launch import (
    MAX_ELEMENTS,
    VIEWS,
    Launch,
    check_operand,
    launched,
    plan_of,
    planned,
)
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ZERO_FILLS = ("zero", "rescale")
_NEIGHBOUR_FILLS = ("nearest", "interpolate", "stencil")
_TABLE_SHAPE = (256, 9)
FILLS = (*_ZERO_FILLS, *_NEIGHBOUR_FILLS)
"""What a sleeper can output, for ``fill_sleepers``."""

# Elements of a program. Zeros are stores and little else: 32 a thread. A search for neighbours
# holds positions, weights and bits of every neuron in registers: 8 a thread do not spill.
_ZERO_BLOCK, _BLOCK = 4096, 1024
_MAX_BLOCK_N = 128


@triton.jit
def _neighbour(
    bitmap,
    at_y,
    at_x,
    height,
    width,
    first_c,
    cell_c,
    words,
    MAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Position of a neighbour [BLOCK_M, 1], and whether it exists and is awake."""
    inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
    position = tl.where(inside, at_y * width + at_x, 0)
    slept = asleep(bitmap, position, first_c, cell_c, words, MAP, BLOCK_M, BLOCK_N)
    return position[:, None], inside[:, None] & (slept == 0)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _fill_kernel(
    y,
    bitmap,
    residual,
    slopes,
    table,
    height,
    width,
    positions,
    tiles_m,
    cell_p,
    cell_c,
    cell_rows,
    words,
    C: tl.constexpr,
    FILL: tl.constexpr,
    MAP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``y`` and ``residual`` [N, positions, C]; grid: images x tiles_m x channel tiles."""
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    first_c = (tl.program_id(0) % TILES_N) * BLOCK_N
    first_m = (tl.program_id(0) // TILES_N % tiles_m) * BLOCK_M
    n = (tl.program_id(0) // TILES_N // tiles_m).to(tl.int64)
    bitmap += n * cell_rows * words
    y += n * positions * C
    m = first_m + tl.arange(0, BLOCK_M)
    c = first_c + tl.arange(0, BLOCK_N)
    row = tl.minimum(m, positions - 1)
    slept = asleep(bitmap, row // cell_p, first_c, cell_c, words, MAP, BLOCK_M, BLOCK_N)
    mine = slept & (m < positions)[:, None] & (c < C)[None, :]
    if tl.max(tl.max(mine.to(tl.int32), axis=1), axis=0) == 0:
        return

    at_y, at_x = row // width, row % width
    o_y = row[:, None] * C + c[None, :]
    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Loops are not unrolled: where every neuron has a bit, that would spill. They may visit the
    # centre, which is never awake where it matters. The windows of ``interpolate`` are not one
    # function of their side: on sm_80 that takes 91 registers where this takes 64.
    if FILL == "nearest":
        # The least key is the nearest neighbour, the first by (row, column) of equally near ones.
        NOBODY: tl.constexpr = 1 << 16
        best = tl.where(slept & (m < positions)[:, None], NOBODY, NOBODY)
        for place in range(25):
            dy, dx = place // 5 - 2, place % 5 - 2
            _, awake = _neighbour(
                bitmap,
                at_y + dy,
                at_x + dx,
                height,
                width,
                first_c,
                cell_c,
                words,
                MAP,
                BLOCK_M,
                BLOCK_N,
            )
            key = (dy * dy + dx * dx) * 32 + place
            best = tl.minimum(best, tl.where(awake, key, NOBODY))
        place = best % 32
        step = (place // 5 - 2) * width + place % 5 - 2
        found = mine & (best < NOBODY)
        value = tl.load(y + o_y + step * C, mask=found, other=0.0).to(tl.float32)
    elif FILL == "interpolate":
        weight = tl.where(slept & (m < positions)[:, None], 0.0, 0.0)
        for place in range(9):
            dy, dx = place // 3 - 1, place % 3 - 1
            position, awake = _neighbour(
                bitmap,
                at_y + dy,
                at_x + dx,
                height,
                width,
                first_c,
                cell_c,
                words,
                MAP,
                BLOCK_M,
                BLOCK_N,
            )
            share = 1.0 / tl.maximum(dy * dy + dx * dx, 1)
            b_n = tl.load(y + position * C + c[None, :], mask=mine & awake, other=0.0)
            value += b_n.to(tl.float32) * share
            weight += tl.where(awake, share, 0.0)
        alone = weight == 0
        if tl.max(tl.max((mine & alone).to(tl.int32), axis=1), axis=0) != 0:
            for place in range(25):
                dy, dx = place // 5 - 2, place % 5 - 2
                position, awake = _neighbour(
                    bitmap,
                    at_y + dy,
                    at_x + dx,
                    height,
                    width,
                    first_c,
                    cell_c,
                    words,
                    MAP,
                    BLOCK_M,
                    BLOCK_N,
                )
                share = 1.0 / tl.maximum(dy * dy + dx * dx, 1)
                b_n = tl.load(y + position * C + c[None, :], mask=mine & alone & awake, other=0.0)
                value += b_n.to(tl.float32) * share
                weight += tl.where(alone & awake, share, 0.0)
        value = value / tl.where(weight > 0, weight, 1.0)
    elif FILL == "stencil":
        # Which neighbours are awake, a bit each, row by row; the centre has none.
        near = tl.where(slept & (m < positions)[:, None], 0, 0)
        for bit in range(8):
            place = bit + bit // 4
            _, awake = _neighbour(
                bitmap,
                at_y + place // 3 - 1,
                at_x + place % 3 - 1,
                height,
                width,
                first_c,
                cell_c,
                words,
                MAP,
                BLOCK_M,
                BLOCK_N,
            )
            near += tl.where(awake, 1 << bit, 0)
        # The set's weights and constant [9, C].
        table += near * (9 * C) + c[None, :]
        value = tl.load(table + 8 * C, mask=mine, other=0.0).to(tl.float32)
        for bit in range(8):
            place = bit + bit // 4
            step = (place // 3 - 1) * width + place % 3 - 1
            awake = mine & ((near >> bit) & 1 != 0)
            share = tl.load(table + bit * C, mask=awake, other=0.0).to(tl.float32)
            b_n = tl.load(y + o_y + step * C, mask=awake, other=0.0)
            value += b_n.to(tl.float32) * share
    if residual is not None:
        residual += n * positions * C
        value += tl.load(residual + o_y, mask=mine, other=0.0).to(tl.float32)
    value = activate(value, ACTIVATION, SLOPE, slopes, c, c < C)
    tl.store(y + o_y, value.to(y.dtype.element_ty), mask=mine)


@launched
def fill_sleepers(
    y: Tensor,
    bitmap: Tensor,
    cell: tuple[int, int],
    fill: str,
    *,
    residual: Tensor | None = None,
    post_activation: str = "none",
    post_slopes: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Write every sleeper of ``y``, in place; awake neurons stay as they are.

    Args:
        y: channels_last ``[N, C, OH, OW]``, float32, float16 or bfloat16, awake neurons in place;
            what sleepers hold is not read.
        bitmap: int32 ``[N, PC, W]`` of ``sleep_map``; a set bit sleeps.
        cell: ``(cell_p, cell_c)`` of the bitmap.
        fill: ``zero`` or ``rescale``: ``post_activation(0 + residual)``. ``nearest``,
            ``interpolate`` or ``stencil``: from awake neighbours, where ``cell_p`` is 1.
        residual: channels_last, of ``y``'s shape and dtype, added to sleepers; only with ``zero``
            and ``rescale``.
        post_activation: one of ``ACTIVATIONS``, after the residual; likewise. Neighbours have been
            through it already.
        post_slopes: of post_activation ``prelu``, as for ``conv2d``.
        table: ``[256, 9, C]``, float32, float16 or bfloat16, for ``stencil``: by set of awake
            neighbours (a bit each, row by row) the weights of the eight, and the constant.

    Returns:
        ``y``.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or shapes that do not
            fit each other.
    """
    if y.dim() != 4:
        raise ValueError(f"y: got shape {tuple(y.shape)}, allowed: [N, C, OH, OW]")
    if len(cell) != 2 or min(cell) < 1:
        raise ValueError(f"cell: got {cell}, allowed: (positions, channels), each 1 or more")
    _check_fill(fill, cell, residual, post_activation)
    n, channels, height, width = y.shape
    positions = height * width
    if positions * channels > MAX_ELEMENTS:
        raise ValueError(f"y: got {tuple(y.shape)}, allowed: below 2**31 elements in an image")
    data = _channels_last("y", y, y)
    rows, cells = triton.cdiv(positions, cell[0]), triton.cdiv(channels, cell[1])
    words = triton.cdiv(cells, 32)
    check_operand("bitmap", bitmap, dtypes=(torch.int32,), shape=(n, rows, words), device=y.device)

    if fill == "stencil":
        if table is None:
            raise ValueError("table: got None with fill 'stencil', allowed: a tensor [256, 9, C]")
        size = (*_TABLE_SHAPE, channels)
        check_operand("table", table, dtypes=DTYPES, shape=size, device=y.device)
        if table.numel() > MAX_ELEMENTS:
            raise ValueError(f"table: got {size}, allowed: below 2**31 elements")

    block_m, block_n = _block(fill, cell, channels)
    tiles_m, tiles_n = triton.cdiv(positions, block_m), triton.cdiv(channels, block_n)
    within = cell[0] >= positions or cell[0] % block_m == 0
    arguments: dict[str, Any] = {
        "y": data,
        "bitmap": bitmap,
        "residual": None if residual is None else _channels_last("residual", residual, y),
        "table": table,
        "height": height,
        "width": width,
        "positions": positions,
        "tiles_m": tiles_m,
        "cell_p": cell[0],
        "cell_c": cell[1],
        "cell_rows": rows,
        "words": words,
        "C": channels,
        "FILL": "zero" if fill in _ZERO_FILLS else fill,
        "MAP": map_mode(bitmap, cell[1], within, channels, channels, block_n),
        **activation_arguments(post_activation, post_slopes, channels, y.dtype, y.device),
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
    }
    return planned(
        y,
        Launch(_fill_kernel, (n * tiles_m * tiles_n,), arguments, num_warps=4, num_stages=1),
        on=("y", y),
    )


plan_fill_sleepers = plan_of(fill_sleepers)
"""``(result, launches)`` of ``fill_sleepers``, and nothing is run: meta tensors will do."""


def _block(fill: str, cell: tuple[int, int], channels: int) -> tuple[int, int]:
    """Positions and channels of a program's block."""
    block_n = min(max(triton.next_power_of_2(channels), 16), _MAX_BLOCK_N)
    if cell[1] < channels and cell[1] % 16 == 0:
        # The largest power of two that divides a cell's channels: a block lies in one cell.
        block_n = min(cell[1] & -cell[1], block_n)
    return (_ZERO_BLOCK if fill in _ZERO_FILLS else _BLOCK) // block_n, block_n


def _check_fill(fill: str, cell: tuple[int, int], residual: Tensor | None, post: str) -> None:
    if fill not in FILLS:
        raise ValueError(f"fill: got {fill!r}, allowed: {', '.join(FILLS)}")
    if fill in _ZERO_FILLS:
        return
    if cell[0] != 1:
        raise ValueError(f"cell: got {cell} with fill {fill!r}, allowed: one position")
    if residual is not None or post != "none":
        raise ValueError(
            f"residual, post_activation: got one with fill {fill!r}, allowed: only with "
            f"{' and '.join(_ZERO_FILLS)}"
        )


def _channels_last(name: str, tensor: Tensor, y: Tensor) -> Tensor:
    """The tensor as ``[N, OH, OW, C]``, if it is channels_last and like ``y``."""
    n, channels, height, width = y.shape
    if tensor.dim() != 4:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, allowed: {tuple(y.shape)}")
    data = tensor.permute(0, 2, 3, 1)
    check_operand(
        f"{name} (as N, OH, OW, C)",
        data,
        dtypes=DTYPES if tensor is y else (y.dtype,),
        shape=(n, height, width, channels),
        device=y.device,
    )
    return data
