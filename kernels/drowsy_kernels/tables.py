"""Tables of the compact form, in which a stage of equal position maps keeps its activations.

Where all layers of a stage share one position map, their activations are ``[L, C]``: the awake rows
of the shared list, in its order. A 1x1 convolution then needs nothing but the row count. Any other
reads its taps through a *tap table*: for every filter tap and awake output row, the input row to
read, -1 for zeros (padding, or a sleeper that is zero). ``row_index`` says which compact row stands
for a position: its own where it is awake; where it sleeps, that of its nearest awake neighbour
(fill ``nearest``) or none (fills ``zero`` and ``rescale``). The same index fills in the full map,
``expand_rows``, where something else than a convolution reads it.

``fill_unread`` belongs to layers that do not share a map: a 1x1 convolution need not compute the
positions where the layer before it slept in every channel, and this writes them.

Tables depend on maps alone, so they are built off the critical path, once for all layers that
share them. Counts stay on the device; entries past a count are unspecified.
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from drowsy_kernels.conv2d import check_epilogue, output_size
from drowsy_kernels.epilogue import activate, activation_arguments
from drowsy_kernels.launch import (
    MAX_ELEMENTS,
    VIEWS,
    Launch,
    check_operand,
    launched,
    plan_of,
    planned,
)
from drowsy_kernels.lists import AwakeRows
from drowsy_kernels.weight import DTYPES
from torch import Tensor

INDEX_FILLS = ("zero", "rescale", "nearest")

_BLOCK = 256
# Of an expanded tile: 16-byte accesses across channels, 32 elements a thread of four warps.
_BLOCK_POSITIONS, _MAX_BLOCK_CHANNELS = 64, 64


@dataclass(frozen=True)
class Geometry:
    """How a convolution's outputs lie over its input.

    Args:
        size: ``(H, W)`` of the input.
        kernel_size, stride, padding, dilation: as for ``conv2d``.
    """

    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def size_out(self) -> tuple[int, int]:
        """``(OH, OW)``."""
        return output_size(self.size, self.kernel_size, self.stride, self.padding, self.dilation)

    @property
    def identity(self) -> bool:
        """Whether an output reads the input at its own position and nothing else."""
        return (self.kernel_size, self.stride) == ((1, 1), (1, 1)) and not any(self.padding)


# --- kernels ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _row_index_kernel(bitmap, rows, count, index, total, BLOCK: tl.constexpr):
    """A lane writes -1 where its position sleeps, and its number at the row of that number."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    asleep = tl.load(bitmap + i, mask=i < total, other=0) & 1
    tl.store(index + i, tl.full([BLOCK], -1, tl.int32), mask=asleep != 0)
    m_row = i < tl.load(count)
    tl.store(index + tl.load(rows + i, mask=m_row, other=0), i, mask=m_row)


