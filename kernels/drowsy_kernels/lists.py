"""Lists of what is awake, compacted from the sleep bitmap on the device.

A kernel that works through a list does an awake neuron's work and nothing else, whatever the map
looks like. Lists are built where the bitmap lies: no host synchronisation, no atomics, items in
ascending order, so that a list is a pure function of its bitmap and can be rebuilt inside a
captured graph. Lengths stay on the device too: a list has room for every item, ``counts`` says how
many entries are in force, and entries past the count are unspecified.

Compaction takes two launches: each block of items counts its awake ones; then each block sums the
counts before it, ranks its own items and scatters them. The first is left out where one block
holds a whole list, and where the map itself says how many are awake in every run (``exact``).
"""

# Triton's language has no type annotations.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
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

Shape = tuple[int, int, int, int]
Launches = tuple[Launch, ...]
COMBINATIONS = ("either", "both")
"""How ``combine`` makes one map of two: asleep where either is, or where both are."""

# Items of a block, 8 or 16 a thread. Long lists take the larger one, which keeps the counts that a
# block has to sum few: a thousand for 4 million items.
LIST_BLOCK = 1024
"""Items of a list that one program compacts, unless the list is long."""
_LONG_BLOCK = 4096
_LONG = LIST_BLOCK * 1024
# Counts summed at a time.
_COUNTS = 1024


@dataclass(frozen=True, eq=False)
class AwakeCells:
    """Awake cells of a batch.

    Attributes:
        indices: int32 ``[N * PC * CC]``; item ``(n * PC + pc) * CC + cc``, ascending.
        count: int32 ``[1]``.
    """

    indices: Tensor
    count: Tensor


@dataclass(frozen=True, eq=False)
class AwakeRows:
    """Awake positions of a batch, for every channel cell.

    Attributes:
        indices: int32 ``[CC, N * P]``; item ``n * P + p``, ascending.
        counts: int32 ``[CC]``.
    """

    indices: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class AwakeChannels:
    """Awake channels of every image.

    Attributes:
        indices: int32 ``[N, C]``; item is a channel, ascending.
        counts: int32 ``[N]``.
    """

    indices: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class AwakeBlocks:
    """Blocks of ``block`` channels in which a channel is awake, of every image.

    Attributes:
        indices: int32 ``[N, ceil(C / block)]``; item is a block, ascending.
        counts: int32 ``[N]``.
        block: channels of a block.
    """

    indices: Tensor
    counts: Tensor
    block: int


# --- kernels ------------------------------------------------------------------------------------


