"""Stages: layers of one resolution that can share a position map.

Convolutions that follow each other at one resolution, or whose outputs are added or concatenated,
form a *stage*. Let all of them sleep at the same positions (``align``) and a position that sleeps
is gone from the whole stage: its 1x1 convolutions, residual sums and activations have fewer rows
to work on, which is what a network bound by memory traffic needs. ``drowsy.deploy`` keeps the
activations of such a stage compact.

What lies between the layers of a stage must work on every position alone and keep 0 at 0, so that
it neither moves nor wakes a sleeper: see ``pointwise``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from drowsy.files.tables import align as align_columns
from drowsy.graph.nodes import pointwise, readers
from drowsy.graph.running import check_example, settled_graph, shapes
from drowsy.knob.schedule import named
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.sleep import Grain


@dataclass(frozen=True)
class Stage:
    """Drowsy layers of one resolution, in order of execution.

    Args:
        size: ``(OH, OW)`` of their outputs.
        layers: their names.
        inputs: what the stage reads from outside: names of graph nodes.
        ends: what reads the stage's activations and needs the full map: names of graph nodes.
    """

    size: tuple[int, int]
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    ends: tuple[str, ...]


def find_stages(net: DrowsyNet, example: Tensor) -> list[Stage]:
    """The stages of a network, those of a single layer included, in order of execution.

    Args:
        net: a converted network.
        example: an input ``[N, C, H, W]``; only its shape, dtype and device matter.

    Raises:
        TypeError, ValueError: ``net`` is no DrowsyNet, or ``example`` is no batch of images.
    """
    return _find_stages(net, example, "find_stages")


def _find_stages(net: DrowsyNet, example: Tensor, what: str) -> list[Stage]:
    check_example(net, example)
    graph = settled_graph(net, example, what)
    sizes = shapes(net, example)
    modules = net.parts
    groups = _Groups()
    # Layers whose outputs reach a node, at the node's resolution, through pointwise operations.
    reaching: dict[fx.Node, list[str]] = {}
    for node in graph.nodes:
        sources = _at_size(node, sizes, reaching)
        if node.op == "call_module" and isinstance(modules[str(node.target)], DrowsyConv2d):
            name = str(node.target)
            groups.join([name, *sources], sizes[node][-2:])
            reaching[node] = [name]
        elif pointwise(node, modules):
            if sources:
                groups.join(sources, sizes[node][-2:])
            reaching[node] = sources
        else:
            reaching[node] = []
    return [
        Stage(size, tuple(names), *_borders(net, set(names), reaching, modules))
        for names, size in groups.listed(list(net.layers))
    ]


def align(
    net: DrowsyNet, example: Tensor, *, grain: str | Grain | None = "position", step: int = 0
) -> list[Stage]:
    """Let the layers of every stage draw from one stream; returns the stages.

    Rates and fills stay as they are. By default every layer gets the grain ``position`` (all
    channels of a position sleep together), and the layers of a stage sleep at exactly the same
    positions while their rates are equal.

    Args:
        net, example: as for ``find_stages``.
        grain: of all layers; None leaves each its own. Layers of one stream, grain and number of
            channels share their maps.
        step: by how much the phase (``SleepSpec.phase``) rises from a layer of a stage to the next.
            0 shares one map; 1 makes consecutive layers complement each other: up to rate 1/2,
            what sleeps in one is awake in the next.

    Raises:
        TypeError, ValueError: as for ``find_stages``; a negative step; a grain that is unknown or
            that a layer's source or fill does not allow. The network is then as it was.
    """
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"step: got {step!r}, allowed: an integer from 0")
    stages = _find_stages(net, example, "align")
    for name, layer in net.layers.items():
        named(name, layer.check, grain=grain)
    # Of an odd k, lattices repeat after k phases and the others after 2.
    cycle = math.lcm(net.k, 2)
    for stage in stages:
        stream = net.layers[stage.layers[0]].sleep.stream
        for place, name in enumerate(stage.layers):
            phase = place * step % cycle
            net.layers[name].stage(grain=grain, stream=stream, phase=phase)
    return stages


def find_ties(net: DrowsyNet, example: Tensor) -> list[tuple[str, ...]]:
    """Layers that had best sleep at one rate: ties, in order of execution; most are of one layer.

    Let the only reader of a layer be a 1x1 convolution that draws the same map. What the reader
    sleeps through nobody reads, so there the layer sleeps for nothing; and more sleep of either
    alone would harm. Two layers of a bottleneck are such a tie, or what is concatenated for a
    1x1 convolution, with that.

    Args, Raises: as for ``find_stages``.
    """
    check_example(net, example)
    graph = settled_graph(net, example, "find_ties")
    sizes = shapes(net, example)
    modules = net.parts
    calls: dict[str, list[fx.Node]] = {name: [] for name in net.layers}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in calls:
            calls[str(node.target)].append(node)
    groups = _Groups()
    for name, nodes in calls.items():
        groups.join([name], sizes[nodes[0]][-2:])
        reading_it = readers(nodes[0], lambda user: pointwise(user, modules))
        called = calls.get(str(reading_it[0].target), []) if len(reading_it) == 1 else []
        # A layer that runs twice is read twice.
        if len(nodes) == len(called) == 1 and sizes[called[0]][-2:] == sizes[nodes[0]][-2:]:
            other = str(called[0].target)
            layer, reading = net.layers[name], net.layers[other]
            if reading.reads_single_positions and _draw_alike(layer, reading):
                groups.join([other, name], sizes[called[0]][-2:])
    return [tuple(names) for names, _ in groups.listed(list(net.layers))]


def explain(stages: list[Stage]) -> str:
    """Stages as text, one line each."""
    header = ["stage", "size", "layers", "reads", "filled in for"]
    rows = [
        [
            str(number),
            "x".join(map(str, stage.size)),
            f"{stage.layers[0]} .. {stage.layers[-1]} ({len(stage.layers)})"
            if len(stage.layers) > 1
            else stage.layers[0],
            ", ".join(stage.inputs),
            ", ".join(stage.ends) or "-",
        ]
        for number, stage in enumerate(stages)
    ]
    return align_columns([header, *rows])


class _Groups:
    """Disjoint sets of layers of one size."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._size: dict[str, tuple[int, int]] = {}

    def _root(self, name: str) -> str:
        while self._parent.setdefault(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, names: list[str], size: torch.Size) -> None:
        for name in names:
            self._parent[self._root(name)] = self._root(names[0])
            self._size[name] = (size[0], size[1])

    def listed(self, order: list[str]) -> list[tuple[list[str], tuple[int, int]]]:
        groups: dict[str, list[str]] = {}
        for name in order:
            if name in self._size:
                groups.setdefault(self._root(name), []).append(name)
        return [(names, self._size[names[0]]) for names in groups.values()]