@triton.jit
def _nearest_kernel(index, nearest, total, height, width, BLOCK: tl.constexpr):
    """Sleepers take the index of the awake position first by (squared distance, dy, dx)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(index + i, mask=i < total, other=0)
    asleep = found < 0
    y, x = (i // width) % height, i % width
    best = tl.full([BLOCK], 9 * 25, tl.int32)
    for at in tl.static_range(25):
        dy, dx = at // 5 - 2, at % 5 - 2
        order = (dy * dy + dx * dx) * 25 + at
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        there = tl.load(index + i + (dy * width + dx), mask=asleep & inside, other=-1)
        nearer = (there >= 0) & (order < best)
        found = tl.where(nearer, there, found)
        best = tl.where(nearer, order, best)
    tl.store(nearest + i, found, mask=i < total)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _tap_table_kernel(
    rows,
    count,
    index,
    table,
    capacity,
    height,
    width,
    out_width,
    positions,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program resolves every tap of its rows, so that their coordinates are divided once."""
    awake = tl.load(count)
    first = tl.program_id(0) * BLOCK
    if first < awake:
        i = first + tl.arange(0, BLOCK)
        m_row = i < awake
        item = tl.load(rows + i, mask=m_row, other=0)
        n, p = item // positions, item % positions
        in_y, in_x = (p // out_width) * STRIDE_H - TOP, (p % out_width) * STRIDE_W - LEFT
        for tap in range(KH * KW):
            at_y, at_x = in_y + (tap // KW) * DILATION_H, in_x + (tap % KW) * DILATION_W
            inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            source = (n * height + at_y) * width + at_x
            if index is not None:
                source = tl.load(index + source, mask=m_row & inside, other=-1)
            tl.store(table + tap * capacity + i, tl.where(inside, source, -1), mask=m_row)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _expand_rows_kernel(
    rows,
    index,
    residual,
    slopes,
    y,
    total,
    blocks,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``y`` [total, C]; grid: position blocks x channel blocks, the channel block fastest."""
    m = (tl.program_id(0) // blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m = m < total
    m_tile = m_m[:, None] & (c < C)[None, :]
    row = tl.load(index + m, mask=m_m, other=-1)
    p_rows = rows + row.to(tl.int64)[:, None] * C + c[None, :]
    value = tl.load(p_rows, mask=m_tile & (row >= 0)[:, None], other=0.0).to(tl.float32)
    o_tile = m.to(tl.int64)[:, None] * C + c[None, :]
    if residual is not None:
        value += tl.load(residual + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    value = activate(value, ACTIVATION, SLOPE, slopes, c, c < C)
    tl.store(y + o_tile, value.to(y.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _join_rows_kernel(
    rows,
    y,
    count,
    first,
    blocks,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Columns [first, first + C) of ``y`` [L, PITCH]; grid as for the expansion."""
    awake = tl.load(count)
    first_m = (tl.program_id(0) // blocks) * BLOCK_M
    if first_m < awake:
        m = (first_m + tl.arange(0, BLOCK_M)).to(tl.int64)
        c = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_tile = (m < awake)[:, None] & (c < C)[None, :]
        value = tl.load(rows + m[:, None] * C + c[None, :], mask=m_tile, other=0.0)
        tl.store(y + m[:, None] * PITCH + (first + c)[None, :], value, mask=m_tile)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _fill_unread_kernel(
    y,
    bitmap,
    zeros,
    bias,
    slopes,
    post_slopes,
    scale,
    residual,
    total,
    blocks,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    POST_ACTIVATION: tl.constexpr,
    POST_SLOPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``y`` [total, C]; grid as for the expansion."""
    m = (tl.program_id(0) // blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_m, m_c = m < total, c < C
    asleep = (tl.load(bitmap + m, mask=m_m, other=0) & 1) != 0
    mine = asleep | ((tl.load(zeros + m, mask=m_m, other=0) & 1) != 0)
    value = tl.zeros([1, BLOCK_N], tl.float32)
    if bias is not None:
        value += tl.load(bias + c, mask=m_c, other=0).to(tl.float32)[None, :]
    value = activate(value, ACTIVATION, SLOPE, slopes, c, m_c)
    if scale is not None:
        value *= tl.load(scale)
    value = tl.where(asleep[:, None], 0.0, value)
    m_tile = mine[:, None] & m_c[None, :]
    o_tile = m.to(tl.int64)[:, None] * C + c[None, :]
    if residual is not None:
        value += tl.load(residual + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    value = activate(value, POST_ACTIVATION, POST_SLOPE, post_slopes, c, m_c)
    tl.store(y + o_tile, value.to(y.dtype.element_ty), mask=m_tile)


# --- launchers ----------------------------------------------------------------------------------


@launched
def row_index(
    bitmap: Tensor,
    rows: AwakeRows,
    size: tuple[int, int],
    fill: str = "zero",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Which compact row stands for each position of a map that all channels share.

    Args:
        bitmap: int32 ``[N, P, 1]``, one channel cell.
        rows: the bitmap's awake rows: indices int32 ``[1, N * P]``, counts int32 ``[1]``.
        size: ``(OH, OW)`` of the map, ``P = OH * OW``.
        fill: ``zero`` and ``rescale``: a sleeper has no row; ``nearest``: it has that of the
            nearest awake position of its image in the 5x5 window, ties by (squared distance, dy,
            dx) ascending, none where nobody there is awake.
        out: int32 ``[N * P]``, contiguous, to write into.

    Returns:
        int32 ``[N * P]``: a row of the compact form, -1 where there is none.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here.
    """
    if fill not in INDEX_FILLS:
        raise ValueError(f"fill: got {fill!r}, allowed: {', '.join(INDEX_FILLS)}")
    device, (height, width) = bitmap.device, size
    images, total = len(bitmap), len(bitmap) * height * width
    shape = (images, height * width, 1)
    check_operand("bitmap", bitmap, dtypes=(torch.int32,), shape=shape, device=device)
    _check_rows(rows, total, device)
    out = _buffer("out", out, (total,), device)
    grid = (triton.cdiv(total, _BLOCK),)
    nearest = fill == "nearest"
    own = torch.empty_like(out) if nearest else out
    arguments: dict[str, Any] = {
        "bitmap": bitmap,
        "rows": rows.indices,
        "count": rows.counts,
        "index": own,
        "total": total,
        "BLOCK": _BLOCK,
    }
    launches = [Launch(_row_index_kernel, grid, arguments, num_warps=4, num_stages=1)]
    if nearest:
        arguments = {
            "index": own,
            "nearest": out,
            "total": total,
            "height": height,
            "width": width,
            "BLOCK": _BLOCK,
        }
        launches.append(Launch(_nearest_kernel, grid, arguments, num_warps=4, num_stages=1))
    return planned(out, *launches, on=("bitmap", bitmap))


plan_row_index = plan_of(row_index)
"""``(result, launches)`` of ``row_index``, and nothing is run: meta tensors will do."""


@launched
def tap_table(
    rows: AwakeRows,
    images: int,
    geometry: Geometry,
    index: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Which input row each tap of each awake output row reads.

    Args:
        rows: awake output positions: indices int32 ``[1, L]`` of ``n * P + p``, counts int32
            ``[1]``; ``L = N * P``.
        images: ``N``.
        geometry: of the convolution.
        index: int32 ``[N * H * W]`` from ``row_index`` where the input is compact; None where it is
            a full channels_last map, whose rows are its positions.
        out: int32 ``[KH * KW, L]``, contiguous, to write into.

    Returns:
        int32 ``[KH * KW, L]``: input rows, -1 where the tap reads zeros. Entries past the count
        are unspecified.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here.
    """
    device = rows.indices.device
    (height, width), (oh, ow) = geometry.size, geometry.size_out
    positions, taps = oh * ow, geometry.kernel_size[0] * geometry.kernel_size[1]
    capacity = images * positions
    _check_rows(rows, capacity, device)
    if max(images * height * width, taps * capacity) > MAX_ELEMENTS // 2:
        raise ValueError(
            f"geometry: got {geometry} for {images} images, allowed: below 2**30 input positions, "
            "and below 2**30 pairs of a tap and an output position"
        )
    if index is not None:
        shape = (images * height * width,)
        check_operand("index", index, dtypes=(torch.int32,), shape=shape, device=device)
    out = _buffer("out", out, (taps, capacity), device)
    arguments: dict[str, Any] = {
        "rows": rows.indices,
        "count": rows.counts,
        "index": index,
        "table": out,
        "capacity": capacity,
        "height": height,
        "width": width,
        "out_width": ow,
        "positions": positions,
        "KH": geometry.kernel_size[0],
        "KW": geometry.kernel_size[1],
        "STRIDE_H": geometry.stride[0],
        "STRIDE_W": geometry.stride[1],
        "DILATION_H": geometry.dilation[0],
        "DILATION_W": geometry.dilation[1],
        "TOP": geometry.padding[2],
        "LEFT": geometry.padding[0],
        "BLOCK": _BLOCK,
    }
    grid = (triton.cdiv(capacity, _BLOCK),)
    return planned(
        out,
        Launch(_tap_table_kernel, grid, arguments, num_warps=4, num_stages=1),
        on=("rows.indices", rows.indices),
    )


plan_tap_table = plan_of(tap_table)
"""``(result, launches)`` of ``tap_table``, and nothing is run: meta tensors will do."""


@launched
def expand_rows(
    rows: Tensor,
    index: Tensor,
    shape: tuple[int, int, int, int],
    *,
    residual: Tensor | None = None,
    post_activation: str = "none",
    post_slopes: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Fill in the full map of a compact activation: ``post_activation(filled + residual)``.

    Args:
        rows: ``[L, C]``, contiguous; float32, float16 or bfloat16.
        index: int32 ``[N * P]`` from ``row_index``; positions of -1 are filled with 0.
        shape: ``(N, C, OH, OW)``.
        residual: channels_last ``[N, C, OH, OW]`` of the rows' dtype, added to every position.
        post_activation: one of ``ACTIVATIONS``, applied after the sum.
        post_slopes: of post_activation ``prelu``, as for ``conv2d``.
        out: channels_last ``[N, C, OH, OW]`` to write into; every element is written.

    Returns:
        ``[N, C, OH, OW]``, channels_last, of the rows' dtype.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here.
    """
    device, (images, channels, oh, ow) = rows.device, shape
    total = images * oh * ow
    if rows.dim() != 2:
        raise ValueError(f"rows: got shape {tuple(rows.shape)}, allowed: [L, {channels}]")
    check_operand("rows", rows, dtypes=DTYPES, shape=(len(rows), channels), device=device)
    check_operand("index", index, dtypes=(torch.int32,), shape=(total,), device=device)
    if out is None:
        out = torch.empty(shape, dtype=rows.dtype, device=device, memory_format=torch.channels_last)
    elif tuple(out.shape) != shape:
        raise ValueError(f"out: got shape {tuple(out.shape)}, allowed: {shape}")
    _check_maps((rows.dtype,), out=out, residual=residual)
    block_n, blocks = _channel_blocks(channels)
    of_output = channels, rows.dtype, device
    arguments: dict[str, Any] = {
        "rows": rows,
        "index": index,
        "residual": residual,
        "y": out,
        "total": total,
        "blocks": blocks,
        "C": channels,
        **activation_arguments(post_activation, post_slopes, *of_output),
        "BLOCK_M": _BLOCK_POSITIONS,
        "BLOCK_N": block_n,
    }
    grid = (triton.cdiv(total, _BLOCK_POSITIONS) * blocks,)
    return planned(
        out,
        Launch(_expand_rows_kernel, grid, arguments, num_warps=4, num_stages=1),
        on=("rows", rows),
    )


plan_expand_rows = plan_of(expand_rows)
"""``(result, launches)`` of ``expand_rows``, and nothing is run: meta tensors will do."""


@launched
def join_rows(parts: Sequence[Tensor], count: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Concatenate the channels of compact activations of one map.

    Args:
        parts: ``[L, C]`` each, contiguous, of one dtype; one or more.
        count: int32, one element, read on the device: rows to copy, up to ``L``.
        out: ``[L, C of all parts]`` to write into; rows from ``count`` on are left as they are.

    Returns:
        ``[L, C of all parts]``.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here.
    """
    if not parts:
        raise ValueError("parts: got none, allowed: one or more")
    device, dtype, length = parts[0].device, parts[0].dtype, len(parts[0])
    for part in parts:
        shape = (length, *part.shape[1:2])
        check_operand("parts", part, dtypes=(dtype,), shape=shape, device=device)
    check_operand("count", count, dtypes=(torch.int32,), shape=(1,), device=device)
    width = sum(part.shape[1] for part in parts)
    if out is None:
        out = torch.empty((length, width), dtype=dtype, device=device)
    check_operand("out", out, dtypes=(dtype,), shape=(length, width), device=device)
    launches, first = [], 0
    for part in parts:
        channels = part.shape[1]
        block_n, blocks = _channel_blocks(channels)
        arguments: dict[str, Any] = {
            "rows": part,
            "y": out,
            "count": count,
            "first": first,
            "blocks": blocks,
            "C": channels,
            "PITCH": width,
            "BLOCK_M": _BLOCK_POSITIONS,
            "BLOCK_N": block_n,
        }
        grid = (triton.cdiv(length, _BLOCK_POSITIONS) * blocks,)
        launches.append(Launch(_join_rows_kernel, grid, arguments, num_warps=4, num_stages=1))
        first += channels
    return planned(out, *launches, on=("parts", parts[0]))


plan_join_rows = plan_of(join_rows)
"""``(result, launches)`` of ``join_rows``, and nothing is run: meta tensors will do."""


@launched
def fill_unread(
    y: Tensor,
    bitmap: Tensor,
    zeros: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    slopes: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    post_activation: str = "none",
    post_slopes: Tensor | None = None,
) -> Tensor:
    """Write what a 1x1 convolution need not compute, in place; the other positions stay.

    A position that sleeps comes out as ``post_activation(0 + residual)``; one that is awake and
    whose input is 0 in every channel, as ``post_activation(activation(bias) * scale + residual)``.

    Args:
        y: channels_last ``[N, C, OH, OW]``; float32, float16 or bfloat16.
        bitmap: int32 ``[N, P, 1]``, the layer's map, one channel cell.
        zeros: int32 ``[N, P, 1]``, the map of the layer before, whose sleepers are 0.
        bias, activation, slopes, scale, residual, post_activation, post_slopes: as for ``conv2d``.

    Returns:
        ``y``.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here.
    """
    if y.dim() != 4:
        raise ValueError(f"y: got shape {tuple(y.shape)}, allowed: [N, C, OH, OW]")
    images, channels, oh, ow = y.shape
    check_epilogue(bias, scale, channels, y.dtype, y.device)
    of_output = channels, y.dtype, y.device
    for name, words in (("bitmap", bitmap), ("zeros", zeros)):
        shape = (images, oh * ow, 1)
        check_operand(name, words, dtypes=(torch.int32,), shape=shape, device=y.device)
    _check_maps(DTYPES if residual is None else (residual.dtype,), y=y, residual=residual)
    block_n, blocks = _channel_blocks(channels)
    arguments: dict[str, Any] = {
        "y": y,
        "bitmap": bitmap,
        "zeros": zeros,
        "bias": bias,
        "scale": scale,
        "residual": residual,
        "total": images * oh * ow,
        "blocks": blocks,
        "C": channels,
        **activation_arguments(activation, slopes, *of_output),
        **activation_arguments(post_activation, post_slopes, *of_output, post=True),
        "BLOCK_M": _BLOCK_POSITIONS,
        "BLOCK_N": block_n,
    }
    grid = (triton.cdiv(images * oh * ow, _BLOCK_POSITIONS) * blocks,)
    return planned(
        y, Launch(_fill_unread_kernel, grid, arguments, num_warps=4, num_stages=1), on=("y", y)
    )


plan_fill_unread = plan_of(fill_unread)
"""``(result, launches)`` of ``fill_unread``, and nothing is run: meta tensors will do."""


def _check_maps(dtypes: tuple[torch.dtype, ...], **maps: Tensor | None) -> None:
    """Raise unless the tensors are channels_last maps of one shape and device."""
    first = next(tensor for tensor in maps.values() if tensor is not None)
    images, channels, oh, ow = first.shape
    for name, tensor in maps.items():
        if tensor is None:
            continue
        if tensor.dim() != 4:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, allowed: [N, C, OH, OW]")
        check_operand(
            f"{name} (as N, OH, OW, C)",
            tensor.permute(0, 2, 3, 1),
            dtypes=dtypes,
            shape=(images, oh, ow, channels),
            device=first.device,
        )


def _channel_blocks(channels: int) -> tuple[int, int]:
    """``(channels of a block, blocks)`` of a kernel that copies."""
    block_n = min(_MAX_BLOCK_CHANNELS, triton.next_power_of_2(max(channels, 1)))
    return block_n, triton.cdiv(channels, block_n)


def _check_rows(rows: AwakeRows, total: int, device: torch.device) -> None:
    if total > MAX_ELEMENTS // 2:
        raise ValueError(f"rows: got {total} positions in a batch, allowed: below 2**30")
    for name, tensor, shape in (
        ("rows.indices", rows.indices, (1, total)),
        ("rows.counts", rows.counts, (1,)),
    ):
        check_operand(name, tensor, dtypes=(torch.int32,), shape=shape, device=device)


def _buffer(name: str, out: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.int32, device=device)
    check_operand(name, out, dtypes=(torch.int32,), shape=shape, device=device)
    return out
