"""What a convolution costs, as the paper counts it: neurons, multiplies per neuron, their product.

A saving is a fraction of the network's convolution multiplications: a layer at rate ``r`` saves
``r * N * M`` of them (Algorithm 1). Linear layers are not counted, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.files.tables import align
from drowsy.neuron import ConvSize, ConvSpec

# Savings are sums of floats: what is to reach one may miss it by this.
ROUNDING = 1e-9


@dataclass(frozen=True)
class LayerCost:
    """One convolution for one image."""

    name: str
    size: ConvSize

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, OH, OW)`` of the output."""
        return self.size.output[1:]

    @property
    def kernel(self) -> tuple[int, int, int]:
        """``(C / groups, KH, KW)`` a neuron multiplies."""
        return self.size.weight[1:]

    @property
    def neurons(self) -> int:
        """N: output elements."""
        return prod(self.shape)

    @property
    def multiplies_per_neuron(self) -> int:
        """M: weights of one neuron."""
        return self.size.window

    @property
    def multiplies(self) -> int:
        """N x M."""
        return self.neurons * self.multiplies_per_neuron


def layer_costs(model: nn.Module, image: Sequence[int]) -> list[LayerCost]:
    """Costs of every ``nn.Conv2d`` that runs (drowsy or not), in order of execution.

    Args:
        model: in eval mode. A model on the ``meta`` device costs no memory or time.
        image: ``(C, H, W)`` of one image.

    A layer that runs twice is listed twice.
    """
    found: list[LayerCost] = []

    def record(name: str) -> object:
        def hook(conv: nn.Conv2d, given: tuple[Tensor, ...], named: Any, _: object) -> None:
            x = given[0] if given else named["input"]
            input = (1, conv.in_channels, *x.shape[-2:])
            weight = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
            size = ConvSize(input, weight, ConvSpec.of_conv(conv))  # type: ignore[arg-type]
            found.append(LayerCost(name, size))

        return hook

    handles = [
        module.register_forward_hook(record(name), with_kwargs=True)  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    like = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, *image, dtype=like.dtype, device=like.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_shares(costs: Sequence[LayerCost]) -> dict[str, float]:
    """Each layer's share of all multiplications; sums to 1."""
    total = sum(cost.multiplies for cost in costs)
    shares: dict[str, float] = {}
    for cost in costs:
        shares[cost.name] = shares.get(cost.name, 0.0) + cost.multiplies / total
    return shares


def saving(rates: Mapping[str, float | Fraction], shares: Mapping[str, float]) -> float:
    """Fraction of all multiplications saved; ``shares`` from ``layer_shares``."""
    return sum(float(rate) * shares[name] for name, rate in rates.items())


def multiplication_gains(shares: Mapping[str, float], k: int) -> np.ndarray:
    """``[layers, k]``: fraction of all multiplications that each layer saves at ``0 .. (k-1)/k``.

    Searches see a resource through such a table alone; ``drowsy.energy.measured_gains`` makes those
    of latency and joules.
    """
    return np.outer(list(shares.values()), np.arange(k) / k)


def add_gains(table: np.ndarray, settings: Sequence[Sequence[int]]) -> np.ndarray:
    """``[settings]``: what each saves by a table of gains, as if layers' gains added up."""
    thresholds = np.array(settings, int).reshape(-1, len(table))
    return table[np.arange(len(table)), thresholds].sum(axis=1)


def cost_table(costs: Sequence[LayerCost]) -> str:
    """The paper's Table I for any network, as aligned text."""
    rows = [("layer", "Ch x H x W", "#N", "Ch x H x W", "#M", "#N x #M", "share")]
    shares = layer_shares(costs)
    rows += [
        (
            cost.name,
            " x ".join(map(str, cost.shape)),
            _short(cost.neurons),
            " x ".join(map(str, cost.kernel)),
            _short(cost.multiplies_per_neuron),
            _short(cost.multiplies),
            f"{shares[cost.name]:.1%}",
        )
        for cost in costs
    ]
    total = sum(cost.multiplies for cost in costs)
    rows.append(("total", "", _short(sum(c.neurons for c in costs)), "", "", _short(total), "100%"))
    return align(rows)


def _short(number: int) -> str:
    """``363``, ``2.4 K``, ``105.4 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
