"""Areas of maps that are kept: lists of their positions, and what is computed there.

What is awake is told as boxes, rectangles of a grid's cells on one of several images. On the
device they become, for maps of every size at once, lists of the positions within; who works through
a list (``conv2d``, ``pool_areas``, ``place_areas``) writes there and nowhere else. How many boxes
there are and where they lie is data, so that one captured graph serves whatever is awake.
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
from drowsy_kernels.conv2d import MAX_ROWS
from drowsy_kernels.epilogue import activate, activation_arguments, offsets
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

BOX_FIELDS = 7
"""Of a box: image, first row and end, first column and end, and the grid's rows and columns."""
POOLS = ("max", "average")
"""What ``pool_areas`` makes of a window."""

# Entries of a list that a program writes, and boxes that it looks at together.
_LIST, _BOXES = 256, 16
# Lists begin at multiples of so many entries, which is 256 bytes.
_ALIGNED = 64
# Positions and channels of a tile where there is no matrix product: 16-byte loads of channels.
_TILE = (64, 32)


@triton.jit
def _border(index, cells, length):
    """Where a cell begins: at the nearest row, halves up."""
    return (2 * index * length + cells) // (2 * cells)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def list_areas_kernel(
    boxes,
    maps,
    indices,
    counts,
    blocks,
    FIELDS: tl.constexpr,
    BOXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``boxes`` [1 + most, FIELDS], how many there are first; ``maps`` (height, width, where its
    list begins); ``blocks`` programs a map, of ``BLOCK`` entries each."""
    which, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    height = tl.load(maps + which * 3)
    width = tl.load(maps + which * 3 + 1)
    first = tl.load(maps + which * 3 + 2)
    there = tl.load(boxes)
    item = block * BLOCK + tl.arange(0, BLOCK)
    position = tl.zeros([BLOCK], tl.int32)
    before = 0
    for first_box in range(0, there, BOXES):
        box = first_box + tl.arange(0, BOXES)
        m_box = box < there
        p_box = boxes + (box + 1) * FIELDS
        image = tl.load(p_box, mask=m_box, other=0)
        down = tl.load(p_box + 5, mask=m_box, other=1)
        across = tl.load(p_box + 6, mask=m_box, other=1)
        top = _border(tl.load(p_box + 1, mask=m_box, other=0), down, height)
        bottom = _border(tl.load(p_box + 2, mask=m_box, other=0), down, height)
        left = _border(tl.load(p_box + 3, mask=m_box, other=0), across, width)
        right = _border(tl.load(p_box + 4, mask=m_box, other=0), across, width)
        wide = right - left
        area = (bottom - top) * wide
        begin = before + tl.cumsum(area, axis=0) - area
        # Of the box that an entry lies in, if it is one of these.
        inside = (item[:, None] >= begin[None, :]) & (item[:, None] < (begin + area)[None, :])
        within = item - tl.sum(tl.where(inside, begin[None, :], 0), axis=1)
        line = tl.maximum(tl.sum(tl.where(inside, wide[None, :], 0), axis=1), 1)
        corner = (image * height + top) * width + left
        corner = tl.sum(tl.where(inside, corner[None, :], 0), axis=1)
        found = tl.sum(inside.to(tl.int32), axis=1) > 0
        position = tl.where(found, corner + within // line * width + within % line, position)
        before += tl.sum(area, axis=0)
    tl.store(indices + first + item, position, mask=item < before)
    if block == 0:
        tl.store(counts + which, before)


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def pool_areas_kernel(
    x,
    y,
    listed,
    count,
    height,
    width,
    out_width,
    positions,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    MAX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``x`` [N, H, W, C], ``y`` [N * positions, C]; channel tiles fastest."""
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    i = tl.program_id(0) // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.load(count)
    if tl.program_id(0) // TILES_N * BLOCK_M >= rows:
        return
    m_m = i < rows
    m = tl.load(listed + i, mask=m_m, other=0)
    c = tl.program_id(0) % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)
    m_c = c < C
    n = m // positions
    p = m - n * positions
    in_y = p // out_width * STRIDE_H - TOP
    in_x = p % out_width * STRIDE_W - LEFT
    if WIDE:
        n = n.to(tl.int64)
    o_x = (((n * height + in_y) * width + in_x) * C)[:, None] + c[None, :]
    acc = tl.full([BLOCK_M, BLOCK_N], float("-inf") if MAX else 0.0, tl.float32)
    for ky in range(KH):
        for kx in tl.static_range(KW):
            at_y, at_x = in_y + ky, in_x + kx
            m_tap = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            m_x = m_m[:, None] & m_tap[:, None] & m_c[None, :]
            p_x = x + (ky * width + kx) * C + o_x
            if MAX:
                b_x = tl.load(p_x, mask=m_x, other=float("-inf")).to(tl.float32)
                # NaN stays NaN, as in torch.
                acc = tl.where((acc > b_x) | (acc != acc), acc, b_x)
            else:
                acc += tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    if not MAX:
        acc = acc / (KH * KW)
    o_y = offsets(m, C, WIDE)[:, None] + c[None, :]
    tl.store(y + o_y, acc.to(y.dtype.element_ty), mask=m_m[:, None] & m_c[None, :])


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def place_areas_kernel(
    x,
    residual,
    slopes,
    y,
    listed,
    count,
    first,
    C: tl.constexpr,
    OC: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``x`` and ``residual`` [rows, C] into the columns from ``first`` on of ``y`` [rows, OC]."""
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    i = tl.program_id(0) // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.load(count)
    if tl.program_id(0) // TILES_N * BLOCK_M >= rows:
        return
    m_m = i < rows
    m = tl.load(listed + i, mask=m_m, other=0)
    c = tl.program_id(0) % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)
    m_tile = m_m[:, None] & (c < C)[None, :]
    o_x = offsets(m, C, WIDE)[:, None] + c[None, :]
    v = tl.load(x + o_x, mask=m_tile, other=0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + o_x, mask=m_tile, other=0).to(tl.float32)
    v = activate(v, ACTIVATION, SLOPE, slopes, c, c < C)
    o_y = offsets(m, OC, WIDE)[:, None] + c[None, :]
    tl.store(y + first + o_y, v.to(y.dtype.element_ty), mask=m_tile)


# --- lists ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AreaLists:
    """Lists of awake positions, for maps of several sizes; made by ``area_lists``.

    Attributes:
        images: of every map.
        sizes: ``(height, width)`` of the maps.
        maps: int32 ``[sizes, 3]``: height, width, and where the list begins.
        indices: int32: the lists, one after another; item ``n * P + p``, box after box.
        counts: int32 ``[sizes]``.
    """

    images: int
    sizes: tuple[tuple[int, int], ...]
    maps: Tensor
    indices: Tensor
    counts: Tensor

    def of(self, size: tuple[int, int]) -> AwakeRows:
        """The list for maps of one of the sizes: a view."""
        which = self.sizes.index(size)
        first = sum(_room(self.images, size) for size in self.sizes[:which])
        items = self.images * size[0] * size[1]
        indices = self.indices[first : first + items].view(1, items)
        return AwakeRows(indices, self.counts[which : which + 1])


def _room(images: int, size: tuple[int, int]) -> int:
    """Entries of a list, and up to where the next begins."""
    return triton.cdiv(images * size[0] * size[1], _ALIGNED) * _ALIGNED


def area_lists(
    images: int, sizes: Sequence[tuple[int, int]], device: torch.device | str
) -> AreaLists:
    """Room for the lists of maps of these sizes, all of them empty.

    Raises:
        ValueError: no image, no size, a map without positions, or 2**31 positions and more.
    """
    if images < 1:
        raise ValueError(f"images: got {images}, allowed: 1 or more")
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ValueError(f"sizes: got {sizes}, allowed: (height, width), each 1 or more")
    rooms = [_room(images, size) for size in sizes]
    if sum(rooms) > MAX_ROWS:
        raise ValueError(f"sizes: got {sum(rooms)} positions, allowed: up to {MAX_ROWS} in all")
    maps = [[*size, sum(rooms[:i])] for i, size in enumerate(sizes)]
    return AreaLists(
        images,
        tuple(sizes),
        torch.tensor(maps, dtype=torch.int32).to(device),
        torch.zeros(sum(rooms), dtype=torch.int32, device=device),
        torch.zeros(len(sizes), dtype=torch.int32, device=device),
    )


@launched
def list_areas(boxes: Tensor, lists: AreaLists) -> AreaLists:
    """List the positions of boxes, for maps of every size.

    Args:
        boxes: int32 ``[1 + most, BOX_FIELDS]``, read on the device: how many boxes there are,
            first of all, and then each of them in ``BOX_FIELDS``, ends exclusive. They must not
            overlap. Borders are at the nearest row or column, halves up.
        lists: to write into.

    Returns:
        ``lists``.

    Raises:
        ValueError, TypeError: boxes of another shape or dtype, or on another device.
    """
    device = lists.maps.device
    shape = (boxes.shape[0], BOX_FIELDS)
    check_operand("boxes", boxes, dtypes=(torch.int32,), shape=shape, device=device)
    blocks = triton.cdiv(max(lists.images * h * w for h, w in lists.sizes), _LIST)
    arguments = {
        "boxes": boxes,
        "maps": lists.maps,
        "indices": lists.indices,
        "counts": lists.counts,
        "blocks": blocks,
        "FIELDS": BOX_FIELDS,
        "BOXES": _BOXES,
        "BLOCK": _LIST,
    }
    grid = (len(lists.sizes) * blocks,)
    launch = Launch(list_areas_kernel, grid, arguments, num_warps=4, num_stages=1)
    return planned(lists, launch, on=("boxes", boxes))


plan_list_areas = plan_of(list_areas)
"""``(result, launches)`` of ``list_areas``, and nothing is run: meta tensors will do."""


# --- what is computed there ----------------------------------------------------------------------


@launched
def pool_areas(
    x: Tensor,
    awake: AwakeRows,
    out: Tensor,
    kind: str,
    kernel_size: tuple[int, int],
    *,
    stride: tuple[int, int],
    before: tuple[int, int] = (0, 0),
) -> Tensor:
    """Max or average of windows, at listed positions.

    Args:
        x: channels_last ``[N, C, H, W]``; float32, float16 or bfloat16.
        awake: a list of positions of ``out``; the others are left as they are.
        out: channels_last ``[N, C, OH, OW]`` of ``x``'s dtype.
        kind: one of ``POOLS``. An average counts what lies outside of ``x`` as zeros, a maximum
            does not count it.
        kernel_size, stride: ``(vertical, horizontal)``.
        before: rows above and columns to the left of ``x`` at which the first window begins.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or shapes that do not
            fit each other.
    """
    if kind not in POOLS:
        raise ValueError(f"kind: got {kind!r}, allowed: {', '.join(POOLS)}")
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("before", before, 0),
    ):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name}: got {pair}, allowed: 2 integers from {least}")
    images, channels, height, width = x.shape
    oh, ow = out.shape[2:]
    view, y = _maps(awake, x=(x, x.shape), out=(out, (images, channels, oh, ow)))
    arguments = {
        "x": view,
        "height": height,
        "width": width,
        "out_width": ow,
        "positions": oh * ow,
        "KH": kernel_size[0],
        "KW": kernel_size[1],
        "STRIDE_H": stride[0],
        "STRIDE_W": stride[1],
        "TOP": before[0],
        "LEFT": before[1],
        "MAX": kind == "max",
    }
    launch = _tiles(pool_areas_kernel, arguments, awake, y, channels, x.numel())
    return planned(out, launch, on=("x", x))


plan_pool_areas = plan_of(pool_areas)
"""``(result, launches)`` of ``pool_areas``, and nothing is run: meta tensors will do."""


@launched
def place_areas(
    x: Tensor,
    awake: AwakeRows,
    out: Tensor,
    *,
    first: int = 0,
    residual: Tensor | None = None,
    activation: str = "none",
    slopes: Tensor | None = None,
) -> Tensor:
    """``out = activation(x + residual)`` at listed positions, in channels from ``first`` on.

    Args:
        x: channels_last ``[N, C, H, W]``; float32, float16 or bfloat16.
        awake: a list of positions; the others are left as they are.
        out: channels_last ``[N, OC, H, W]`` of ``x``'s dtype, ``first + C`` channels or more.
        residual: like ``x``.
        activation: one of ``ACTIVATIONS``.
        slopes: of activation ``prelu``, ``[C]``, as for ``conv2d``.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or shapes that do not
            fit each other.
    """
    images, channels, height, width = x.shape
    if not 0 <= first <= out.shape[1] - channels:
        raise ValueError(
            f"first: got {first}, allowed: 0 to {out.shape[1] - channels}, so that {channels} "
            f"channels fit into {out.shape[1]}"
        )
    given = {"x": (x, x.shape), "out": (out, (images, out.shape[1], height, width))}
    if residual is not None:
        given["residual"] = (residual, x.shape)
    view, y, *added = _maps(awake, **given)
    arguments = {
        "x": view,
        "residual": added[0] if added else None,
        "first": first,
        "OC": out.shape[1],
        **activation_arguments(activation, slopes, channels, x.dtype, x.device),
    }
    launch = _tiles(place_areas_kernel, arguments, awake, y, channels, x.numel())
    return planned(out, launch, on=("x", x))


plan_place_areas = plan_of(place_areas)
"""``(result, launches)`` of ``place_areas``, and nothing is run: meta tensors will do."""


def _maps(awake: AwakeRows, **maps: tuple[Tensor, Sequence[int]]) -> list[Tensor]:
    """Maps as ``[N, H, W, C]``, checked against the shapes that they must have; ``x`` first."""
    x = maps["x"][0]
    if x.dtype not in DTYPES:
        raise TypeError(f"x: got {x.dtype}, allowed: {', '.join(map(str, DTYPES))}")
    views = []
    for name, (tensor, (n, c, h, w)) in maps.items():
        view = tensor.permute(0, 2, 3, 1)
        what = f"{name} (as N, H, W, C)"
        check_operand(what, view, dtypes=(x.dtype,), shape=(n, h, w, c), device=x.device)
        if h * w * c > MAX_ELEMENTS:
            raise ValueError(f"{name}: got {(c, h, w)}, allowed: fewer than 2**31 elements")
        views.append(view)
    n, _, h, w = maps["out"][1]
    for name, tensor, shape in (
        ("awake.indices", awake.indices, (1, n * h * w)),
        ("awake.counts", awake.counts, (1,)),
    ):
        check_operand(name, tensor, dtypes=(torch.int32,), shape=shape, device=x.device)
    return views


def _tiles(
    kernel: Any, arguments: dict[str, Any], awake: AwakeRows, y: Tensor, channels: int, read: int
) -> Launch:
    """A program for every tile that there may be; those past the end of the list return."""
    block_m, block_n = _TILE
    block_n = min(block_n, triton.next_power_of_2(channels))
    arguments = arguments | {
        "y": y,
        "listed": awake.indices,
        "count": awake.counts,
        "C": channels,
        "WIDE": max(read, y.numel()) > MAX_ELEMENTS,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
    }
    tiles = triton.cdiv(awake.indices.numel(), block_m) * triton.cdiv(channels, block_n)
    return Launch.pick(kernel, tiles, arguments, num_warps=4, num_stages=1)
