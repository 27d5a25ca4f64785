"""The 5x5 window in which a sleeper looks for awake neighbours.

A shift of a padded map is a contiguous slice of its memory, of any layout: several times as fast as
a slice of its rows and columns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from drowsy.sleep import Grain

REACH = 2
# The window but its centre, the nearest first: (squared distance, row, column).
WINDOW = sorted(
    (dy * dy + dx * dx, dy, dx)
    for dy in range(-REACH, REACH + 1)
    for dx in range(-REACH, REACH + 1)
)[1:]
# Squared distance of the corners of the 3x3 window.
NEAR = 2


def pad(values: Tensor, outside: int) -> Tensor:
    """A map ``[N, C, OH, OW]`` with a frame of what counts as outside."""
    return F.pad(values, (REACH,) * 4, value=outside)


def shift(padded: Tensor, dy: int, dx: int) -> Tensor:
    """What lies ``(dy, dx)`` away, for every position, as one row."""
    steps = padded.stride(2), padded.stride(3)
    reach = REACH * sum(steps)
    start = reach + dy * steps[0] + dx * steps[1]
    length = padded.numel() - 2 * reach
    return padded.as_strided((length,), (1,), start)


def unpad(row: Tensor, padded: Tensor) -> Tensor:
    """The map ``[N, C, OH, OW]`` in a row that was made from shifts of ``padded``."""
    n, channels, height, width = padded.shape
    size = (n, channels, height - 2 * REACH, width - 2 * REACH)
    return row.as_strided(size, padded.stride())


def over_channels(cells: Tensor, channels: int, grain: Grain) -> Tensor:
    """A map ``[N, CC, OH, OW]`` in a shape that broadcasts to ``[N, channels, OH, OW]``."""
    if cells.shape[1] in (1, channels):
        return cells
    return cells.repeat_interleave(grain.cell(channels, 1)[1], dim=1)[:, :channels]
