"""Sources of independent bits: every cell for itself, or every run of ``k`` cells for itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from drowsy.sleep.counters import halves, halves_on_cpu, philox
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
        drawn = torch.empty(
            (len(images), positions * blocks, 8), dtype=torch.uint8, device=images.device
        )
        if images.device.type == "cpu":
            for which, part, half in self._on_cpu(layer, images, seed):
                drawn[which, part] = torch.from_numpy(_scaled(half, layer.k))
        else:
            counter = torch.arange(positions * blocks, device=images.device)
            words = philox(counter, images[:, None], layer.stream, _TAG_BERNOULLI, seed)
            for lane, values in enumerate(halves(words)):
                drawn[..., lane] = values.mul_(layer.k).bitwise_right_shift_(16)
        return _turned(drawn.view(len(images), positions, blocks * 8)[:, :, :channels], layer)

    def sleepers(self, layer: LayerMap, images: Tensor, seed: Tensor, j: int) -> Tensor | None:
        if images.device.type != "cpu":
            return None
        positions, channels = layer.cells
        blocks = -(-channels // 8)
        asleep = np.empty((len(images), positions * blocks, 8), np.bool_)
        # The draws whose level is below a threshold are those below another.
        last = -(-((layer.k - j if layer.upside_down else j) << 16) // layer.k)
        for which, part, half in self._on_cpu(layer, images, seed):
            compare = np.greater_equal if layer.upside_down else np.less
            compare(half, np.uint16(last), out=asleep[which, part])
        whole = torch.from_numpy(asleep).view(len(images), positions, blocks * 8)
        return whole[:, :, :channels]

    def _on_cpu(
        self, layer: LayerMap, images: Tensor, seed: Tensor
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        positions, channels = layer.cells
        counters = positions * -(-channels // 8)
        return halves_on_cpu(counters, images, layer.stream, _TAG_BERNOULLI, seed)


def _scaled(half: np.ndarray, k: int) -> np.ndarray:
    """``half * k >> 16`` as uint8."""
    if k & (k - 1) == 0:
        return (half >> np.uint16(17 - k.bit_length())).astype(np.uint8)
    return (half * np.uint32(k) >> np.uint32(16)).astype(np.uint8)


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
