"""From a network to its graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Conv2d,
)


class _Tracer(fx.Tracer):
    """Keeps library modules whole, and convolutions of any kind so that they can be reported."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaf = isinstance(module, CONVOLUTIONS)
        return leaf or super().is_leaf_module(module, name)


def trace(model: nn.Module) -> fx.Graph:
    """A network's graph, convolutions and library modules whole; ValueError where there is none."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        raise ValueError(
            f"model: torch.fx cannot trace {type(model).__name__} ({error}); its forward must not "
            "branch on tensor values. Convert the traceable part (a backbone, say) instead"
        ) from error
    for node in graph.nodes:
        # Annotations written as strings cannot be pickled with the graph's code.
        node.type = None
    return graph


def convolution_calls(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, list[fx.Node]]:
    """Nodes by convolution module, in order of execution; aliases of a module count as one.

    A call of ``F.conv2d`` has no module: it is listed by its node's name, and ``modules`` gets an
    empty one by that name.
    """
    first_name: dict[int, str] = {}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], CONVOLUTIONS):
            name = first_name.setdefault(id(modules[node.target]), node.target)
            node.target = name
            calls.setdefault(name, []).append(node)
        elif node.op == "call_function" and node.target in (F.conv2d, torch.conv2d):
            modules[node.name] = nn.Module()
            calls[node.name] = [node]
    return calls
