"""What a network costs: its convolutions as the paper counts them, and everything else beside.

A convolution costs its neurons times the multiplies per neuron, ``N * M``; at rate ``r`` it saves
``r * N * M`` (Algorithm 1). A saving is a fraction of all multiplications of the network: linear
layers, attention and other convolutions count, as awake. The paper counts ``nn.Conv2d`` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.files.tables import align
from drowsy.knob.uncompiled import uncompiled
from drowsy.neuron import ConvSize, ConvSpec

# Savings are sums of floats: what is to reach one may miss it by this.
ROUNDING = 1e-9


@dataclass(frozen=True)
class LayerCost:
    """One convolution for one image.

    Args:
        name: of its module.
        size: of the call; a network may hand a layer several maps (windows, boxes) for one image.
    """

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
        return prod(self.size.output)

    @property
    def multiplies_per_neuron(self) -> int:
        """M: weights of one neuron."""
        return self.size.window

    @property
    def multiplies(self) -> int:
        """N x M."""
        return self.neurons * self.multiplies_per_neuron


@dataclass(frozen=True)
class NetworkCost:
    """All multiplications of a network for one image.

    Args:
        layers: every call of an ``nn.Conv2d``, in order of execution.
        other: multiplications of everything else: linear layers, matrix products, attention,
            transposed and other convolutions.
    """

    layers: tuple[LayerCost, ...]
    other: int = 0

    @property
    def multiplies(self) -> int:
        """Of the whole network."""
        return sum(cost.multiplies for cost in self.layers) + self.other

    @property
    def convolutions(self) -> NetworkCost:
        """The same without anything else, as the paper counts."""
        return NetworkCost(self.layers)


def network_cost(model: nn.Module, image: Sequence[int]) -> NetworkCost:
    """Count the multiplications of a network for one image, with every neuron awake.

    Convolutions are counted by their sizes, everything else as ``torch.utils.flop_counter`` counts
    it: elementwise work, pooling and normalisation not at all.

    Args:
        model: in eval mode, drowsy or not. On the ``meta`` device it costs no memory or time.
        image: ``(C, H, W)`` of one image.
    """
    # Imported here: they take a quarter of the time that torch takes.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.mkldnn_rnn_layer: lambda x, *weights, **_: _recurrent(x, weights[:2]),
            torch.ops.aten._cudnn_rnn: lambda x, weights, *_, **__: _recurrent(x, weights),
        },
    )
    found: list[LayerCost] = []
    # FLOPs counted before each call under way of a convolution, and within calls that ended.
    before: list[int] = []
    within = 0

    def enter(*_: object) -> None:
        before.append(counter.get_total_flops())

    def leave(name: str) -> object:
        def hook(conv: nn.Conv2d, given: tuple[Tensor, ...], named: Any, _: object) -> None:
            nonlocal within
            x = given[0] if given else named["input"]
            maps = x.shape[0] if x.dim() == 4 else 1
            input = (maps, conv.in_channels, *x.shape[-2:])
            weight = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
            size = ConvSize(input, weight, ConvSpec.of_conv(conv))  # type: ignore[arg-type]
            found.append(LayerCost(name, size))
            start = before.pop()
            if not before:
                within += counter.get_total_flops() - start

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave(name), with_kwargs=True))  # type: ignore[arg-type]
    like = next(model.parameters())
    # The fused paths of attention are not known to the counter.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # A converted network's first call would also run the model that it is compared with.
        own_code = uncompiled(model)
        uncompared = getattr(model, "uncompared", contextlib.nullcontext)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), uncompared(), own_code, counter:
            model(torch.zeros(1, *image, dtype=like.dtype, device=like.device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    # Two a multiplication: it and the addition of its product.
    return NetworkCost(tuple(found), (counter.get_total_flops() - within) // 2)


def _recurrent(x: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """FLOPs of fused recurrent layers: each step of each sequence meets every weight once."""
    steps, sequences, _ = x
    return 2 * steps * sequences * sum(prod(each) for each in weights if len(each) == 2)


def layer_costs(model: nn.Module, image: Sequence[int]) -> list[LayerCost]:
    """Costs of every ``nn.Conv2d`` that runs (drowsy or not), in order of execution.

    Args:
        model: in eval mode. A model on the ``meta`` device costs no memory or time.
        image: ``(C, H, W)`` of one image.

    A layer that runs twice is listed twice.
    """
    return list(network_cost(model, image).layers)


def layer_shares(cost: NetworkCost) -> dict[str, float]:
    """Each convolution's share of all multiplications; without anything else they sum to 1."""
    total = cost.multiplies
    shares: dict[str, float] = {}
    for layer in cost.layers:
        shares[layer.name] = shares.get(layer.name, 0.0) + layer.multiplies / total
    return shares


def saving(rates: Mapping[str, float | Fraction], shares: Mapping[str, float]) -> float:
    """Fraction of the network's multiplications saved; ``shares`` from ``layer_shares``."""
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


def cost_table(costs: NetworkCost | Sequence[LayerCost]) -> str:
    """The paper's Table I for any network, as aligned text.

    Args:
        costs: of a network, whose shares are of the whole network; or of its convolutions
            (``layer_costs``) to have the shares of these alone, as in the paper.
    """
    whole = isinstance(costs, NetworkCost)
    cost = costs if isinstance(costs, NetworkCost) else NetworkCost(tuple(costs))
    shares = layer_shares(cost)
    of = "of the network" if whole else "of convolutions"
    rows: list[tuple[str, ...]]
    rows = [("layer", "Ch x H x W", "#N", "Ch x H x W", "#M", "#N x #M", of)]
    rows += [
        (
            layer.name,
            " x ".join(map(str, layer.shape)),
            _short(layer.neurons),
            " x ".join(map(str, layer.kernel)),
            _short(layer.multiplies_per_neuron),
            _short(layer.multiplies),
            f"{shares[layer.name]:.1%}",
        )
        for layer in cost.layers
    ]

    def line(title: str, neurons: str, multiplies: int) -> tuple[str, ...]:
        part = multiplies / cost.multiplies
        return (
            title,
            "",
            neurons,
            "",
            "",
            _short(multiplies),
            f"{part:.1%}" if part < 1 else "100%",
        )

    neurons = _short(sum(layer.neurons for layer in cost.layers))
    alone = cost.convolutions.multiplies
    if whole:
        rows += [line("convolutions", neurons, alone), line("all else", "", cost.other)]
    rows.append(line("total", "" if whole else neurons, cost.multiplies))
    return align(rows)


def _short(number: int) -> str:
    """``363``, ``2.4 K``, ``105.4 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
