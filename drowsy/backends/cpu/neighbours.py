"""Fills from awake neighbours, in the rows of one position each that all channels share.

Where a map is known by its phase, who reads whom, and with which weights, is made once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.backends.cpu.tables import levels_by_phase
from drowsy.neuron.rows import copy_rows
from drowsy.neuron.stencil import Sleepers, sleepers_of
from drowsy.neuron.window import NEAR, REACH, WINDOW
from drowsy.sleep import LayerMap, Phased
from drowsy.sleep.memory import remembered


@dataclass(frozen=True)
class Readings:
    """What sleepers read of awake positions, and with which weights.

    Attributes:
        sleepers: int64 ``[S]``, positions of the sleepers.
        read: int64 ``[R]``, the positions that they read, one sleeper after the other.
        weights: ``[R]``, of the dtype in which they are added up.
        starts: int64 ``[S]``, where each sleeper's reading starts; one without awake neighbours
            reads nothing, and gets 0.
        divisors: ``[S, 1]``, what each sum is divided by; none where all are 1.
    """

    sleepers: Tensor
    read: Tensor
    weights: Tensor
    starts: Tensor
    divisors: Tensor | None

    @classmethod
    def of_batch(cls, images: list[Readings], positions: int) -> Readings:
        """Those of images that lie one after the other, each of so many positions."""
        if len(images) == 1:
            return images[0]
        divisors = [image.divisors for image in images]
        before = torch.tensor([0, *(len(image.read) for image in images)]).cumsum(0).tolist()
        return cls(
            torch.cat([image.sleepers + n * positions for n, image in enumerate(images)]),
            torch.cat([image.read + n * positions for n, image in enumerate(images)]),
            torch.cat([image.weights for image in images]),
            torch.cat([image.starts + before[n] for n, image in enumerate(images)]),
            None if None in divisors else torch.cat(divisors),  # type: ignore[arg-type]
        )

    def fill(self, rows: Tensor) -> None:
        """Write to the sleepers of ``[positions, C]`` what they read there."""
        filled = F.embedding_bag(
            self.read,
            rows.to(self.weights.dtype),
            self.starts,
            mode="sum",
            per_sample_weights=self.weights,
        )
        if self.divisors is not None:
            filled.div_(self.divisors)
        copy_rows(rows, 0, self.sleepers, filled.to(rows.dtype))


def readings_of(asleep: Tensor, fill: str, dtype: torch.dtype) -> Readings:
    """What the sleepers of maps ``[N, H, W]`` read; the rules are ``drowsy.neuron``'s."""
    _, height, width = asleep.shape
    squared, down, right = torch.tensor(WINDOW).unbind(1)
    awake = F.pad(~asleep, (REACH,) * 4)
    seen = torch.stack(
        [awake[:, REACH + dy :, REACH + dx :][:, :height, :width] for _, dy, dx in WINDOW], dim=-1
    )
    sleepers = asleep.flatten().nonzero()[:, 0]
    seen = seen.view(-1, len(WINDOW))[sleepers]
    weights = torch.tensor([1 / square for square, _, _ in WINDOW], dtype=torch.float64)
    divisors = None
    if fill == "nearest":
        read, weights = seen & (seen.cumsum(1) == 1), torch.ones_like(weights)
    else:
        near, dtype = seen & (squared <= NEAR), torch.promote_types(dtype, torch.float32)
        read = torch.where(near.any(dim=1, keepdim=True), near, seen)
        divisors = (read * weights).sum(dim=1, keepdim=True)
        # Nobody in the window: 0 / 1.
        divisors = (divisors + (divisors == 0)).to(dtype)
    sleeper, place = read.nonzero(as_tuple=True)
    counts = read.sum(dim=1)
    return Readings(
        sleepers,
        sleepers[sleeper] + (down * width + right)[place],
        weights.to(dtype)[place],
        counts.cumsum(0) - counts,
        divisors,
    )


@remembered
def readings(
    source: Phased, layer: LayerMap, j: int, phase: int, fill: str, dtype: torch.dtype
) -> Readings:
    """What the sleepers of one image read, where all channels sleep at once."""
    return readings_of(_asleep_at_phase(source, layer, j, phase), fill, dtype)


@remembered
def sleepers(source: Phased, layer: LayerMap, j: int, phase: int, least: int) -> Sleepers:
    """``sleepers_of`` one image, where all channels sleep at once."""
    return sleepers_of(_asleep_at_phase(source, layer, j, phase)[:, None], least)


def _asleep_at_phase(source: Phased, layer: LayerMap, j: int, phase: int) -> Tensor:
    assert layer.size is not None
    return (levels_by_phase(source, layer)[phase] < j).view(1, *layer.size)
