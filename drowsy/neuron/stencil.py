"""The fill ``stencil``: sleepers predicted from their awake neighbours by a table of weights."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.neuron.rows import copy_rows
from drowsy.neuron.window import NEAR, WINDOW, over_channels
from drowsy.sleep import Grain

# The eight neighbours ``(row, column)``, in the order of the table.
RING = tuple(sorted((dy, dx) for squared, dy, dx in WINDOW if squared <= NEAR))
# Elements of sleepers predicted at a time: they stay in the cache.
_PART = 1 << 17
# Sleepers with the same awake neighbours are predicted by themselves where they are so many
# elements; all others together, whose weights are then gathered one by one.
_MANY = 1 << 14


def predict(y: Tensor, asleep: Tensor, grain: Grain, table: Tensor) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` predicted from their neighbours."""
    channels = y.shape[1]
    # A cell's neurons lie together in a row, where all cells have as many.
    if channels % grain.cell(channels, 1)[1]:
        asleep = over_channels(asleep, channels, grain)
    filled = y.clone(memory_format=torch.channels_last)
    predict_(filled, *sleepers_of(asleep), asleep.shape[1], table)
    if filled.stride() == y.stride():
        return filled
    return torch.empty_like(y).copy_(filled)


def sleepers_of(asleep: Tensor) -> tuple[Tensor, Tensor]:
    """Who sleeps in a map ``[N, CC, OH, OW]``, and with which awake neighbours.

    Returns:
        int64 ``[S]``, their places in ``[N, OH, OW, CC]``, ascending; uint8 ``[S]``, their rows of
        the table.
    """
    sleepers = asleep.permute(0, 2, 3, 1).flatten().nonzero()[:, 0]
    return sleepers, awake_sets(asleep).permute(0, 2, 3, 1).flatten()[sleepers]


def predict_(y: Tensor, sleepers: Tensor, sets: Tensor, cells: int, table: Tensor) -> None:
    """Predict sleepers in place.

    Args:
        y: ``[N, C, OH, OW]`` in channels_last. Only what is awake is read.
        sleepers, sets: as of ``sleepers_of``.
        cells: channel cells, CC.
        table: as for ``neuron.sleep``.
    """
    channels, width = y.shape[1], y.shape[3]
    rows = y.permute(0, 2, 3, 1).view(-1, channels // cells)
    weights = table.to(torch.promote_types(y.dtype, torch.float32))
    weights = weights.view(len(table), len(RING) + 1, cells, -1)
    steps = [(dy * width + dx) * cells for dy, dx in RING]
    # Sleepers with the same awake neighbours have the same weights.
    order = _order(sets)
    sleepers, counts = sleepers[order], sets.bincount(minlength=len(table))
    many = counts * rows.shape[1] >= _MANY
    for number, alike in enumerate(sleepers.split(counts.tolist())):
        if many[number]:
            for part in alike.split(_PART // rows.shape[1] + 1):
                _alike(rows, part, number, weights[number], steps)
    few = ~many[sets.int()][order]
    for part, own in zip(
        sleepers[few].split(_PART // rows.shape[1] + 1),
        sets[order][few].split(_PART // rows.shape[1] + 1),
        strict=True,
    ):
        _unlike(rows, part, own, weights, steps)


def _order(sets: Tensor) -> Tensor:
    """Indices that sort rows of the table."""
    if sets.device.type == "cpu":  # a radix sort
        return torch.from_numpy(np.argsort(sets.numpy(), kind="stable"))
    return sets.argsort(stable=True)


def _alike(rows: Tensor, part: Tensor, number: int, weights: Tensor, steps: list[int]) -> None:
    """Predict sleepers of one set: ``weights`` ``[9, cells, c]``."""
    cells = weights.shape[1]
    own = weights[:, 0] if cells == 1 else weights[:, part % cells]
    value = own[-1].expand(len(part), -1).clone()
    for bit, step in enumerate(steps):
        if number >> bit & 1:
            there = rows.index_select(0, part + step)
            value.addcmul_(own[bit], there.to(value.dtype))
    copy_rows(rows, 0, part, value.to(rows.dtype))


def _unlike(rows: Tensor, part: Tensor, sets: Tensor, weights: Tensor, steps: list[int]) -> None:
    """Predict sleepers of any sets: ``weights`` ``[256, 9, cells, c]``."""
    cells = weights.shape[2]
    columns, sets = weights.view(-1, rows.shape[1]), sets.long()
    first, cell = sets * (len(RING) + 1), part % cells
    value = columns.index_select(0, (first + len(RING)) * cells + cell)
    for bit, step in enumerate(steps):
        awake = (sets >> bit & 1).nonzero()[:, 0]
        if len(awake):
            there = rows.index_select(0, part[awake] + step).to(value.dtype)
            own = columns.index_select(0, ((first + bit) * cells + cell)[awake])
            value.index_add_(0, awake, there.mul_(own))
    copy_rows(rows, 0, part, value.to(rows.dtype))


def awake_sets(asleep: Tensor) -> Tensor:
    """The row of the table for each cell: bit ``i`` where neighbour ``RING[i]`` is awake."""
    height, width = asleep.shape[2:]
    awake = F.pad(~asleep, (1, 1, 1, 1)).to(torch.uint8)
    sets = torch.zeros_like(asleep, dtype=torch.uint8)
    for bit, (dy, dx) in enumerate(RING):
        sets |= awake[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] << bit
    return sets
