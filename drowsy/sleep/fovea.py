"""The source ``fovea``: a lattice that falls asleep from the border inwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from drowsy.sleep.lattice import Lattice, Phased, lattice_tables
from drowsy.sleep.memory import remembered
from drowsy.sleep.source import LayerMap, Source

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fovea(Phased):
    """A lattice that falls asleep from the border inwards: images are looked at in the middle.

    Levels of ``lattice`` are taken by halves: those below ``k/2``, the next quarter, the next
    eighth and so on. The positions of each are put in order by their distance from the centre, as a
    fraction of the map's height and width, and shared out among its levels, the farthest first. So
    at rates 1/2, 3/4, 7/8 ... the map is that of ``lattice``, with its phase; between two of these,
    cells pass from the sparser lattice to the denser one from the border inwards, and sleepers have
    as many awake neighbours as in the denser one.

    What a channel cell's map holds at ``j/k`` is exact to within one position of what its halves
    hold, and the same for any two images of one phase. Grains of single positions only.
    """

    name: ClassVar[str] = "fovea"
    spreads: ClassVar[bool] = True
    single_positions: ClassVar[bool] = True

    def at_phases(self, layer: LayerMap, phases: Tensor) -> Tensor:
        assert layer.size is not None
        table = fovea_table(layer.k, *layer.size, phases.device)
        channel = torch.arange(layer.cells[1], device=phases.device)
        return table[(phases[:, None] + channel) % layer.k].transpose(1, 2)

    def tables(self, layer: LayerMap, seed: Tensor) -> tuple[Tensor, ...]:
        assert layer.size is not None
        return (fovea_table(layer.k, *layer.size, seed.device, layer.phase % layer.k),)

    def simplest(self, k: int, j: int) -> Source:
        """``lattice``, where half of what was left sleeps."""
        return Lattice() if any(j == last for _, last in halves(k)) else self


@remembered
def fovea_table(
    k: int, height: int, width: int, device: torch.device = _CPU, phase: int = 0
) -> Tensor:
    """Levels of a whole map at each of the lattice's phases, from ``phase`` on.

    (Made on ``device`` once: a captured graph cannot hold a copy from the host.)

    Returns:
        uint8 ``[k, height * width]``.
    """
    y, x = torch.arange(height)[:, None], torch.arange(width)
    # Twice the distances from the centre as fractions of the sides, all of it times both sides.
    distance = ((2 * y + 1 - height) * width) ** 2 + ((2 * x + 1 - width) * height) ** 2
    inwards = distance.flatten().argsort(descending=True, stable=True).numpy()
    table = np.empty((k, height * width), np.uint8)
    tile, shifts = (each.numpy() for each in lattice_tables(k, _CPU, phase % k))
    down, across = np.arange(height)[:, None], np.arange(width)
    for levels, (y, x) in zip(table, shifts.astype(int), strict=True):
        pattern = tile[(down + y) % len(tile), (across + x) % len(tile)].flatten()[inwards]
        left = inwards
        for first, last in halves(k):
            # (256 is no uint8 to compare with.)
            own = pattern <= last - 1
            places = left[own]
            levels[places] = first + np.arange(len(places)) * (last - first) // max(len(places), 1)
            left, pattern = left[~own], pattern[~own]
    return torch.from_numpy(table).to(device)


def halves(k: int, first: int = 0) -> list[tuple[int, int]]:
    """Levels ``0 .. k-1`` as ranges: those below ``first``, then each time half of what is left."""
    ranges = [(0, first)] if first else []
    while first < k:
        last = k - (k - first) // 2
        ranges.append((first, last))
        first = last
    return ranges