def _draw_alike(one: DrowsyConv2d, other: DrowsyConv2d) -> bool:
    """Whether two layers of one size sleep at the same positions while their rates are equal."""
    return one.sleep == other.sleep and one.sleep.grain == Grain("position")


def _at_size(
    node: fx.Node, sizes: Mapping[fx.Node, torch.Size], reaching: Mapping[fx.Node, list[str]]
) -> list[str]:
    """Layers that reach a node's arguments of the node's own resolution."""
    if node not in sizes:
        return []
    return [
        name
        for used in node.all_input_nodes
        if used in sizes and sizes[used][-2:] == sizes[node][-2:]
        for name in reaching[used]
    ]


def _borders(
    net: DrowsyNet,
    members: set[str],
    reaching: Mapping[fx.Node, list[str]],
    modules: Mapping[str, nn.Module],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``(inputs, ends)`` of the stage of these layers."""
    inputs: list[str] = []
    ends: list[str] = []
    for node in reaching:
        is_layer = node.op == "call_module" and node.target in net.layers
        inside = is_layer and node.target in members
        for used in node.all_input_nodes:
            from_inside = bool(members.intersection(reaching[used]))
            if inside and not from_inside:
                inputs.append(used.name)
            if from_inside and not is_layer and not pointwise(node, modules):
                ends.append(node.name)
    return tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(ends))
