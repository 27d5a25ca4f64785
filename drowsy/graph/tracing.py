"""From a network to its graph."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.nodes import absorbable
from drowsy.graph.tree import copied

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Conv2d,
)


class _Tracer(fx.Tracer):
    """Keeps library modules whole, convolutions of any kind, and what belongs to neurons."""

    def __init__(self, whole: Collection[int] = ()) -> None:
        super().__init__()
        # Found beforehand: asking a norm what it is may call it, which tracing sees.
        self._whole = whole

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaf = isinstance(module, CONVOLUTIONS) or id(module) in self._whole
        return leaf or super().is_leaf_module(module, name)


def trace(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """A network's graph, convolutions and library modules whole, and its constants.

    Constants are tensors that the model makes while it runs, or that no module has by that name.

    Raises:
        ValueError: torch.fx cannot trace the model.
    """
    # What tracing does to a module (constants, attributes that its forward sets) is done to a copy.
    scratch = copied(model, {}, own_state=True)
    before = {name: {*module.__dict__} for name, module in scratch.named_modules()}
    whole = {id(module) for module in scratch.modules() if absorbable(module)}
    try:
        graph = _Tracer(whole).trace(scratch)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        raise ValueError(f"torch.fx cannot trace {type(model).__name__} ({error})") from error
    constants = {}
    for node in graph.nodes:
        # Annotations written as strings cannot be pickled with the graph's code.
        node.type = None
        if node.op == "get_attr":
            home, _, name = str(node.target).rpartition(".")
            owner = scratch.get_submodule(home)
            if name not in before[home] and name in owner.__dict__:
                constants[str(node.target)] = owner.__dict__[name]
    return graph, constants


def convolution_calls(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, list[fx.Node]]:
    """Nodes by convolution module, in order of execution; aliases of a module count as one.

    A call of ``F.conv2d`` has no module: it is listed by its node's name (and a tick where a module
    has that), and ``modules`` gets an empty one by that name.
    """
    first_name: dict[int, str] = {}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], CONVOLUTIONS):
            name = first_name.setdefault(id(modules[node.target]), node.target)
            node.target = name
            calls.setdefault(name, []).append(node)
        elif node.op == "call_function" and node.target in (F.conv2d, torch.conv2d):
            name = node.name
            while name in modules:
                name += "'"
            modules[name] = nn.Module()
            calls[name] = [node]
    return calls
