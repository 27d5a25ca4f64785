"""Rates per group of channels: split convolutions, the channels that harm least in one part.

A drowsy layer has one rate. To give the channels of a convolution several, it is split before the
network is converted: into convolutions of some of its channels, whose outputs are concatenated
again. Each part is then a layer of its own to the knob, the search, the corrections and the
kernels, and nothing else has to know of groups.

Which channels belong together, a second-order estimate says: what a channel's sleep alone would
cost, in nats, from one backward pass and without sleeping once (``channel_sensitivity``). Channels
are brought into that order, and those that read them follow, so that nothing is moved at inference.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from drowsy.control import check_seed
from drowsy.convert import Neuron, activation_name, check_model, neuron_of, trace, why_not
from drowsy.evaluate import check_images
from drowsy.neuron import sleep
from drowsy.rules import readers
from drowsy.schedule import threshold
from drowsy.sleep import SleepSpec, check_fill, levels, scale

# What works on every channel alone, besides activations.
_PER_CHANNEL = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class _Candidate:
    """A convolution that can be split, with its batch norm and activation, and what reads it."""

    node: fx.Node
    neuron: Neuron
    readers: tuple[str, ...]

    @property
    def end(self) -> fx.Node:
        """The node of its neurons' outputs."""
        return (self.node, *self.neuron.absorbed)[-1]


def splittable(model: nn.Module) -> list[str]:
    """Convolutions that can be split: plain ones, of one call, that dense convolutions alone read.

    Between these may lie a batch norm, activations, pooling and dropout. Names in order of
    execution.
    """
    check_model(model)
    return list(_candidates(trace(model), _modules(model)))


def channel_sensitivity(
    model: nn.Module,
    images: Tensor,
    sleeps: SleepSpec,
    *,
    fill: str = "interpolate",
    rate: float | Fraction = Fraction(1, 2),
    seed: int = 0,
    batch: int = 32,
) -> dict[str, Tensor]:
    """What the sleep of each channel alone would cost: estimates of the divergence, in nats.

    To second order, KL(awake || drowsy) is half the mean of ``(g . d)^2``: ``d`` is the change of a
    channel's outputs, ``g`` the gradient there of the log-likelihood of a class that the network
    itself draws (the Fisher information; for pruning: Theis et al., "Faster gaze prediction with
    dense networks and Fisher pruning", 2018).

    Args:
        model: in eval mode, as for ``drowsy.convert``; stays as it was.
        images: ``[N, C, H, W]`` as the network takes them; no labels are needed.
        sleeps: source, grain and ``k`` of the sleep that is estimated.
        fill: of the sleepers; every one but ``stencil``.
        rate: of the sleep.
        seed: of the sleep maps and of the classes that are drawn.
        batch: images per pass.

    Returns:
        float64 ``[OC]`` for each convolution of ``splittable``.

    Raises:
        ValueError: a rate or fill that is not allowed, images that are not finite, a seed or batch
            out of range, or a model that ``drowsy.convert`` would not take.
    """
    check_model(model)
    check_images(images)
    check_seed("seed", seed)
    if batch < 1:
        raise ValueError(f"batch: got {batch}, allowed: 1 or more")
    if check_fill(fill, sleeps.grain) == "stencil":
        raise ValueError("fill: got 'stencil', allowed: fills that need no calibration")
    j = threshold(rate, sleeps.k)
    graph = trace(model)
    candidates = _candidates(graph, _modules(model))
    if not candidates:
        return {}
    run = _Outputs(fx.GraphModule(model, graph), [each.end for each in candidates.values()])
    generator = torch.Generator().manual_seed(seed)
    totals = [torch.zeros((), dtype=torch.float64)] * len(candidates)
    for first in range(0, len(images), batch):
        logits = run.of(images[first : first + batch])
        likelihood = logits.float().log_softmax(1)
        drawn = torch.multinomial(likelihood.detach().exp().cpu(), 1, generator=generator)
        picked = likelihood.gather(1, drawn.to(logits.device)).sum()
        gradients = torch.autograd.grad(picked, run.found)
        for i, (y, g) in enumerate(zip(run.found, gradients, strict=True)):
            y, shape = y.detach(), (y.shape[0], y.shape[1], y.shape[2], y.shape[3])
            drawn_levels = levels(sleeps, shape, torch.tensor([seed, first], device=y.device))
            slept = sleep(y, drawn_levels, j, scale(j, sleeps.k, fill), sleeps.grain, fill)
            each = ((slept - y) * g).sum((2, 3), dtype=torch.float64)
            totals[i] = totals[i] + each.square().sum(0)
    return {name: total / (2 * len(images)) for name, total in zip(candidates, totals, strict=True)}


