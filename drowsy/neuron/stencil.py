"""The fill ``stencil``: sleepers predicted from their awake neighbours by a table of weights."""

from __future__ import annotations

from dataclasses import dataclass

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
_MANY = 1 << 16


@dataclass(frozen=True)
class Sleepers:
    """Who sleeps, and what each reads. Places are those of cells in ``[N, OH, OW, CC]``.

    Attributes:
        many: int64, places of sleepers with the same awake neighbours, those of one set of
            neighbours after those of another.
        sets: ``(set, sleepers)``, which sets ``many`` is of: bit ``i`` is ``RING[i]``.
        few: int64 ``[S]``, places of all other sleepers.
        constants: int64 ``[S]``, which constant of the table is theirs: a row of ``[256 * 9, CC]``.
        owners: int64 ``[R]``, which of ``few`` reads, ascending.
        read: int64 ``[R]``, the place that it reads.
        weights: int64 ``[R]``, with which weight of the table: a row of ``[256 * 9, CC]``.
    """

    many: Tensor
    sets: tuple[tuple[int, int], ...]
    few: Tensor
    constants: Tensor
    owners: Tensor
    read: Tensor
    weights: Tensor

    @classmethod
    def of_batch(cls, images: list[Sleepers], places: int) -> Sleepers:
        """Those of images that lie one after the other, each of so many places."""
        if len(images) == 1:
            return images[0]
        alike: dict[int, list[Tensor]] = {}
        before = 0
        owners = []
        for n, image in enumerate(images):
            counts = [count for _, count in image.sets]
            for (number, _), those in zip(image.sets, image.many.split(counts), strict=True):
                alike.setdefault(number, []).append(those + n * places)
            owners.append(image.owners + before)
            before += len(image.few)
        return cls(
            torch.cat([those for parts in alike.values() for those in parts])
            if alike
            else images[0].many,
            tuple((number, sum(map(len, parts))) for number, parts in alike.items()),
            torch.cat([image.few + n * places for n, image in enumerate(images)]),
            torch.cat([image.constants for image in images]),
            torch.cat(owners),
            torch.cat([image.read + n * places for n, image in enumerate(images)]),
            torch.cat([image.weights for image in images]),
        )


def many(elements: int, images: int = 1) -> int:
    """How many sleepers of one set, in one of so many images, are many.

    Args:
        elements: of each of them.
        images: that are predicted together.
    """
    return -(-_MANY // max(elements * images, 1))


def sleepers_of(asleep: Tensor, least: int) -> Sleepers:
    """Who sleeps in a map ``[N, CC, OH, OW]``, ``least`` of a set being many."""
    cells, width = asleep.shape[1], asleep.shape[3]
    places = asleep.permute(0, 2, 3, 1).flatten().nonzero()[:, 0]
    sets = awake_sets(asleep).permute(0, 2, 3, 1).flatten()[places].long()
    counts = sets.bincount(minlength=1 << len(RING))
    alike = (counts >= least)[sets]
    order = sets[alike].argsort(stable=True)
    few, own = places[~alike], sets[~alike]
    owners, bits = (own[:, None] >> torch.arange(len(RING), device=own.device) & 1).nonzero().T
    steps = torch.tensor([(dy * width + dx) * cells for dy, dx in RING], device=own.device)
    first, cell = own * (len(RING) + 1), few % cells
    return Sleepers(
        places[alike][order],
        tuple((n, count) for n, count in enumerate(counts.tolist()) if count >= max(least, 1)),
        few,
        (first + len(RING)) * cells + cell,
        owners,
        few[owners] + steps[bits],
        (first[owners] + bits) * cells + cell[owners],
    )


def predict(y: Tensor, asleep: Tensor, grain: Grain, table: Tensor) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` predicted from their neighbours."""
    channels = y.shape[1]
    # A cell's neurons lie together in a row, where all cells have as many.
    if channels % grain.cell(channels, 1)[1]:
        asleep = over_channels(asleep, channels, grain)
    cells = asleep.shape[1]
    filled = y.clone(memory_format=torch.channels_last)
    predict_(filled, sleepers_of(asleep, many(channels // cells)), cells, table)
    if filled.stride() == y.stride():
        return filled
    return torch.empty_like(y).copy_(filled)


def predict_(y: Tensor, sleepers: Sleepers, cells: int, table: Tensor) -> None:
    """Predict sleepers in place.

    Args:
        y: ``[N, C, OH, OW]`` in channels_last. Only what is awake is read.
        sleepers: of its map.
        cells: channel cells, CC.
        table: as for ``neuron.sleep``.
    """
    rows = y.permute(0, 2, 3, 1).view(-1, y.shape[1] // cells)
    wide = torch.promote_types(y.dtype, torch.float32)
    steps = [(dy * y.shape[3] + dx) * cells for dy, dx in RING]
    size = _PART // rows.shape[1] + 1
    counts = [count for _, count in sleepers.sets]
    for (number, _), alike in zip(sleepers.sets, sleepers.many.split(counts), strict=True):
        weights = table[number].to(wide).view(len(RING) + 1, cells, -1)
        for part in alike.split(size):
            _alike(rows, part, number, weights, steps)
    if len(sleepers.few):
        _unlike(rows, sleepers, table.view(-1, rows.shape[1]), size)


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


def _unlike(rows: Tensor, sleepers: Sleepers, table: Tensor, size: int) -> None:
    """Predict ``sleepers.few``: ``table`` ``[256 * 9 * cells, c]``, about ``size`` at a time."""
    value = table.index_select(0, sleepers.constants)
    value = value.to(torch.promote_types(rows.dtype, torch.float32))
    for owners, read, weights in zip(
        sleepers.owners.split(size),
        sleepers.read.split(size),
        sleepers.weights.split(size),
        strict=True,
    ):
        there = rows.index_select(0, read).to(value.dtype)
        own = table.index_select(0, weights).to(value.dtype)
        value.index_add_(0, owners, there.mul_(own))
    copy_rows(rows, 0, sleepers.few, value.to(rows.dtype))


def awake_sets(asleep: Tensor) -> Tensor:
    """The row of the table for each cell: bit ``i`` where neighbour ``RING[i]`` is awake."""
    height, width = asleep.shape[2:]
    awake = F.pad(~asleep, (1, 1, 1, 1)).to(torch.uint8)
    sets = torch.zeros_like(asleep, dtype=torch.uint8)
    for bit, (dy, dx) in enumerate(RING):
        sets |= awake[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] << bit
    return sets
