"""Which fill a drowsy neuron gets where none is asked for.

Sleepers among regular awake neighbours are interpolated between them, whatever reads them: before
convolutions, max-pooling, normalisation, concatenation, residual additions and average pooling
alike, that is measured to lose no more than the paper's choice, and mostly far less
(``bench/fill_rules.py``, ``docs/study/fills``). It holds for the sources that spread sleepers over
the map, where a grain's cells are single positions.

Elsewhere, and so for the paper's own neurons, the paper's rule holds (section III-C), followed
through a graph. A neuron that feeds another convolution is *rescaled*, so that its expected value
is kept; one that feeds max-pooling is *non-rescaled*, since there the largest value counts. What
lies between a neuron and its consumer (normalisation, residual additions, concatenation, other
activations) is looked through. The paper does not speak of linear layers, average pooling or the
network's output: they are weighted sums as a convolution is, so they count as one.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from drowsy.graph.nodes import readers
from drowsy.sleep import SleepSpec

_MAX_POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool2d,
    nn.FractionalMaxPool2d,
)
_MAX_POOL_CALLS = {
    F.max_pool2d,
    F.adaptive_max_pool2d,
    torch.max_pool2d,
    "max_pool2d",
    torch.amax,
    "amax",
}
_SUM_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.LPPool2d,
)
_SUM_CALLS = {
    F.conv2d,
    torch.conv2d,
    F.linear,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.mean,
    "mean",
    torch.matmul,
    operator.matmul,
}


@dataclass(frozen=True)
class Choice:
    """A fill and why it was chosen."""

    fill: str
    reason: str


def choose_fill(node: fx.Node | None, modules: Mapping[str, nn.Module], sleep: SleepSpec) -> Choice:
    """The fill for the neurons that ``node`` computes, None where no graph tells, and sleep so."""
    if sleep.grain.of_single_positions and sleep.source.spreads:
        return Choice("interpolate", f"{sleep.source.name} leaves awake neighbours everywhere")
    if node is None:
        return Choice("rescale", "no graph tells what reads it")
    found = readers(node, lambda user: _kind(user, modules) == "through")
    sums = [_label(user) for user in found if _kind(user, modules) == "sum"]
    pools = [f"max-pooling ({_label(user)})" for user in found if _kind(user, modules) == "pool"]
    if sums and pools:
        return Choice("rescale", f"feeds {sums[0]} and {pools[0]}: the weighted sum decides")
    if pools:
        return Choice("zero", f"feeds {pools[0]}")
    if sums:
        return Choice("rescale", f"feeds {sums[0]}")
    return Choice("rescale", "feeds the network's output")


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        module = modules[str(node.target)]
        pools, sums = isinstance(module, _MAX_POOLS), isinstance(module, _SUM_MODULES)
    else:
        pools, sums = node.target in _MAX_POOL_CALLS, node.target in _SUM_CALLS
        # Public pooling functions are wrapped to dispatch on return_indices.
        name = getattr(node.target, "__name__", "")
        pools = pools or "max_pool" in name or name.startswith("boolean_dispatch")
    return "pool" if pools else "sum" if sums else "through"


def _label(node: fx.Node) -> str:
    if node.op in ("call_module", "call_method"):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))