def split_channels(
    model: nn.Module, sensitivity: Mapping[str, Tensor], parts: int = 2
) -> fx.GraphModule:
    """Split convolutions into parts of equally many channels, those of the least sensitivity first.

    Args:
        model: in eval mode; stays as it was.
        sensitivity: ``[OC]`` for each convolution to split, of those that ``splittable`` names.
        parts: how many.

    Returns:
        a network of the same outputs, to rounding. The parts of ``NAME`` are ``NAME.0``,
        ``NAME.1`` and so on.

    Raises:
        ValueError: fewer than two parts, more than a convolution has channels, a convolution that
            cannot be split, a sensitivity of another shape, or a model that ``drowsy.convert``
            would not take.
    """
    check_model(model)
    if parts < 2:
        raise ValueError(f"parts: got {parts}, allowed: 2 or more")
    model = copy.deepcopy(model)
    graph, modules = trace(model), _modules(model)
    candidates = _candidates(graph, modules)
    for name, of_channels in sensitivity.items():
        if name not in candidates:
            there = ", ".join(candidates) or "none"
            raise ValueError(f"sensitivity: {name!r} cannot be split; what can be: {there}")
        channels = int(modules[name].out_channels)  # type: ignore[arg-type]
        if of_channels.shape != (channels,) or parts > channels:
            raise ValueError(
                f"sensitivity: {name}: got shape {tuple(of_channels.shape)} for {parts} parts, "
                f"allowed: ({channels},) and at most {channels} parts"
            )
    chosen = {name: each for name, each in candidates.items() if name in sensitivity}
    for name, each in chosen.items():
        order = sensitivity[name].argsort(stable=True)
        for reader in map(modules.__getitem__, each.readers):
            assert isinstance(reader, nn.Conv2d)
            _replace(reader, weight=reader.weight[:, order])
        _take(modules[name], order)
        if each.neuron.norm is not None:
            _take(each.neuron.norm, order)
    split = fx.GraphModule(model, graph)
    for name, each in chosen.items():
        _split(split, name, each, parts)
    split.graph.lint()
    split.recompile()
    return split.eval()


# --- steps ---------------------------------------------------------------------------------------


class _Outputs(fx.Interpreter):
    """Runs a network so that some of its nodes' outputs, ``found``, have gradients."""

    def __init__(self, module: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        super().__init__(module)
        self._nodes = nodes
        self.found: list[Tensor] = []

    def of(self, images: Tensor) -> Tensor:
        kept: dict[fx.Node, Tensor] = {}
        self._kept = kept
        # The graph of gradients begins at the images: parameters need none.
        with torch.enable_grad():
            logits: Tensor = self.run(images.clone().requires_grad_())
        self.found = [kept[node] for node in self._nodes]
        return logits

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self._nodes:
            self._kept[node] = result
        return result


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))


def _candidates(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[str, _Candidate]:
    # A module of two names is one.
    calls = Counter(id(modules[n.target]) for n in graph.nodes if n.op == "call_module")

    def once(node: fx.Node) -> bool:
        return calls[id(modules[str(node.target)])] == 1

    found: dict[str, _Candidate] = {}
    for node in graph.nodes:
        if not _is_plain(node, modules) or not once(node):
            continue
        neuron = neuron_of(node, modules)
        end = (node, *neuron.absorbed)[-1]
        reading = readers(end, lambda user: _per_channel(user, modules))
        norms = [each for each in neuron.absorbed if each.target == neuron.norm_name]
        plain = all(_is_plain(each, modules) for each in reading)
        if reading and plain and all(map(once, [*reading, *norms])):
            names = tuple(str(reader.target) for reader in reading)
            found[str(node.target)] = _Candidate(node, neuron, names)
    return found


def _is_plain(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node calls a convolution of one group that can sleep."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    return isinstance(module, nn.Conv2d) and module.groups == 1 and why_not(module) is None


def _per_channel(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node works on every channel alone."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    return bool(activation_name(node, modules)) or isinstance(module, _PER_CHANNEL)


def _split(split: fx.GraphModule, name: str, candidate: _Candidate, parts: int) -> None:
    """Replace a convolution with its norm and activation by parts, concatenated."""
    neuron, node = candidate.neuron, candidate.node
    conv = split.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    places = torch.arange(conv.out_channels).tensor_split(parts)
    for target in filter(None, (name, neuron.norm_name)):
        whole = split.get_submodule(target)
        parent, _, leaf = target.rpartition(".")
        pieces = nn.ModuleList(_take(copy.deepcopy(whole), place) for place in places)
        setattr(split.get_submodule(parent), leaf, pieces)
    outputs = []
    with split.graph.inserting_before(node):
        for part in range(parts):
            made = split.graph.call_module(f"{name}.{part}", node.args, node.kwargs)
            for each in neuron.absorbed:
                if each.target == neuron.norm_name:
                    made = split.graph.call_module(f"{each.target}.{part}", (made,))
                else:
                    before = {node: made, **dict.fromkeys(neuron.absorbed, made)}
                    made = split.graph.node_copy(each, before.__getitem__)
            outputs.append(made)
        whole_output = split.graph.call_function(torch.cat, (outputs, 1))
    candidate.end.replace_all_uses_with(whole_output)
    for each in reversed((node, *neuron.absorbed)):
        split.graph.erase_node(each)


def _take(module: nn.Module, channels: Tensor) -> nn.Module:
    """Leave a convolution or batch norm these output channels, in this order; returns it."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if tensor is not None:
            _replace(module, **{name: tensor[channels]})
    count = "out_channels" if isinstance(module, nn.Conv2d) else "num_features"
    setattr(module, count, len(channels))
    return module


def _replace(module: nn.Module, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        tensor = tensor.detach().clone(memory_format=torch.preserve_format)
        is_parameter = name in module._parameters
        setattr(module, name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
