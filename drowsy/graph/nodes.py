"""What the nodes of a network's graph are: neurons, activations, pointwise operations, readers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from drowsy.neuron import check_activation

_MODULE_ACTIVATIONS: dict[type[nn.Module], Callable[..., str | None]] = {
    nn.ReLU: lambda m: "relu",
    nn.ReLU6: lambda m: "relu6",
    nn.LeakyReLU: lambda m: _leaky_relu(m.negative_slope),
    nn.SiLU: lambda m: "silu",
    nn.GELU: lambda m: "gelu" if m.approximate == "none" else "gelu_tanh",
    nn.Hardswish: lambda m: "hardswish",
    nn.Sigmoid: lambda m: "sigmoid",
    nn.Tanh: lambda m: "tanh",
}
_CALL_ACTIVATIONS: dict[object, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh", "tanh_"), "tanh"),
}


@dataclass(frozen=True)
class Neuron:
    """A convolution with what belongs to its neurons: nodes to absorb, and what they are."""

    norm: nn.BatchNorm2d | None = None
    norm_name: str | None = None
    activation: str = "none"
    absorbed: tuple[fx.Node, ...] = ()

    def same_kind(self, other: Neuron) -> bool:
        return (self.norm, self.activation) == (other.norm, other.activation)


def common_neuron(nodes: list[fx.Node], modules: dict[str, nn.Module]) -> Neuron:
    """What belongs to a convolution's neurons; nothing where its calls are not alike."""
    neurons = [neuron_of(node, modules) for node in nodes]
    if not all(neurons[0].same_kind(other) for other in neurons):
        return Neuron()
    return replace(neurons[0], absorbed=sum((n.absorbed for n in neurons), ()))


def neuron_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Neuron:
    """What belongs to the neurons of one call of a convolution."""
    norm, norm_name, absorbed = None, None, []
    after = _only_user(node)
    if after is not None and after.op == "call_module":
        module = modules[str(after.target)]
        # What has hooks stays, so that they are called.
        if (
            type(module) is nn.BatchNorm2d
            and module.running_mean is not None
            and not hooked(module)
        ):
            norm, norm_name = module, str(after.target)
            absorbed.append(after)
            after = _only_user(after)
    if after is not None and after.op == "call_module" and hooked(modules[str(after.target)]):
        after = None
    name = None if after is None else activation_name(after, modules)
    if after is None or name is None:
        return Neuron(norm, norm_name, "none", tuple(absorbed))
    return Neuron(norm, norm_name, name, (*absorbed, after))


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    # The user must take the tensor as its data, once.
    alone = len(users) == 1 and users[0].args[:1] == (node,)
    return users[0] if alone and users[0].all_input_nodes == [node] else None


def activation_name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Which of ``drowsy.neuron.ACTIVATIONS`` a node applies, None where it is something else."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        name_of = _MODULE_ACTIVATIONS.get(type(module))
        return name_of(module) if name_of else None
    if node.op not in ("call_function", "call_method"):
        return None
    options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    if node.target in (F.gelu,) and set(options) <= {"approximate"}:
        return "gelu_tanh" if options.get("approximate") == "tanh" else "gelu"
    if node.target in (F.leaky_relu, F.leaky_relu_):
        slope = node.args[1] if len(node.args) > 1 else options.get("negative_slope", 0.01)
        return _leaky_relu(slope)
    return None if options else _CALL_ACTIVATIONS.get(node.target)


def _leaky_relu(slope: Any) -> str | None:
    """A neuron's name for it; None where the slope is no finite number, or known to the graph."""
    if isinstance(slope, fx.Node) or not math.isfinite(slope):
        return None
    return check_activation(f"leaky_relu:{+slope}")


def hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def readers(node: fx.Node, through: Callable[[fx.Node], Any]) -> list[fx.Node]:
    """The first nodes on every path from ``node`` that ``through`` does not let pass."""
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    front = list(node.users)
    while front:
        user = front.pop(0)
        if user in seen:
            continue
        seen.add(user)
        if through(user):
            front.extend(user.users)
        else:
            found[user] = None
    return list(found)


_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)
_IDENTITY_CALLS = (F.dropout, F.dropout2d)
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
# Activations of a neuron that are not 0 at 0.
_WAKES_ZERO = ("sigmoid",)


def pointwise(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """How a node works on every position alone, keeping 0 at 0; None if it does not.

    Returns:
        ``identity``; ``add`` (two tensors); ``cat`` (channels of several tensors); or the name of
        an activation.
    """
    if node.op == "call_module" and isinstance(modules[str(node.target)], _IDENTITIES):
        return "identity"
    if node.op == "call_function" and node.target in _IDENTITY_CALLS:
        return None if node.kwargs.get("training") or len(node.args) > 2 else "identity"
    if node.target in _SUMS:
        tensors = all(isinstance(argument, fx.Node) for argument in node.args)
        return "add" if tensors and len(node.args) == 2 and not node.kwargs else None
    if node.target in _CONCATENATIONS:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return "cat" if dim in (1, -3) else None
    name = activation_name(node, modules)
    return None if name in _WAKES_ZERO else name
