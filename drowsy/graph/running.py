"""A network's graph run without computing: shapes, and what it may be run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from drowsy.network.net import DrowsyNet, check_network


def shapes(net: fx.GraphModule, example: Tensor) -> dict[fx.Node, torch.Size]:
    """The shape of every node's tensor for inputs like ``example``; computes nothing.

    Nodes whose result is no tensor are left out.
    """
    found: dict[fx.Node, torch.Size] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            # The clock must not advance.
            result = None if node.target == "control" else super().run_node(node)
            if isinstance(result, Tensor) and node.op != "output":
                found[node] = result.shape
            return result

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        Shapes(net).run(mode.from_tensor(example))
    return found


def check_example(net: DrowsyNet, example: Tensor) -> None:
    """Raise unless ``net`` is converted, takes one input, and ``example`` is a batch of images."""
    check_network(net)
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"example: got {kind}, allowed: a floating-point tensor")
    if example.dim() != 4 or 0 in example.shape:
        raise ValueError(
            f"example: got shape {tuple(example.shape)}, allowed: [N, C, H, W], none of them 0"
        )
    inputs = [node for node in net.graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        raise ValueError(f"net: takes {len(inputs)} inputs, allowed: one")
