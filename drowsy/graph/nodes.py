"""What the nodes of a network's graph are: neurons, activations, pointwise operations, readers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.observing import Observed, Reading
from drowsy.network.norms import activation_at_heart, leaky_relu, norm_at_heart
from drowsy.network.tail import Awaiting
from drowsy.neuron import Activation

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
    """A convolution with what belongs to its neurons.

    Attributes:
        norm, norm_name: the batch norm at heart that follows it, and its name.
        activation: one of ``drowsy.neuron.ACTIVATIONS``.
        steps: what the model's code calls after the convolution and is in the neuron already: the
            modules, and the name of an activation that is called as a function.
        absorbed: the nodes of these calls, where they were found in a graph.
    """

    norm: nn.Module | None = None
    norm_name: str | None = None
    activation: str = "none"
    steps: tuple[nn.Module | str, ...] = ()
    absorbed: tuple[fx.Node, ...] = ()

    @property
    def applied(self) -> Any:
        """The activation as layers take it: the module that applies it, or else its name."""
        last = self.steps[-1] if self.steps else self.norm
        return self.activation if last is self.norm else last

    def same_kind(self, other: Neuron) -> bool:
        return (self.norm, self.activation, self.steps) == (
            other.norm,
            other.activation,
            other.steps,
        )


def common_neuron(neurons: Sequence[Neuron]) -> Neuron:
    """What belongs to a convolution's neurons at all of its calls; nothing where they differ."""
    if not all(neurons[0].same_kind(other) for other in neurons):
        return Neuron()
    return replace(neurons[0], absorbed=sum((n.absorbed for n in neurons), ()))


def neuron_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Neuron:
    """What belongs to the neurons of one call of a convolution, by a graph."""
    neuron, after = Neuron(), _only_user(node)
    if after is not None and after.op == "call_module":
        norm = norm_at_heart(modules[str(after.target)])
        if norm is not None:
            target = str(after.target)
            neuron = Neuron(norm.module, target, norm.activation, (norm.module,), (after,))
            after = _only_user(after) if norm.activation == "none" else None
    name: str | None = None
    step: nn.Module | str | None = None
    if after is not None and after.op == "call_module":
        step = modules[str(after.target)]
        name = _activation_of(step)
    elif after is not None:
        name = step = activation_name(after, modules)
    if after is None or name is None or step is None:
        return neuron
    steps, absorbed = (*neuron.steps, step), (*neuron.absorbed, after)
    return replace(neuron, activation=name, steps=steps, absorbed=absorbed)


def observed_neuron(output: Tensor, seen: Observed, names: Mapping[int, str]) -> Neuron:
    """What belongs to the neurons of one call of a convolution, by an observed run.

    Args:
        output: of the call.
        seen: the run.
        names: of modules, by their ``id``.
    """
    neuron = Neuron()
    readings = seen.readings(output)
    after = _only_reading(output, readings)
    norm = None
    if after is not None and isinstance(after.by, nn.Module):
        norm = norm_at_heart(after.by)
    if after is not None and norm is not None:
        neuron = Neuron(norm.module, names[id(norm.module)], norm.activation, (norm.module,))
        if norm.activation != "none":
            return neuron
        # What overwrites its argument puts out the very tensor that it has read.
        rest = readings[1:] if after.output is output else seen.readings(after.output)
        output = after.output
        readings, after = rest, _only_reading(output, rest)
    if after is None:
        return neuron
    if isinstance(after.by, nn.Module):
        name = _activation_of(after.by)
        step: nn.Module | str | None = after.by
    else:
        name = step = called_activation(after.by, after.args, after.kwargs)
    if name is None or step is None:
        return neuron
    return replace(neuron, activation=name, steps=(*neuron.steps, step))


def absorbable(module: nn.Module) -> bool:
    """Whether a layer may compute a norm or activation in its place. What is altered is called."""
    return norm_at_heart(module) is not None or _activation_of(module) is not None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    # The user must take the tensor as its data, once.
    alone = len(users) == 1 and users[0].args[:1] == (node,)
    return users[0] if alone and users[0].all_input_nodes == [node] else None


def _only_reading(output: Tensor, readings: Sequence[Reading]) -> Reading | None:
    """The one that reads a tensor first, and alone unless it overwrites it."""
    if not readings or not readings[0].is_of(output):
        return None
    return readings[0] if len(readings) == 1 or readings[0].output is output else None


def _activation_of(module: nn.Module) -> str | None:
    """Which activation a layer may compute in a module's place."""
    return None if altered(module) else module_activation(module)


def module_activation(module: nn.Module) -> str | None:
    """Which of ``drowsy.neuron.ACTIVATIONS`` a module applies, None where it is something else."""
    name = activation_at_heart(module)
    return None if name == "none" else name


def activation_name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Which of ``drowsy.neuron.ACTIVATIONS`` a node applies, None where it is something else."""
    if node.op == "call_module":
        return module_activation(modules[str(node.target)])
    if node.op not in ("call_function", "call_method"):
        return None
    return called_activation(node.target, node.args, node.kwargs)


def applied(node: fx.Node, modules: Mapping[str, nn.Module], channels: int) -> Activation | None:
    """The activation that a node applies to so many channels, None where it is something else."""
    name = activation_name(node, modules)
    if name != "prelu":
        return None if name is None else Activation(name)
    prelu: Any = modules[str(node.target)]
    return Activation(name, prelu.weight.detach().expand(channels))


def called_activation(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Which of ``drowsy.neuron.ACTIVATIONS`` a call applies, None where it is something else.

    Args:
        function: of torch; a method by its name, or as ``Tensor`` has it.
        args, kwargs: of the call.
    """
    options = {key: value for key, value in kwargs.items() if key != "inplace"}
    name = getattr(function, "__name__", None)
    if name is not None and getattr(Tensor, name, None) is function:
        function = name
    if function is F.gelu and set(options) <= {"approximate"}:
        return "gelu_tanh" if options.get("approximate") == "tanh" else "gelu"
    if function in (F.leaky_relu, F.leaky_relu_):
        slope = args[1] if len(args) > 1 else options.get("negative_slope", 0.01)
        # A slope that the graph computes is no part of a neuron.
        return None if isinstance(slope, fx.Node) else leaky_relu(slope)
    return None if options else _CALL_ACTIVATIONS.get(function)


Awaiting.name_of = staticmethod(called_activation)  # type: ignore[method-assign]


def altered(module: nn.Module) -> bool:
    """Whether a call of a module does more, or other, than its class tells."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


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
