"""Sources of independent bits: every cell for itself, or every run of ``k`` cells for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drowsy.sleep.counters import halves, philox
from drowsy.sleep.source import LayerMap, Source

_TAG_BERNOULLI, _TAG_STRATIFIED = 0, 1


@dataclass(frozen=True)
class Bernoulli(Source):
    """Independent bits, fresh for every image: the random variable SLEEP of the paper (III-A).

    A level takes 16 random bits; its probabilities are exact when ``k`` divides 65536 and within
    ``2**-16`` of ``1/k`` otherwise.
    """

    name: ClassVar[str] = "bernoulli"

    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        positions, channels = layer.cells
        blocks = -(-channels // 8)
        counter = torch.arange(positions * blocks, device=images.device)
        words = philox(counter, images[:, None], layer.stream, _TAG_BERNOULLI, seed)
        drawn = torch.empty((*words[0].shape, 8), dtype=torch.uint8, device=images.device)
        for lane, half in enumerate(halves(words)):
            drawn[..., lane] = half.mul_(layer.k).bitwise_right_shift_(16)
        return _turned(drawn.view(len(images), positions, blocks * 8)[:, :, :channels], layer)


@dataclass(frozen=True)
class Stratified(Source):
    """Exactly ``j`` sleepers in every full run of ``k`` neighbours, placed at random.

    Runs lie along the positions of one channel cell, or along the channels where a cell covers
    every position. The work at a given rate is thus known before the launch.
    """

    name: ClassVar[str] = "stratified"
    spreads: ClassVar[bool] = True

    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        (positions, channels), k = layer.cells, layer.k
        length = positions if positions > 1 else channels
        runs, lanes = -(-length // k), -(-k // 4)
        across = channels if positions > 1 else 1
        counter = torch.arange(runs * across * lanes, device=images.device)
        words = torch.stack(
            philox(counter, images[:, None], layer.stream, _TAG_STRATIFIED, seed), dim=-1
        )
        keys = words.view(len(images), runs, across, lanes * 4)[..., :k]
        # The rank of a key among its run: a uniformly random permutation of the levels.
        ranks = keys.argsort(dim=-1, stable=True).argsort(dim=-1).to(torch.uint8)
        drawn = ranks.transpose(2, 3).reshape(len(images), runs * k, across)[:, :length]
        return _turned(drawn if positions > 1 else drawn.transpose(1, 2), layer)

    def exact_run(self, layer: LayerMap) -> int | None:
        return layer.k if layer.cells[0] % layer.k == 0 else None


def _turned(drawn: Tensor, layer: LayerMap) -> Tensor:
    return layer.k - 1 - drawn if layer.upside_down else drawn