@triton.jit
def _awake(
    bitmap,
    members,
    item,
    items,
    cells,
    channels,
    cell_c,
    words,
    ORDER: tl.constexpr,
    UNIT: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Which items of list ``members`` exist and are awake, as int32 of 0 and 1.

    ``cells``: item (row, cell), all rows in one list. ``rows``: item is a row, a list for every
    cell. ``channels``: item is ``UNIT`` channels of an image's only row, awake if any of them is;
    they lie in ``SPAN`` words.
    """
    exists = item < items
    if ORDER == "channels":
        unit = tl.minimum(item, tl.maximum(items - 1, 0))
        first = unit * UNIT // cell_c
        last = (tl.minimum((unit + 1) * UNIT, channels) - 1) // cell_c
        awake = item < 0
        for step in tl.static_range(SPAN):
            word = first // 32 + step
            low, high = tl.maximum(first - word * 32, 0), tl.minimum(last - word * 32, 31)
            b_words = tl.load(bitmap + members * words + word, mask=exists & (high >= 0), other=-1)
            # Only the bits low to high remain.
            b_words = (~b_words).to(tl.uint32, bitcast=True) >> low.to(tl.uint32)
            b_words = b_words << (31 - tl.maximum(high, 0) + low).to(tl.uint32)
            awake = awake | (b_words != 0)
    else:
        if ORDER == "cells":
            row, cell = item // cells, item % cells
        else:
            row, cell = item, members
        b_words = tl.load(bitmap + row * words + cell // 32, mask=exists, other=-1)
        awake = ((b_words >> (cell % 32)) & 1) == 0
    return (exists & awake).to(tl.int32)


@triton.jit
def _count_kernel(
    bitmap,
    partial,
    items,
    cells,
    channels,
    cell_c,
    words,
    blocks,
    ORDER: tl.constexpr,
    UNIT: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Awake items of each block; ``partial`` [lists, blocks], grid: lists x blocks."""
    members, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    item = block * BLOCK + tl.arange(0, BLOCK)
    awake = _awake(bitmap, members, item, items, cells, channels, cell_c, words, ORDER, UNIT, SPAN)
    tl.store(partial + tl.program_id(0), tl.sum(awake, axis=0))


@triton.jit(do_not_specialize_on_alignment=VIEWS)
def _scatter_kernel(
    bitmap,
    partial,
    threshold,
    indices,
    counts,
    items,
    cells,
    channels,
    cell_c,
    words,
    blocks,
    ORDER: tl.constexpr,
    UNIT: tl.constexpr,
    SPAN: tl.constexpr,
    RUN: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write awake items at their ranks; grid: lists x blocks, the last block writes the count."""
    members, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    item = block * BLOCK + tl.arange(0, BLOCK)
    awake = _awake(bitmap, members, item, items, cells, channels, cell_c, words, ORDER, UNIT, SPAN)
    if partial is not None:
        sums = tl.zeros([COUNTS], tl.int32)
        for first in range(0, block, COUNTS):
            earlier = first + tl.arange(0, COUNTS)
            sums += tl.load(partial + members * blocks + earlier, mask=earlier < block, other=0)
        before = tl.sum(sums, axis=0)
    elif threshold is not None:
        before = block * (BLOCK // RUN) * (RUN - tl.load(threshold))
    else:
        before = 0
    rank = before + tl.cumsum(awake, axis=0) - 1
    p_out = indices + members * items + rank
    tl.store(p_out, item, mask=awake != 0)
    if block == blocks - 1:
        tl.store(counts + members, before + tl.sum(awake, axis=0))


# --- launchers ----------------------------------------------------------------------------------


@launched
def awake_cells(
    bitmap: Tensor, shape: Shape, cell: tuple[int, int], out: AwakeCells | None = None
) -> AwakeCells:
    """List the awake cells of a batch.

    Args:
        bitmap: int32 ``[N, PC, W]`` of ``sleep_map``.
        shape: ``(N, C, OH, OW)`` of the output that it is about.
        cell: ``(cell_p, cell_c)``: positions and channels that share a bit.
        out: lists to write into, as an earlier call with equal arguments returned them.

    Raises:
        ValueError, TypeError: an argument outside of what is listed here, or 2**31 items or more.
    """
    rows, cells = _check(bitmap, shape, cell)
    items = shape[0] * rows * cells
    indices, counts = _lists(bitmap, (items,), 1, None if out is None else (out.indices, out.count))
    launches = _compact(bitmap, indices, counts, "cells", items, shape, cell)
    return planned(AwakeCells(indices, counts), *launches, on=("bitmap", bitmap))


plan_awake_cells = plan_of(awake_cells)
"""``(result, launches)`` of ``awake_cells``, and nothing is run: meta tensors will do."""


@launched
def awake_rows(
    bitmap: Tensor,
    shape: Shape,
    cell: tuple[int, int],
    out: AwakeRows | None = None,
    *,
    exact: tuple[int, Tensor] | None = None,
) -> AwakeRows:
    """List the awake positions of a batch for every channel cell; needs ``cell_p == 1``.

    Args:
        bitmap, shape, cell, out: as for ``awake_cells``.
        exact: ``(k, threshold)`` promises that exactly ``k - threshold`` of every ``k`` items are
            awake in each of a list's blocks of ``LIST_BLOCK`` items, ``k`` a power of two up to
            there that divides ``OH * OW``; ``threshold`` int32, one element, read on the device.
            Saves the counting launch.
    """
    _, cells = _check(bitmap, shape, cell)
    if cell[0] != 1:
        raise ValueError(f"cell: got {cell}, allowed: one position (lists of rows)")
    positions = shape[2] * shape[3]
    if exact is not None:
        k, threshold = exact
        if not 1 <= k <= LIST_BLOCK or k & (k - 1) or positions % k:
            raise ValueError(
                f"exact: got runs of {k} in {positions} positions, allowed: a power of two up to "
                f"{LIST_BLOCK} that divides them"
            )
        check_operand(
            "exact threshold", threshold, dtypes=(torch.int32,), shape=(1,), device=bitmap.device
        )
    items = shape[0] * positions
    given = None if out is None else (out.indices, out.counts)
    indices, counts = _lists(bitmap, (cells, items), cells, given)
    launches = _compact(bitmap, indices, counts, "rows", items, shape, cell, exact=exact)
    return planned(AwakeRows(indices, counts), *launches, on=("bitmap", bitmap))


plan_awake_rows = plan_of(awake_rows)
"""``(result, launches)`` of ``awake_rows``, and nothing is run: meta tensors will do."""


@launched
def awake_channels(
    bitmap: Tensor, shape: Shape, cell: tuple[int, int], out: AwakeChannels | None = None
) -> AwakeChannels:
    """List the awake channels of every image; needs ``cell_p >= OH * OW``. See ``awake_cells``."""
    given = None if out is None else (out.indices, out.counts)
    return_lists, launches = _plan_channels(bitmap, shape, cell, 1, given)
    return planned(AwakeChannels(*return_lists), *launches, on=("bitmap", bitmap))


plan_awake_channels = plan_of(awake_channels)
"""``(result, launches)`` of ``awake_channels``, and nothing is run: meta tensors will do."""


@launched
def awake_blocks(
    bitmap: Tensor,
    shape: Shape,
    cell: tuple[int, int],
    block: int,
    out: AwakeBlocks | None = None,
) -> AwakeBlocks:
    """List the blocks of ``block`` channels with an awake channel, of every image.

    Needs ``cell_p >= OH * OW``; the last block may be narrower. See ``awake_cells``.
    """
    if block < 1:
        raise ValueError(f"block: got {block}, allowed: 1 channel or more")
    given = None if out is None else (out.indices, out.counts)
    made, launches = _plan_channels(bitmap, shape, cell, block, given)
    return planned(AwakeBlocks(*made, block), *launches, on=("bitmap", bitmap))


plan_awake_blocks = plan_of(awake_blocks)
"""``(result, launches)`` of ``awake_blocks``, and nothing is run: meta tensors will do."""


def combine(
    first: Tensor, second: Tensor, rule: str = "either", out: Tensor | None = None
) -> Tensor:
    """A bitmap of the cells that sleep in ``either`` of two bitmaps, or in ``both``.

    Args:
        first, second: int32 ``[N, PC, W]``, of the same shape and about the same cells.
        rule: ``either`` or ``both``.
        out: int32 of that shape to write into; may be one of the two.
    """
    if rule not in COMBINATIONS:
        raise ValueError(f"rule: got {rule!r}, allowed: {', '.join(COMBINATIONS)}")
    shape = tuple(first.shape)
    for name, bitmap in (("first", first), ("second", second), ("out", out)):
        if bitmap is not None:
            check_operand(name, bitmap, dtypes=(torch.int32,), shape=shape, device=first.device)
    function = torch.bitwise_or if rule == "either" else torch.bitwise_and
    return function(first, second, out=out)


# --- shared by the launchers --------------------------------------------------------------------


def _check(bitmap: Tensor, shape: Shape, cell: tuple[int, int]) -> tuple[int, int]:
    """``(PC, CC)`` of a bitmap, after checking that it fits ``shape`` and ``cell``."""
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"shape: got {shape}, allowed: (N, C, OH, OW), each 0 or more")
    if len(cell) != 2 or min(cell) < 1:
        raise ValueError(f"cell: got {cell}, allowed: (positions, channels), each 1 or more")
    n, channels, height, width = shape
    rows, cells = triton.cdiv(height * width, cell[0]), triton.cdiv(channels, cell[1])
    check_operand(
        "bitmap",
        bitmap,
        dtypes=(torch.int32,),
        shape=(n, rows, triton.cdiv(cells, 32)),
        device=bitmap.device,
    )
    if n * max(rows * cells, channels, height * width) > MAX_ELEMENTS - _LONG_BLOCK:
        raise ValueError(f"shape: got {shape}, allowed: fewer than 2**31 - {_LONG_BLOCK} items")
    return rows, cells


def _lists(
    bitmap: Tensor, shape: tuple[int, ...], lists: int, given: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """``(indices, counts)``, new or those given."""
    if given is None:
        new = [
            torch.empty(size, dtype=torch.int32, device=bitmap.device) for size in (shape, lists)
        ]
        return new[0], new[1]
    for name, tensor, size in zip(("indices", "counts"), given, (shape, (lists,)), strict=True):
        check_operand(
            f"out {name}", tensor, dtypes=(torch.int32,), shape=size, device=bitmap.device
        )
    return given


def _plan_channels(
    bitmap: Tensor,
    shape: Shape,
    cell: tuple[int, int],
    block: int,
    given: tuple[Tensor, Tensor] | None,
) -> tuple[tuple[Tensor, Tensor], Launches]:
    rows, _ = _check(bitmap, shape, cell)
    if rows > 1:
        raise ValueError(
            f"cell: got {cell}, allowed: all {shape[2] * shape[3]} positions (lists of channels)"
        )
    n, items = shape[0], triton.cdiv(shape[1], block)
    made = _lists(bitmap, (n, items), n, given)
    return made, _compact(bitmap, *made, "channels", items, shape, cell, unit=block)


def _compact(
    bitmap: Tensor,
    indices: Tensor,
    counts: Tensor,
    order: str,
    items: int,
    shape: Shape,
    cell: tuple[int, int],
    *,
    unit: int = 1,
    exact: tuple[int, Tensor] | None = None,
) -> Launches:
    lists = counts.shape[0]
    size = LIST_BLOCK if items <= _LONG else _LONG_BLOCK
    # An empty list still needs the program that writes its count.
    blocks = max(triton.cdiv(items, size), 1)
    shared: dict[str, Any] = {
        "bitmap": bitmap,
        "items": items,
        "cells": max(triton.cdiv(shape[1], cell[1]), 1),
        "channels": shape[1],
        "cell_c": cell[1],
        "words": bitmap.shape[2],
        "blocks": blocks,
        "ORDER": order,
        "UNIT": unit,
        "SPAN": (triton.cdiv(unit - 1, cell[1]) + 31) // 32 + 1 if unit > 1 else 1,
        "BLOCK": size,
    }
    options = {"num_warps": 4 if size == LIST_BLOCK else 8, "num_stages": 1}
    launches: Launches = ()
    partial = None
    if blocks > 1 and exact is None:
        partial = torch.empty((lists, blocks), dtype=torch.int32, device=bitmap.device)
        launches = (
            Launch(_count_kernel, (lists * blocks,), {**shared, "partial": partial}, **options),
        )
    scatter = {
        **shared,
        "partial": partial,
        "threshold": exact[1] if exact is not None else None,
        "indices": indices,
        "counts": counts,
        "RUN": exact[0] if exact is not None else 1,
        "COUNTS": _COUNTS,
    }
    return (*launches, Launch(_scatter_kernel, (lists * blocks,), scatter, **options))
