"""Operations that treat every position of a map alone, and so any part of it like the whole."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.nodes import altered, applied, pointwise
from drowsy.neuron import Activation

# With a twin that writes its result into a given tensor.
_ARITHMETIC: dict[Any, Any] = {
    **dict.fromkeys((operator.add, torch.add, "add"), torch.add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), torch.sub),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), torch.mul),
    **dict.fromkeys((operator.truediv, torch.div, "div"), torch.div),
    **dict.fromkeys((torch.maximum, "maximum"), torch.maximum),
    **dict.fromkeys((torch.minimum, "minimum"), torch.minimum),
}
_NAMES = (
    *("abs", "neg", "exp", "sqrt", "rsqrt", "square", "pow", "clamp", "clamp_min", "clamp_max"),
    *("relu", "sigmoid", "tanh", "erf", "where"),
)
_CALLS: frozenset[Any] = frozenset(
    (*_NAMES, operator.neg, operator.pow, *(getattr(torch, name) for name in _NAMES))
) | {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softplus),
    *(F.hardswish, F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.logsigmoid),
}
_MODULES = (
    *(nn.BatchNorm2d, nn.PReLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
    *(
        nn.SiLU,
        nn.Mish,
        nn.Softplus,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Sigmoid,
        nn.Tanh,
    ),
    *(nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold),
)
_SAME = ("contiguous", "detach")


def is_identity(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether a node hands on its one input as it is."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_method" and node.target in _SAME:
        return True
    return _known(node, modules) and pointwise(node, modules) == "identity"


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors."""
    args = node.args
    two = len(args) == 2 and all(isinstance(each, fx.Node) for each in args)
    return two and not node.kwargs and _ARITHMETIC.get(node.target) is torch.add


def is_concatenation(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether a node concatenates the channels of several tensors, and nothing but them."""
    return node.op == "call_function" and pointwise(node, modules) == "cat"


def works_pointwise(
    node: fx.Node, modules: Mapping[str, Any], shapes: Mapping[fx.Node, Sequence[int]]
) -> bool:
    """Whether a node computes each position of its map ``[N, C, H, W]`` from that position alone.

    What it reads is a map of the same size, or one value for all positions.
    """
    size = tuple(shapes[node][-2:])
    spread = [shapes.get(used) for used in node.all_input_nodes]
    for shape in spread:
        if shape is None or not _fits(shape, size):
            return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        kind = type(module)
        if kind is nn.BatchNorm2d:
            return not altered(module) and not module.training and module.running_mean is not None
        return kind in _MODULES and not altered(module)
    if is_concatenation(node, modules):
        return all(tuple(shape[-2:]) == size for shape in spread if shape is not None)
    if node.op not in ("call_function", "call_method"):
        return False
    if "out" in node.kwargs or node.kwargs.get("inplace"):
        return False
    try:
        return node.target in _ARITHMETIC or node.target in _CALLS
    except TypeError:  # cannot be hashed
        return False


def activation(
    node: fx.Node, modules: Mapping[str, Any], shapes: Mapping[fx.Node, Sequence[int]]
) -> Activation | None:
    """The activation that a node applies to a map, None where it is something else."""
    return applied(node, modules, shapes[node][1]) if _known(node, modules) else None


def calculation(node: fx.Node, modules: Mapping[str, Any]) -> Any:
    """``(function, takes_out)``: what computes a node, and whether it takes ``out=``."""
    if node.op == "call_module":
        return modules[str(node.target)], False
    if node.target in _ARITHMETIC and not node.kwargs and len(node.args) == 2:
        return _ARITHMETIC[node.target], isinstance(node.args[0], fx.Node)
    if node.op == "call_method":
        return getattr(Tensor, str(node.target)), False
    return node.target, False


def _fits(shape: Sequence[int], size: tuple[int, ...]) -> bool:
    if len(shape) == 4:
        return shape[0] == 1 and tuple(shape[-2:]) in (size, (1, 1))
    return math.prod(shape) == 1


def _known(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    return node.op != "call_module" or not altered(modules[str(node.target)])
