"""The source ``detail``: what is flat in the picture falls asleep first, on a lattice.

Which parts of a picture are flat is told once an inference, of the network's input
(``detail_map``). All that is added up on the way to a map are integers, those in float32 up to
``2**24`` and those in float64 below ``2**53``: sums are exact in any order, and maps agree bit for
bit on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.sleep.fovea import halves
from drowsy.sleep.lattice import Lattice, lattice_levels, lattice_phases
from drowsy.sleep.memory import remembered
from drowsy.sleep.source import LayerMap, Source

_CPU = torch.device("cpu")
# Pixels along a side of a part, and how many parts a side has at least and at most.
_SIDE, _LEAST, _MOST = 8, 16, 256
# Pixels are rounded to integers below 2**_BITS.
_BITS = 12


@dataclass(frozen=True)
class Detail(Source):
    """What is flat in the picture falls asleep first; a lattice in it stays awake.

    Up to rate 3/4, sleepers are the positions of ``lattice`` at 3/4 (every second of every second
    row is awake) in the flattest parts of the network's input: a third of the map at 1/4, two
    thirds at 1/2. Beyond, half of what was left sleeps in the same order, and so on. A position is
    as flat as the part of the picture, of about 8 x 8 pixels, that its middle lies in.

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

    def exact_run(self, layer: LayerMap) -> int | None:
        # An image: no part of one.
        positions = layer.cells[0]
        return positions if positions % layer.k == 0 else None

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
    """The parts of pictures in order, from the flattest to the one with most to see.

    What there is to see is the sum, over the pixels of the 3 x 3 parts round one and over the
    channels, of the absolute differences to the pixel above and to that on the left. Pixels are
    rounded to 12 bits of the picture's largest; beyond the border are the parts along it once more.

    Args:
        pictures: real ``[N, C, H, W]``.

    Returns:
        int32 ``[N, *detail_grid(H, W)]``: how many parts of its picture come before each. Of equal
        ones, and of those of a picture that is not finite, the first by place. The same on every
        device, whatever other pictures there are.
    """
    n, channels, height, width = pictures.shape
    down, across = detail_grid(height, width)
    if pictures.numel() == 0:
        return torch.zeros((n, down, across), dtype=torch.int32, device=pictures.device)
    x = pictures.float().contiguous()
    largest = torch.maximum(-x.amin((1, 2, 3)), x.amax((1, 2, 3)))
    # The power of two that takes the largest below 2**_BITS, written as a float's exponent.
    exponent = (largest.view(torch.int32) >> 23).clamp(_BITS)
    unit = ((253 + _BITS - exponent) << 23).view(torch.float32)
    x = (x * unit[:, None, None, None]).round_()
    exact = torch.float32 if channels << (_BITS + 2) <= 1 << 24 else torch.float64
    changes = F.pad(x.diff(dim=3).abs_().sum(1, dtype=exact), (1, 0))
    changes[:, 1:] += x.diff(dim=2).abs_().sum(1, dtype=exact)
    rows, columns = _near(down, height, x.device), _near(across, width, x.device)
    seen = (rows @ changes.double() @ columns.T).flatten(1)
    order = torch.where(largest.isfinite()[:, None], seen, 0).argsort(dim=1, stable=True)
    place = torch.arange(down * across, dtype=torch.int32, device=x.device).expand(n, -1)
    return torch.empty_like(place).scatter_(1, order, place).view(n, down, across)


@remembered
def _near(parts: int, pixels: int, device: torch.device = _CPU) -> Tensor:
    """How much of each pixel lies in a part or one beside it: float64 ``[parts, pixels]``.

    In ``1/parts`` of a pixel. Beyond the border are the parts along it once more.
    """
    part, pixel = torch.arange(parts)[:, None], torch.arange(pixels)
    first = torch.maximum(part * pixels, pixel * parts)
    last = torch.minimum((part + 1) * pixels, (pixel + 1) * parts)
    inside = (last - first).clamp(0).double()
    return (
        torch.cat([inside[:1], inside[:-1]]) + inside + torch.cat([inside[1:], inside[-1:]])
    ).to(device)


def _levels(layer: LayerMap, seed: Tensor) -> Tensor:
    """The maps of a batch: uint8 ``[N, min(k, CC), P]``; channel cell ``c`` has the ``c % k``-th.

    Positions are in order of their turn (which range of the lattice's levels they belong to), the
    part of the picture that they lie in, the flattest first, and their place; the order is shared
    out among the levels.
    """
    assert layer.size is not None
    assert layer.detail is not None
    k, (height, width), (n, down, across) = layer.k, layer.size, layer.detail.shape
    positions, device = height * width, seed.device
    phases = torch.arange(min(k, layer.cells[1]), device=device)
    if 0 in (n, positions, len(phases)):
        return torch.empty((n, len(phases), positions), dtype=torch.uint8, device=device)
    phases = (lattice_phases(k, layer.stream, 0, torch.zeros_like(phases), seed) + phases) % k
    turns = _turns(k, height, width, down, across, device)
    counts = turns.counts[phases].expand(n, -1, -1, -1)
    place = layer.detail.long().flatten(1)[:, None, None].expand_as(counts)
    # How many positions come before the first one of each turn and part.
    ordered = torch.empty_like(counts).scatter_(3, place, counts).flatten(2)
    before = (ordered.cumsum(2) - ordered).view_as(counts).gather(3, place).flatten(2)
    rank = before.gather(2, turns.slot[phases].expand(n, -1, -1)) + turns.within[phases]
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
    turn_of = torch.tensor([turn for turn, own in enumerate(ranges) for _ in range(*own)])
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
