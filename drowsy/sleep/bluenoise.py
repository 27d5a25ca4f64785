"""The source ``bluenoise``, and its rank map by void-and-cluster.

A rank map orders the positions of a square tile, opposite edges joined, so that the first ones of
any number are spread evenly and without a pattern: none lie close together, none are far from all.
So are the last ones. Source: R. Ulichney, "The void-and-cluster method for dither array
generation", Proc. SPIE 1913, 1993.

The map is made, not shipped, and still the same everywhere: energies are integers, so that their
sums and comparisons are exact.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from drowsy.sleep.counters import halves, philox
from drowsy.sleep.memory import remembered
from drowsy.sleep.source import LayerMap, Source

_TAG = 4
_CPU = torch.device("cpu")
# Positions along a tile's side.
SIDE = 64
# Of the Gaussian that says how crowded a position is, in positions. Ulichney takes 1.5, for the
# sparse end; at rates of 1/4 to 7/8 sleepers lie nearer to more awake neighbours with 1.
_SIGMA = 1.0
# Energies are multiples of 1 / _UNIT of the Gaussian's peak: coarse enough that rounding hides the
# last digits of ``exp``, which differ between machines.
_UNIT = 1 << 30
# Share of the positions with which the tile starts.
_START = 0.1


@dataclass(frozen=True)
class BlueNoise(Source):
    """Sleepers spread as evenly as a pattern without directions can be: void-and-cluster.

    ``rank_map``, a tile of 64 x 64 positions, is repeated over the layer;
    the level is the rank scaled to ``k``, so that a rate is a length of the ranks' prefix. The tile
    is shifted at random, anew for every image and channel cell.

    Over any 64 x 64 positions each level occurs ``4096 / k`` times, exactly where ``k`` divides
    4096 and within 1 otherwise. Maps of other sizes are cut out of the tile, so the number of
    sleepers varies between images: at rate 1/2 by a standard deviation of 1.0 at 7 x 7, 1.5 at
    14 x 14, 2.7 at 28 x 28 and 3.1 at 56 x 56, a third to a ninth of what independent bits give.
    Grains of single positions only.
    """

    name: ClassVar[str] = "bluenoise"
    spreads: ClassVar[bool] = True
    single_positions: ClassVar[bool] = True

    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        assert layer.size is not None
        (positions, channels), device = layer.cells, images.device
        blocks = torch.arange(-(-channels // 8), device=device)
        words = philox(blocks, images[:, None], layer.stream, _TAG, seed)
        shift = torch.stack(list(halves(words)), dim=-1).flatten(1)[:, None, :channels]
        p = torch.arange(positions, device=device)[:, None]
        y, x = p // layer.size[1] + (shift >> 8), p % layer.size[1] + shift
        return bluenoise_table(layer.k, layer.upside_down, device)[y % SIDE, x % SIDE]

    def tables(self, layer: LayerMap, seed: Tensor) -> tuple[Tensor, ...]:
        return (bluenoise_table(layer.k, layer.upside_down, seed.device),)


@remembered
def bluenoise_table(k: int, upside_down: bool = False, device: torch.device = _CPU) -> Tensor:
    """The level of every position of the blue-noise tile: uint8 ``[64, 64]``, made once."""
    ranks, count = torch.from_numpy(rank_map()), SIDE**2
    if upside_down:
        ranks = count - 1 - ranks
    return (ranks * k // count).to(torch.uint8).to(device)


@functools.cache
def rank_map(seed: int = 0) -> np.ndarray:
    """The ranks ``0 .. SIDE**2 - 1`` of a tile's positions: int64 ``[SIDE, SIDE]``.

    Args:
        seed: of the positions that the tile starts with.
    """
    gaussian = _gaussian()
    # Twice as wide, so that every shift of it is a view.
    tiled = np.tile(gaussian, (2, 2))
    drawn = random.Random(seed)
    chance = [drawn.random() for _ in range(SIDE * SIDE)]
    first = sorted(range(SIDE * SIDE), key=chance.__getitem__)[: int(_START * SIDE * SIDE)]
    # How near the chosen ones are, at every position; ``taken`` is larger than any such energy.
    energy = np.zeros((SIDE, SIDE), np.int64)
    chosen = np.zeros((SIDE, SIDE), bool)
    taken = int(gaussian.sum()) + 1

    def flip(place: int) -> None:
        y, x = divmod(place, SIDE)
        sign = -1 if chosen[y, x] else 1
        energy[...] += sign * tiled[SIDE - y : 2 * SIDE - y, SIDE - x : 2 * SIDE - x]
        chosen[y, x] = not chosen[y, x]

    def tightest_cluster() -> int:
        return int(np.where(chosen, energy, -1).argmax())

    def largest_void() -> int:
        return int(np.where(chosen, taken, energy).argmin())

    for place in first:
        flip(place)
    while True:
        moved = tightest_cluster()
        flip(moved)
        void = largest_void()
        flip(void)
        if void == moved:
            break
    ranks = np.empty(SIDE * SIDE, np.int64)
    start = chosen.copy(), energy.copy()
    for rank in reversed(range(len(first))):
        ranks[place := tightest_cluster()] = rank
        flip(place)
    chosen[...], energy[...] = start
    # Past one half the rule is the tightest cluster of those left: the two are the same position,
    # as the energies of the chosen and of the others add up to a constant.
    for rank in range(len(first), SIDE * SIDE):
        ranks[place := largest_void()] = rank
        flip(place)
    return ranks.reshape(SIDE, SIDE)


def _gaussian() -> np.ndarray:
    """The Gaussian round position 0, in units: int64 ``[SIDE, SIDE]``."""
    away = [min(place, SIDE - place) for place in range(SIDE)]
    return np.array(
        [[round(_UNIT * math.exp(-(y * y + x * x) / (2 * _SIGMA**2))) for x in away] for y in away],
        np.int64,
    )
