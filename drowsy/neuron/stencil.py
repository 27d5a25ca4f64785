"""The fill ``stencil``: sleepers predicted from their awake neighbours by a table of weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.neuron.window import NEAR, WINDOW, over_channels
from drowsy.sleep import Grain

# The eight neighbours ``(row, column)``, in the order of the table.
RING = tuple(sorted((dy, dx) for squared, dy, dx in WINDOW if squared <= NEAR))
# Elements of sleepers predicted at a time: they stay in the cache.
_PART = 1 << 14


def predict(y: Tensor, asleep: Tensor, grain: Grain, table: Tensor) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` predicted from their neighbours."""
    channels, width = y.shape[1], y.shape[3]
    # A cell's neurons lie together in a row, where all cells have as many.
    if channels % grain.cell(channels, 1)[1]:
        asleep = over_channels(asleep, channels, grain)
    cells = asleep.shape[1]
    dtype = torch.promote_types(y.dtype, torch.float32)
    weights = table.to(dtype).view(len(table), len(RING) + 1, cells, channels // cells)

    sleepers = asleep.permute(0, 2, 3, 1).flatten().nonzero()[:, 0]
    # Sleepers with the same awake neighbours have the same weights.
    order = awake_sets(asleep).permute(0, 2, 3, 1).flatten()[sleepers].sort(stable=True)
    counts = order.values.bincount(minlength=len(table)).tolist()

    filled = y.clone(memory_format=torch.channels_last)
    rows = filled.permute(0, 2, 3, 1).view(-1, channels // cells)
    for number, alike in enumerate(sleepers[order.indices].split(counts)):
        for part in alike.split(_PART // rows.shape[1] + 1):
            own = weights[number] if cells == 1 else weights[number][:, part % cells]
            value = own[-1].expand(len(part), -1).clone()
            for bit, (dy, dx) in enumerate(RING):
                if number >> bit & 1:
                    there = rows.index_select(0, part + (dy * width + dx) * cells)
                    value.addcmul_(own[bit], there.to(dtype))
            rows.index_copy_(0, part, value.to(y.dtype))
    if filled.stride() == y.stride():
        return filled
    return torch.empty_like(y).copy_(filled)


def awake_sets(asleep: Tensor) -> Tensor:
    """The row of the table for each cell: bit ``i`` where neighbour ``RING[i]`` is awake."""
    height, width = asleep.shape[2:]
    awake = F.pad(~asleep, (1, 1, 1, 1))
    sets = torch.zeros_like(asleep, dtype=torch.int64)
    for bit, (dy, dx) in enumerate(RING):
        sets |= awake[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width].long() << bit
    return sets
