"""The source ``detail``: what is flat in the picture falls asleep first, on a lattice.

How much detail a picture has where is told once an inference, of the network's input
(``detail_map``), and everything on the way from there to a map is integers: sums in float64 are of
integers below ``2**53``, so that they are exact in any order, and maps agree bit for bit on every
device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drowsy.sleep.fovea import halves
from drowsy.sleep.lattice import Lattice, lattice_levels, lattice_phases
from drowsy.sleep.memory import remembered
from drowsy.sleep.source import LayerMap, Source

_CPU = torch.device("cpu")
# Pixels along a side of a part, and how many parts a side has at least and at most.
_SIDE, _LEAST, _MOST = 8, 16, 256
# Pixels are rounded to integers below 2**_BITS.
_BITS = 9


@dataclass(frozen=True)
class Detail(Source):
    """What is flat in the picture falls asleep first; a lattice in it stays awake.

    Up to rate 3/4, sleepers are the positions of ``lattice`` at 3/4 (every second of every second
    row is awake) in the flattest parts of the network's input: a third of the map at 1/4, two
    thirds at 1/2. Beyond, half of what was left sleeps in the same order, and so on. Parts are
    squares of 8 x 8 pixels, larger where the layer's map has fewer positions, and within equally
    flat ones the first sleep first.

    Exactly ``j/k`` of the positions of a channel cell sleep, rounded down. The map is a function of
    the picture, the seed and the layer's stream: the lattice has one phase for all images, and
    channel cells are a phase apart from each other. Grains of single positions only, and layers of
    a network that is given pictures.
    """

    name: ClassVar[str] = "detail"
    spreads: ClassVar[bool] = True
    single_positions: ClassVar[bool] = True
    sees: ClassVar[bool] = True

    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        (table,) = self.tables(layer, seed)
        channel = torch.arange(layer.cells[1], device=images.device)
        return table[:, channel % table.shape[1]].transpose(1, 2)

    def tables(self, layer: LayerMap, seed: Tensor) -> tuple[Tensor, ...]:
        return (_levels(layer, seed),)

    def simplest(self, k: int, j: int) -> Source:
        """``lattice``, where nobody sleeps in either."""
        return Lattice() if j == 0 else self

    @property
    def follows_seed(self) -> bool:
        return True

    def reseed(self, tables: tuple[Tensor, ...], layer: LayerMap, seed: Tensor) -> None:
        tables[0].copy_(_levels(layer, seed))


def detail_grid(height: int, width: int) -> tuple[int, int]:
    """Into how many parts a picture is divided, down and across."""
    down, across = (min(n, max(_LEAST, min(n // _SIDE, _MOST))) for n in (height, width))
    return down, across


@torch.no_grad()
def detail_map(pictures: Tensor) -> Tensor:
    """How much there is to see in each part of pictures.

    That is the sum, over a part's pixels and the channels, of the squared difference to the pixel
    above and to that on the left, where pixels are rounded to 9 bits of the picture's largest.

    Args:
        pictures: real ``[N, C, H, W]``.

    Returns:
        int32 ``[N, *detail_grid(H, W)]``, the same on every device, whatever other pictures there
        are; zeros for a picture that is not finite.
    """
    n, channels, height, width = pictures.shape
    parts = detail_grid(height, width)
    if pictures.numel() == 0:
        return torch.zeros((n, *parts), dtype=torch.int32, device=pictures.device)
    x = pictures.float()
    largest = torch.maximum(-x.amin((1, 2, 3)), x.amax((1, 2, 3)))
    # The power of two that takes the largest below 2**_BITS, written as a float's exponent.
    exponent = (largest.view(torch.int32) >> 23).clamp(30)
    unit = ((253 + _BITS - exponent) << 23).view(torch.float32)
    x = (x * unit[:, None, None, None]).round_()
    energy = torch.zeros((n, height, width), dtype=torch.float64, device=x.device)
    energy[:, 1:] += x.diff(dim=2).square_().sum(1, dtype=torch.float64)
    energy[:, :, 1:] += x.diff(dim=3).square_().sum(1, dtype=torch.float64)
    # What 31 bits hold of the most that there could be.
    most = (channels * height * width) << (2 * _BITS + 3)
    found = (_summed(energy, parts) / 2.0 ** max(most.bit_length() - 31, 0)).floor_()
    return torch.where(largest.isfinite()[:, None, None], found, 0).to(torch.int32)


def _summed(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Integers ``[N, H, W]`` summed over the areas of a smaller map: float64 ``[N, *size]``."""
    down, across = (
        _overlaps(cells, pixels, maps.device)
        for cells, pixels in zip(size, maps.shape[1:], strict=True)
    )
    return down @ maps.double() @ across.T


