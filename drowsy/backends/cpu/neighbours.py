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
from drowsy.neuron.stencil import sleepers_of
from drowsy.neuron.window import NEAR, REACH, WINDOW
from drowsy.sleep import LayerMap, Phased
from drowsy.sleep.memory import remembered


@dataclass(frozen=True)
class Readings:
    """What sleepers read of awake positions, and with which weights.

    Attributes:
        sleepers: int64 ``[S]``, positions of the sleepers.
        read: int64 ``[R]``, the positions that they read, one sleeper after the other.
        weights: ``[R]`` of the outputs' dtype. A weight that a short format cannot hold is two: the
            nearest that it can, and the rest. They are added up in float32.
        starts: int64 ``[S]``, where each sleeper's reading starts; one without awake neighbours
            reads nothing, and gets 0.
    """

    sleepers: Tensor
    read: Tensor
    weights: Tensor
    starts: Tensor

    @classmethod
    def of_batch(cls, images: list[Readings], positions: int) -> Readings:
        """Those of images that lie one after the other, each of so many positions."""
        if len(images) == 1:
            return images[0]
        before = torch.tensor([0, *(len(image.read) for image in images)]).cumsum(0).tolist()
        return cls(
            torch.cat([image.sleepers + n * positions for n, image in enumerate(images)]),
            torch.cat([image.read + n * positions for n, image in enumerate(images)]),
            torch.cat([image.weights for image in images]),
            torch.cat([image.starts + before[n] for n, image in enumerate(images)]),
        )

    def fill(self, rows: Tensor) -> None:
        """Write to the sleepers of ``[positions, C]`` what they read there."""
        filled = F.embedding_bag(
            self.read, rows, self.starts, mode="sum", per_sample_weights=self.weights
        )
        copy_rows(rows, 0, self.sleepers, filled)


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
    if fill == "nearest":
        read = seen & (seen.cumsum(1) == 1)
    else:
        near = seen & (squared <= NEAR)
        read = torch.where(near.any(dim=1, keepdim=True), near, seen)
    weight = read / squared.double()
    weight /= weight.sum(dim=1, keepdim=True)
    parts = weight.to(dtype)[..., None]
    if parts.element_size() < 4:
        parts = torch.cat([parts, (weight[..., None] - parts.double()).to(dtype)], dim=-1)
    # Of sleepers that read nothing, 0 / 0.
    sleeper, place, part = (parts.nan_to_num(0) != 0).nonzero(as_tuple=True)
    counts = torch.bincount(sleeper, minlength=len(sleepers))
    return Readings(
        sleepers,
        sleepers[sleeper] + (down * width + right)[place],
        parts[sleeper, place, part],
        counts.cumsum(0) - counts,
    )


@remembered
def readings_at_phase(
    source: Phased, layer: LayerMap, j: int, phase: int, fill: str, dtype: torch.dtype
) -> Readings:
    """What the sleepers of one image read, where all channels sleep at once."""
    return readings_of(_asleep_at_phase(source, layer, j, phase), fill, dtype)


@remembered
def sleepers_at_phase(source: Phased, layer: LayerMap, j: int, phase: int) -> tuple[Tensor, Tensor]:
    """``drowsy.neuron.stencil.sleepers_of`` one image, where all channels sleep at once."""
    return sleepers_of(_asleep_at_phase(source, layer, j, phase)[:, None])


def _asleep_at_phase(source: Phased, layer: LayerMap, j: int, phase: int) -> Tensor:
    assert layer.size is not None
    return (levels_by_phase(source, layer)[phase] < j).view(1, *layer.size)
