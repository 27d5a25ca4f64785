"""Random numbers by counter: Philox-4x32-10.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A number is a function of its
counter and the seed alone. Sources count (cell, image, stream of the layer, tag); the *tag* is a
source's own, 0 to 4 so far, so that no two draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_STEPS = 0x9E3779B9, 0xBB67AE85
# Counters of one draw on the CPU: the half dozen temporaries of its rounds stay in the L2 cache.
_CPU_CHUNK = 1 << 14


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
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0 = (product1 >> 32).bitwise_and_(MASK32).bitwise_xor_(x1).bitwise_xor_(key0)
        x2 = (product0 >> 32).bitwise_and_(MASK32).bitwise_xor_(x3).bitwise_xor_(key1)
        x1, x3 = product1.bitwise_and_(MASK32), product0.bitwise_and_(MASK32)
        key0, key1 = (key0 + _STEPS[0]) & MASK32, (key1 + _STEPS[1]) & MASK32
    return x0, x1, x2, x3


def halves(words: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """The eight 16-bit halves of Philox's four words, the lower half of each first."""
    for word in words:
        yield word & 0xFFFF
        yield word >> 16


def halves_on_cpu(
    counters: int, images: Tensor, stream: int, tag: int, seed: Tensor
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The same halves of ``philox(0 .. counters - 1, images[:, None], stream, tag, seed)``.

    NumPy takes half of torch's time: it has less to do before an operation starts, multiplies
    64-bit integers faster, and shifts without a sign.

    Args:
        counters: how many values the first counter takes.
        images: int64 ``[N]`` on the CPU, the values of the second.
        stream, tag: the third and fourth.
        seed: int64 tensor of one element.

    Yields:
        part by part: which images, which counters, and their halves, uint16 ``[n, c, 8]``. The next
        part overwrites them.
    """
    columns = min(counters, _CPU_CHUNK)
    rows = max(min(_CPU_CHUNK // max(columns, 1), len(images)), 1)
    words = np.empty((rows * columns, 4), np.uint32)
    # Rows a power of two of bytes apart would displace each other from the cache.
    room = np.empty((6, rows * columns + 24), np.uint64)
    c1 = images.numpy().astype(np.uint64)
    key = int(seed) & MASK32, int(seed) >> 32 & MASK32
    for row in range(0, len(images), rows):
        for column in range(0, counters, columns):
            which = slice(row, row + rows), slice(column, min(column + columns, counters))
            c0 = np.arange(which[1].start, which[1].stop, dtype=np.uint64)
            count = len(c1[which[0]]) * len(c0)
            drawn = _rounds(c0, c1[which[0], None], stream, tag, key, room[:, :count])
            for word, values in enumerate(drawn):
                words[:count, word] = values
            yield *which, words[:count].view(np.uint16).reshape(-1, len(c0), 8)


def _rounds(
    c0: np.ndarray, c1: np.ndarray, c2: int, c3: int, key: tuple[int, int], room: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Philox at counters that broadcast to ``[n, c]``: four rows of ``room`` ``[6, n * c]``."""
    x0, x2, product0, product1, x1, x3 = (row.reshape(len(c1), -1) for row in room)
    low, half = np.uint64(MASK32), np.uint64(32)
    multiplier0, multiplier1 = map(np.uint64, _MULTIPLIERS)
    np.copyto(x0, c0)
    np.copyto(x1, c1)
    x2.fill(c2)
    x3.fill(c3)
    for step in range(_ROUNDS):
        key0, key1 = (
            np.uint64((k + step * add) & MASK32) for k, add in zip(key, _STEPS, strict=True)
        )
        np.multiply(x0, multiplier0, product0)
        np.multiply(x2, multiplier1, product1)
        for x, product, other, k in ((x0, product1, x1, key0), (x2, product0, x3, key1)):
            np.right_shift(product, half, x)
            np.bitwise_xor(x, other, x)
            np.bitwise_xor(x, k, x)
            np.bitwise_and(product, low, product)
        x1, x3, product0, product1 = product1, product0, x3, x1
    return tuple(x.reshape(-1) for x in (x0, x1, x2, x3))
