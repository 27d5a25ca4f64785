"""Turn a pretrained CNN into a drowsy one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from drowsy.backends.ops import choose_backend
from drowsy.graph.default_fills import Choice, choose_fill
from drowsy.graph.nodes import Neuron, common_neuron, hooked
from drowsy.graph.tracing import convolution_calls, trace
from drowsy.knob.control import Control
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet, LayerReport, check_network
from drowsy.sleep import DEFAULT_K, FILLS, Grain, SleepSpec, Source, check_fill


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
            each layer by the paper's rule, ``zero`` or ``rescale``: ``graph.default_fills``),
            or one of ``drowsy.sleep.FILLS`` for all layers.
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
    spec = SleepSpec(source, grain, k)  # type: ignore[arg-type]
    _check_fill(fill, spec.grain)
    choose_backend(backend, torch.device("cpu"))

    graph = trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = convolution_calls(graph, modules)
    left = _left_awake(calls, modules, skip)
    convertible = {name: nodes for name, nodes in calls.items() if name not in left}
    if not convertible:
        reasons = [f"; {name}: {reason}" for name in calls if (reason := why_not(modules[name]))]
        raise ValueError(f"model: has no nn.Conv2d to convert{''.join(reasons[:1])}")

    # Choices are made on the graph as it was written, before anything is absorbed.
    neurons = {name: common_neuron(nodes, modules) for name, nodes in convertible.items()}
    choices = {
        name: choose_fill((neurons[name].absorbed or nodes)[-1], modules, spec)
        if fill == "auto"
        else Choice(fill, "as asked")
        for name, nodes in convertible.items()
    }
    report = [
        LayerReport(
            name, _geometry(modules[name]), norm=None, activation=None, fill=None, reason=left[name]
        )
        if name in left
        else _reported(name, modules[name], neurons[name], choices[name])
        for name in calls
    ]

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
    return DrowsyNet.assemble(model, graph, layers, control, report)


def revert(net: DrowsyNet) -> nn.Module:
    """The model that ``net`` was converted from, with the weights they share.

    Raises:
        TypeError: ``net`` is no DrowsyNet.
    """
    check_network(net)
    return net.original


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError unless this is a network in eval mode, not converted yet."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, allowed: an nn.Module")
    if isinstance(model, DrowsyNet):
        raise ValueError("model: is already drowsy; revert it first")
    if any(module.training for module in model.modules()):
        raise ValueError("model: is in training mode; drowsy is for inference, call model.eval()")


def _check_fill(fill: str, grain: Grain) -> None:
    if fill not in ("auto", *FILLS):
        raise ValueError(f"fill: got {fill!r}, allowed: auto, {', '.join(FILLS)}")
    if fill != "auto":
        check_fill(fill, grain)


def _left_awake(
    calls: Mapping[str, list[fx.Node]], modules: Mapping[str, nn.Module], skip: Sequence[str]
) -> dict[str, str]:
    """The convolutions that stay as they are, and why."""
    skipped = _matching(skip, list(calls))
    left = {}
    for name in calls:
        if name in skipped:
            left[name] = "left awake, as asked"
        elif reason := why_not(modules[name]):
            left[name] = f"left awake: {reason}"
    return left


def _reported(name: str, conv: nn.Module, neuron: Neuron, choice: Choice) -> LayerReport:
    return LayerReport(
        name, _geometry(conv), neuron.norm_name, neuron.activation, choice.fill, choice.reason
    )


def _device(model: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in model.parameters()), None)


def _matching(patterns: Sequence[str], names: list[str]) -> set[str]:
    if isinstance(patterns, str):
        raise TypeError(f"skip: got the string {patterns!r}, allowed: a list of names")
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                hits = [name for name in names if re.search(pattern[3:], name)]
            except re.error as error:
                raise ValueError(
                    f"skip: got {pattern!r}, allowed: a name, or re: and a regular expression "
                    f"({error})"
                ) from error
        else:
            hits = [name for name in names if name == pattern]
        if not hits:
            raise ValueError(
                f"skip: {pattern!r} names no convolution; there are {', '.join(names)}"
            )
        found.update(hits)
    return found


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
    return "it has hooks, which a drowsy layer would not call" if hooked(module) else None
