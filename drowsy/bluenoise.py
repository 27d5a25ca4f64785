"""Blue-noise rank maps by void-and-cluster.

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

import numpy as np

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
