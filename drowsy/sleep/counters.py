"""Random numbers by counter: Philox-4x32-10.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A number is a function of its
counter and the seed alone. Sources count (cell, image, stream of the layer, tag); the *tag* is a
source's own, 0 to 4 so far, so that no two draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF

_ROUNDS = 10


def philox(c0: Tensor, c1: Tensor, c2: int, c3: int, seed: Tensor) -> tuple[Tensor, ...]:
    """Philox-4x32-10 at counters ``(c0, c1, c2, c3)`` with the 64-bit key ``seed``.

    Args:
        c0, c1: int64 tensors that broadcast together, values in [0, 2**32).
        c2, c3: integers in [0, 2**32).
        seed: int64 tensor of one element.

    Returns:
        four int64 tensors of the broadcast shape, values in [0, 2**32).
    """
    # (``torch.broadcast_shapes`` would import 500 modules at its first call.)
    x0, x1 = torch.broadcast_tensors(c0, c1)
    x2 = torch.full_like(x0, c2, memory_format=torch.contiguous_format)
    x3 = torch.full_like(x2, c3)
    key0, key1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(_ROUNDS):
        # Products exceed 63 bits and wrap; masking after the arithmetic shift undoes the sign.
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0 = (product1 >> 32).bitwise_and_(MASK32).bitwise_xor_(x1).bitwise_xor_(key0)
        x2 = (product0 >> 32).bitwise_and_(MASK32).bitwise_xor_(x3).bitwise_xor_(key1)
        x1, x3 = product1.bitwise_and_(MASK32), product0.bitwise_and_(MASK32)
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return x0, x1, x2, x3


def halves(words: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """The eight 16-bit halves of Philox's four words, the lower half of each first."""
    for word in words:
        yield word & 0xFFFF
        yield word >> 16
