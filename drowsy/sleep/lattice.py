"""The source ``lattice``: regular patterns that backends can skip as whole grids.

A tile of levels is repeated over the map; a *phase*, drawn for every image, shifts it. Nested tiles
are those of ordered dither: B. E. Bayer, "An optimum method for two-level rendition of
continuous-tone pictures", ICC 1973.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drowsy.sleep.counters import philox
from drowsy.sleep.memory import remembered
from drowsy.sleep.source import LayerMap, Source

_TAG = 2
_CPU = torch.device("cpu")


class Phased(Source):
    """A source that has ``k`` maps for a layer, and draws for every image which one it is."""

    @abc.abstractmethod
    def at_phases(self, layer: LayerMap, phases: Tensor) -> Tensor:
        """The level maps at these phases (int64 ``[n]``, each ``0 .. k-1``): ``[n, PC, CC]``."""

    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        return self.at_phases(
            layer, lattice_phases(layer.k, layer.stream, layer.phase, images, seed)
        )


@dataclass(frozen=True)
class Lattice(Phased):
    """A regular pattern with a random phase per image.

    A phase shifts the pattern; channel cells are a phase apart from each other. Where ``k`` is a
    power of two the pattern is one of nested lattices (Bayer's ordered dither). With ``k = 8``: at
    rate 1/4 every fourth diagonal sleeps, at 1/2 a checkerboard; at 3/4 every second position of
    every second row, at 7/8 every second of those, are all that is awake. For other ``k``, levels
    follow ``x + a*y``. Cells of more than one position lie in a line, each a phase from the last.

    Exactly ``j`` of any ``k`` channel cells that follow each other sleep, at every position; and
    exactly ``j/k`` of the positions of a channel cell, where both sides of the map are multiples
    of the pattern's period (4 for ``k = 8``).
    """

    name: ClassVar[str] = "lattice"
    revision: ClassVar[int] = 2
    spreads: ClassVar[bool] = True
    is_lattice: ClassVar[bool] = True

    def at_phases(self, layer: LayerMap, phases: Tensor) -> Tensor:
        row = None if layer.size is None else layer.size[1]
        return lattice_levels(layer.k, layer.cells, row, phases)

    def tables(self, layer: LayerMap, seed: Tensor) -> tuple[Tensor, ...]:
        return lattice_tables(layer.k, seed.device, layer.phase % layer.k)

    def exact_run(self, layer: LayerMap) -> int | None:
        if layer.size is None:
            return None
        # A band of whole periods.
        height, width = layer.size
        period = len(lattice_tables(layer.k)[0])
        return period * width if height % period == 0 and width % period == 0 else None


def lattice_phases(k: int, stream: int, phase: int, images: Tensor, seed: Tensor) -> Tensor:
    """The lattice's phase, ``0 .. k-1``, in each of these images: int64.

    Args:
        k, stream, phase: as for ``SleepSpec``.
        images, seed: as for ``Source.draw``.
    """
    drawn = philox(images * 0, images, stream, _TAG, seed)[0]
    return (((drawn >> 16) * k >> 16) + phase) % k


def lattice_levels(k: int, cells: tuple[int, int], row: int | None, phases: Tensor) -> Tensor:
    """A lattice's level maps at these phases: uint8 ``[phases, PC, CC]``.

    Args:
        cells: ``(PC, CC)``.
        row: the map's width where cells are single positions.
        phases: int64, each ``0 .. k-1``.
    """
    tile, shifts = lattice_tables(k, phases.device)
    p = torch.arange(cells[0], device=phases.device)[:, None]
    step = torch.arange(cells[1], device=phases.device) + phases[:, None, None]
    y, x = (p // row, p % row) if row else (0, 0)
    down, across = shifts[(step if row else step + p) % k].long().unbind(-1)
    return tile[(y + down) % len(tile), (x + across) % len(tile)]


@remembered
def lattice_tables(k: int, device: torch.device = _CPU, phase: int = 0) -> tuple[Tensor, Tensor]:
    """``(tile, shifts)`` of the lattice source, made on ``device`` once.

    (A captured graph cannot hold a copy from the host.)

    Returns:
        uint8 ``[T, T]``, levels in one period of the pattern; uint8 ``[k, 2]``, by how many rows
        and columns each phase shifts it, from phase ``phase`` on. At any position the ``k`` phases
        meet the ``k`` levels, in an order in which every prefix of levels is spread evenly round
        the circle of phases.
    """
    order = _spread_order(k)
    tile = _nested_tile(k) if k & (k - 1) == 0 else _diagonal_tile(k, order)
    place, period = torch.arange(tile.numel()), len(tile)
    first = place.new_full((k,), len(place)).scatter_reduce(0, tile.flatten(), place, "amin")
    shifts = torch.stack([first // period, first % period], dim=1)[order].roll(-phase, 0)
    return tile.to(torch.uint8).to(device), shifts.to(torch.uint8).to(device)


def _nested_tile(k: int) -> Tensor:
    """Levels of nested lattices, for ``k`` a power of two.

    The bits of a level, highest first, split the positions into the two colours of a checkerboard,
    a colour into every second row and column or the rest of it, and so on in that half. Where
    sleepers are few the second split is by diagonals instead: ``interpolate`` errs less where two
    of the four at a sleeper's corners sleep too than where it averages all eight round it.
    """
    period, count = 1 << (k.bit_length() // 2), k.bit_length() - 1
    y, x = torch.arange(period)[:, None].expand(period, period), torch.arange(period)
    bits: list[Tensor] = []
    while len(bits) < count:
        colour, row = (x + y) % 2, y % 2
        bits += [colour, row]
        x, y = (x - colour - row) // 2, (y - row) // 2
    if count >= 3:
        few = bits[0] == 0
        diagonal = bits[1] ^ bits[2]
        bits[1:3] = torch.where(few, diagonal, bits[1]), torch.where(few, bits[1], bits[2])
    return sum((bit << count - 1 - i for i, bit in enumerate(bits[:count])), torch.zeros(()).long())


def _diagonal_tile(k: int, order: Tensor) -> Tensor:
    """Levels that follow ``x + a*y``, for any ``k``.

    ``a`` is coprime to ``k`` (every row and column meets every level) and keeps the points of one
    level as far apart as it can.
    """
    y = torch.arange(k)
    slopes = torch.tensor([slope for slope in range(1, k) if math.gcd(slope, k) == 1])
    # Squared lengths of the vectors between two cells of the same level, the shortest in each row.
    x = -slopes[:, None] * y % k
    lengths = torch.minimum(x, k - x) ** 2 + y**2
    lengths[:, 0] = k * k
    # Of equals, ``argmax`` takes the first.
    slope = slopes[lengths.amin(dim=1).argmax()]
    return order[(y + slope * y[:, None]) % k]


def _spread_order(k: int) -> Tensor:
    """Levels ``0 .. k-1`` round a circle, every prefix spread evenly: int64 ``[k]``.

    The next level goes to the phase farthest from those that have one; of equals, to the one with
    the least sum of inverse squared distances, then to the lowest.
    """
    phase = torch.arange(k)
    order = torch.empty(k, dtype=torch.int64)
    nearest, crowding = torch.full((k,), k), torch.zeros(k, dtype=torch.float64)
    chosen = 0
    for level in range(k):
        order[chosen] = level
        gap = torch.minimum((phase - chosen) % k, (chosen - phase) % k)
        nearest = torch.minimum(nearest, gap)
        crowding += 1 / (gap * gap).double()
        farthest = nearest == nearest.max()
        chosen = int(torch.where(farthest, crowding, torch.inf).argmin())
    return order