@remembered
def _overlaps(cells: int, pixels: int, device: torch.device = _CPU) -> Tensor:
    """How much of each pixel lies in each cell, in ``1/cells``: float64 ``[cells, pixels]``."""
    cell, pixel = torch.arange(cells)[:, None], torch.arange(pixels)
    first = torch.maximum(cell * pixels, pixel * cells)
    last = torch.minimum((cell + 1) * pixels, (pixel + 1) * cells)
    return (last - first).clamp(0).double().to(device)


def _levels(layer: LayerMap, seed: Tensor) -> Tensor:
    """The maps of a batch: uint8 ``[N, min(k, CC), P]``; channel cell ``c`` has the ``c % k``-th.

    Positions are in order of their turn (which part of the lattice's levels they belong to), the
    part of the picture that they lie in, the flattest first, and their place; the order is shared
    out among the levels.
    """
    assert layer.size is not None
    assert layer.detail is not None
    k, (height, width), (n, *given) = layer.k, layer.size, layer.detail.shape
    positions, device = height * width, seed.device
    phases = torch.arange(min(k, layer.cells[1]), device=device)
    if 0 in (n, positions, len(phases)):
        return torch.empty((n, len(phases), positions), dtype=torch.uint8, device=device)
    parts = min(given[0], height), min(given[1], width)
    turns = _turns(k, height, width, *parts, device)
    phases = (lattice_phases(k, layer.stream, 0, torch.zeros_like(phases), seed) + phases) % k
    flattest = _summed(layer.detail, parts).flatten(1).argsort(dim=1, stable=True)
    # Of every turn and part, how many positions come before its first one.
    order = flattest[:, None, None].expand(n, len(phases), turns.counts.shape[1], -1)
    counts = turns.counts[phases].expand(n, -1, -1, -1).gather(3, order)
    before = (counts.flatten(2).cumsum(2) - counts.flatten(2)).view_as(counts)
    before = torch.empty_like(before).scatter_(3, order, before).flatten(2)
    slot = turns.slot[phases].expand(n, -1, -1)
    rank = before.gather(2, slot) + turns.within[phases]
    if layer.upside_down:
        rank = positions - 1 - rank
    return (((rank + 1) * k - 1) // positions).to(torch.uint8)


@dataclass(frozen=True)
class _Turns:
    """What is known of a map's positions before a picture comes, at each of the lattice's phases.

    Attributes:
        counts: int64 ``[k, turns, parts]``, positions of a turn in a part of the picture.
        slot: int64 ``[k, P]``, each position's turn and part as an index to the last two of these.
        within: int64 ``[k, P]``, how many of a position's turn and part come before it.
    """

    counts: Tensor
    slot: Tensor
    within: Tensor


@remembered
def _turns(
    k: int, height: int, width: int, down: int, across: int, device: torch.device = _CPU
) -> _Turns:
    """Made on ``device`` once: a captured graph cannot hold a copy from the host."""
    ranges = turns_of(k)
    turn_of = torch.repeat_interleave(torch.tensor([last - first for first, last in ranges]))
    lattice = lattice_levels(k, (height * width, 1), width, torch.arange(k))[..., 0]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    # The part that the middle of a position lies in.
    part = (2 * y + 1) * down // (2 * height) * across + (2 * x + 1) * across // (2 * width)
    slot = turn_of[lattice.long()] * (down * across) + part.flatten()
    counts = torch.zeros((k, len(ranges) * down * across), dtype=torch.int64)
    counts.scatter_add_(1, slot, torch.ones_like(slot))
    sorted_slot, place = slot.sort(dim=1, stable=True)
    before = (counts.cumsum(1) - counts).gather(1, sorted_slot)
    within = torch.empty_like(slot).scatter_(1, place, torch.arange(height * width) - before)
    counts = counts.view(k, len(ranges), down * across)
    return _Turns(counts.to(device), slot.to(device), within.to(device))


def turns_of(k: int) -> list[tuple[int, int]]:
    """Levels ``0 .. k-1`` as ranges: the first three quarters, half of what is left, and so on."""
    return halves(k, max(3 * k // 4, 1))
