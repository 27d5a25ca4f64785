"""Turn a pretrained CNN into a drowsy one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from drowsy.backends.ops import choose_backend
from drowsy.control import Control
from drowsy.layer import DrowsyConv2d
from drowsy.net import DrowsyNet, LayerReport, check_network
from drowsy.neuron import check_activation
from drowsy.rules import Choice, choose_fill
from drowsy.sleep import DEFAULT_K, FILLS, Grain, SleepSpec, Source, check_fill

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
_OTHER_CONVOLUTIONS = (
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
        leaf = isinstance(module, _OTHER_CONVOLUTIONS)
        return leaf or super().is_leaf_module(module, name)


@dataclass(frozen=True)
class Neuron:
    """A convolution with what belongs to its neurons: nodes to absorb, and what they are."""

    norm: nn.BatchNorm2d | None = None
    norm_name: str = ""
    activation: str = "none"
    absorbed: tuple[fx.Node, ...] = ()

    def same_kind(self, other: Neuron) -> bool:
        return (self.norm, self.activation) == (other.norm, other.activation)


def convert(
    model: nn.Module,
    *,
    source: str | Source = "bernoulli",
    grain: str | Grain = "neuron",
    k: int = DEFAULT_K,
    fill: str = "auto",
    seed: int = 0,
    fold_bn: bool = True,
    skip: Sequence[str] = (),
    backend: str = "auto",
) -> DrowsyNet:
    """Give a pretrained CNN a knob.

    Every ``nn.Conv2d`` becomes a ``DrowsyConv2d`` together with the batch norm and activation that
    follow it. Weights are shared with ``model``, which stays as it was; ``state_dict`` keys are the
    same. The network starts at rate 0, where it computes what ``model`` computes. Modules with
    forward hooks, and convolutions whose weight is computed anew at every call, stay as they are.

    Args:
        model: a network in eval mode that ``torch.fx`` can trace.
        source: how sleep maps are drawn, e.g. ``bernoulli`` or ``lfsr:width=8,taps=8.6.5.4``.
        grain: which neurons share a bit, e.g. ``neuron`` or ``position:64``.
        k: rates are multiples of ``1/k``.
        fill: ``auto`` (``interpolate`` where the source spreads single positions over the map, else
            each layer by the paper's rule, ``zero`` or ``rescale``: ``drowsy.rules``), or one of
            ``drowsy.sleep.FILLS`` for all layers.
        seed: of the sleep maps.
        fold_bn: keep a folded copy of the weights (``net.refresh()`` after changing parameters by
            hand), or fold at every inference from the live batch norm.
        skip: layers to leave awake and untouched: exact names, or ``re:`` and a pattern.
        backend: ``auto``, ``torch`` or ``triton``.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: training mode, no convolution, an unknown name in ``skip``, a fill that the
            grain does not allow, or a network whose forward cannot be traced.
    """
    check_model(model)
    if fill not in ("auto", *FILLS):
        raise ValueError(f"fill: got {fill!r}, allowed: auto, {', '.join(FILLS)}")
    choose_backend(backend, torch.device("cpu"))
    spec = SleepSpec(source, grain, k)  # type: ignore[arg-type]
    if fill != "auto":
        check_fill(fill, spec.grain)
    graph = trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = _convolution_calls(graph, modules)
    skipped = _matching(skip, list(calls))
    convertible = {
        name: nodes
        for name, nodes in calls.items()
        if why_not(modules[name]) is None and name not in skipped
    }
    if not convertible:
        reasons = [f"; {name}: {reason}" for name in calls if (reason := why_not(modules[name]))]
        raise ValueError(f"model: has no nn.Conv2d to convert{''.join(reasons[:1])}")

    neurons = {name: _neuron(nodes, modules) for name, nodes in convertible.items()}
    # Choices are made on the graph as it was written, before anything is absorbed.
    choices = {
        name: choose_fill((neurons[name].absorbed or nodes)[-1], modules, spec)
        if fill == "auto"
        else Choice(fill, "as asked")
        for name, nodes in convertible.items()
    }
    control = Control(len(convertible), seed, device=_device(model))
    layers = {}
    for index, (name, neuron) in enumerate(neurons.items()):
        conv = modules[name]
        assert isinstance(conv, nn.Conv2d)
        layer = DrowsyConv2d.from_conv(
            conv,
            norm=neuron.norm,
            cache_folded=fold_bn,
            activation=neuron.activation,
            sleep=replace(spec, stream=index),
            fill=choices[name].fill,
            backend=backend,
        )
        layer.control, layer.index, layer.owns_control = control, index, False
        layers[name] = layer
        _absorb(graph, neuron)
    _advance_clock(graph)

    report = [
        LayerReport(
            name,
            _geometry(modules[name]),
            neurons[name].norm_name,
            neurons[name].activation,
            choices[name].fill,
            choices[name].reason,
        )
        if name in layers
        else LayerReport(
            name,
            _geometry(modules[name]),
            "",
            "",
            "",
            "left awake, as asked" if name in skipped else f"left awake: {why_not(modules[name])}",
        )
        for name in calls
    ]
    return DrowsyNet.assemble(model, graph, layers, control, report)


def revert(net: DrowsyNet) -> nn.Module:
    """The model that ``net`` was converted from, with the weights they share.

    Raises:
        TypeError: ``net`` is no DrowsyNet.
    """
    check_network(net)
    return net.original


# --- steps -------------------------------------------------------------------------------------


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError unless this is a network in eval mode, not converted yet."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, allowed: an nn.Module")
    if isinstance(model, DrowsyNet):
        raise ValueError("model: is already drowsy; revert it first")
    if any(module.training for module in model.modules()):
        raise ValueError("model: is in training mode; drowsy is for inference, call model.eval()")


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


def _device(model: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in model.parameters()), None)


def _convolution_calls(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, list[fx.Node]]:
    """Nodes by convolution module, in order of execution; aliases of a module count as one."""
    first_name: dict[int, str] = {}
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], _OTHER_CONVOLUTIONS):
            name = first_name.setdefault(id(modules[node.target]), node.target)
            node.target = name
            calls.setdefault(name, []).append(node)
        elif node.op == "call_function" and node.target in (F.conv2d, torch.conv2d):
            modules[node.name] = nn.Module()
            calls[node.name] = [node]
    return calls


def _matching(patterns: Sequence[str], names: list[str]) -> set[str]:
    if isinstance(patterns, str):
        raise TypeError(f"skip: got the string {patterns!r}, allowed: a list of names")
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("re:"):
            hits = [name for name in names if re.search(pattern[3:], name)]
        else:
            hits = [name for name in names if name == pattern]
        if not hits:
            raise ValueError(
                f"skip: {pattern!r} names no convolution; there are {', '.join(names)}"
            )
        found.update(hits)
    return found


def _neuron(nodes: list[fx.Node], modules: dict[str, nn.Module]) -> Neuron:
    """What belongs to a convolution's neurons; nothing where its calls are not alike."""
    neurons = [neuron_of(node, modules) for node in nodes]
    if not all(neurons[0].same_kind(other) for other in neurons):
        return Neuron()
    return replace(neurons[0], absorbed=sum((n.absorbed for n in neurons), ()))


def neuron_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Neuron:
    """What belongs to the neurons of one call of a convolution."""
    norm, norm_name, absorbed = None, "", []
    after = _only_user(node)
    if after is not None and after.op == "call_module":
        module = modules[str(after.target)]
        # What has hooks stays, so that they are called.
        if (
            type(module) is nn.BatchNorm2d
            and module.running_mean is not None
            and not _hooked(module)
        ):
            norm, norm_name = module, str(after.target)
            absorbed.append(after)
            after = _only_user(after)
    if after is not None and after.op == "call_module" and _hooked(modules[str(after.target)]):
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


def _absorb(graph: fx.Graph, neuron: Neuron) -> None:
    for node in neuron.absorbed:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)


def _advance_clock(graph: fx.Graph) -> None:
    """Let the network advance its clock once an inference, after its last layer."""
    image = next(node for node in graph.nodes if node.op == "placeholder")
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        graph.call_module("control", (image,))


def _geometry(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return type(module).__name__ if type(module) is not nn.Module else "F.conv2d"
    size = "x".join(map(str, module.kernel_size))
    groups = f" groups {module.groups}" if module.groups > 1 else ""
    stride = f" stride {module.stride[0]}" if module.stride != (1, 1) else ""
    return f"{module.in_channels}->{module.out_channels} {size}{stride}{groups}"


def why_not(module: nn.Module) -> str | None:
    """Why a convolution cannot become a drowsy layer; None where it can."""
    if type(module) is not nn.Conv2d:
        kind = _geometry(module) if type(module) is nn.Module else type(module).__name__
        return f"{kind} is not an nn.Conv2d"
    if "weight" not in module._parameters:
        return "its weight is computed anew at every call (weight_norm, prune): make it permanent"
    return "it has hooks, which a drowsy layer would not call" if _hooked(module) else None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
