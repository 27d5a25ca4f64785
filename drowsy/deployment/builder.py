"""The graph that a deployed network runs: rewritten from the network's own, one module a step.

``Builder`` walks the network's graph and emits another. Every tensor of the network is there as its
full map, as the awake rows of a shared map (*compact*), or as both, whichever its readers want.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels import lists, tables
from drowsy_kernels.tuning import Choice
from torch import Tensor, fx, nn

from drowsy.backends.triton import choose, exact_run, kernel_options
from drowsy.deployment.maps import Advance, Draw, Map, Prologue
from drowsy.deployment.steps import Conv, Expand, FullConv, Join, RowsConv, Step, fill
from drowsy.graph.nodes import applied, pointwise
from drowsy.graph.overwriting import without_overwriting
from drowsy.graph.running import shapes
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.neuron import NO_ACTIVATION, Activation, padded
from drowsy.sleep import Grain, SleepSpec


def structure(net: DrowsyNet, compact: bool, copied: Set[int]) -> tuple[object, ...]:
    """What a built graph depends on, beside the shapes; read without a synchronisation.

    It cannot change unless ``net.control.version`` does. ``copied`` are the indices of the layers
    whose weight the graph has a copy of: the others' it reads where corrections are written.
    """
    layers = net.layers.values()
    return (
        [layer.sleep for layer in layers],
        [(fill(layer), id(layer.table)) for layer in layers],
        _equal_rates(net) if compact else [],
        [(layer.laid, layer.written if layer.index in copied else 0) for layer in layers],
    )


def _equal_rates(net: DrowsyNet) -> list[int]:
    """For every layer the first layer of its stream that has the same rate."""
    first: dict[tuple[int, int], int] = {}
    settings = zip(net.layers.values(), net.control.settings, strict=True)
    return [first.setdefault((layer.sleep.stream, j), i) for i, (layer, j) in enumerate(settings)]


# Input channels that a K step can take, as deep as they come.
_STEPS = {torch.float32: (32, 16), torch.float16: (64, 32, 16), torch.bfloat16: (64, 32, 16)}
# Methods that work through a list, named as the list is.
_LISTS = ("cells", "rows", "channels")
# What leaves a channel of zeros a channel of zeros.
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


@dataclass(eq=False)
class _Value:
    """What stands for a tensor of the network: its full map, its awake rows, or both.

    Args:
        full: node of the full map.
        rows, home, fill: node of the awake rows, the shared map, and how the rest is filled in.
        zeros: a map whose sleepers are known to be 0 in the full map.
    """

    full: Any = None
    rows: fx.Node | None = None
    home: Map | None = None
    fill: str = ""
    zeros: Map | None = None

    @property
    def form(self) -> tuple[Map | None, str]:
        """What rows must have in common to belong together."""
        return self.home, self.fill

    def same_form(self, other: _Value) -> bool:
        """Whether both have rows, and these belong together."""
        return self.rows is not None and self.form == other.form


@dataclass(frozen=True)
class _Sum:
    """A sum that a layer may take in: ``conv`` is computed at ``add``'s place."""

    conv: fx.Node
    add: fx.Node
    other: fx.Node
    activation: Activation
    last: fx.Node


class Builder:
    """Builds a deployed graph for the structure that a network has now."""

    def __init__(self, net: DrowsyNet, example: Tensor, compact: bool) -> None:
        self._net, self._example, self._compact = net, example, compact
        self._modules: dict[str, Any] = net.parts
        copies: dict[fx.Node, fx.Node] = {}
        self._source = without_overwriting(net.need_graph("deploy"), self._modules, copies)
        self._shapes = {copies[node]: shape for node, shape in shapes(net, example).items()}
        self._prologue = Prologue(example.device)
        self._detail = net.detail_of(example)
        self._graph = fx.Graph()
        self._values: dict[fx.Node, _Value] = {}
        self._maps: dict[object, Map] = {}
        self.steps: list[Step] = []

    @property
    def copied(self) -> set[int]:
        """Indices of the layers whose weight the graph has a copy of."""
        steps = self._modules.values()
        return {step.index for step in steps if isinstance(step, Conv) and step.copied}

    def build(self) -> fx.GraphModule:
        """The deployed graph as a module."""
        self._homes = self._shared_maps() if self._compact else {}
        sums = _sums(self._source, self._modules, self._shapes)
        at_sum = {s.add: s for s in sums}
        taken_in = {s.conv for s in sums} | {s.last for s in sums}
        for node in self._source.nodes:
            if node in at_sum:
                self._emit_sum(at_sum[node])
            elif node in taken_in:
                continue
            elif self._is_layer(node):
                self._values[node] = self._emit_layer(node)
            else:
                self._emit_other(node)
        root = {}
        for node in self._graph.nodes:
            if node.op in ("call_module", "get_attr"):
                name = str(node.target)
                # Below one name, so that no name of the model is one of fx.GraphModule's own.
                node.target = f"net.{name}"
                root[node.target] = self._modules.get(name) or self._net.known.value(name)
        return fx.GraphModule(root, self._graph, "Deployed")

    # --- nodes ----------------------------------------------------------------------------------

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self._modules[str(node.target)], DrowsyConv2d
        )

    def _emit_other(self, node: fx.Node) -> None:
        """Copy a node; on rows where all of its tensors have them and it treats rows alone."""
        if node.op == "output":
            self._call("advance", Advance(self._net.control, len(self._example)), ())
        values = [self._values[used] for used in node.all_input_nodes]
        alike = values and all(value.same_form(values[0]) for value in values)
        kind = pointwise(node, self._modules) if alike else None
        if kind:
            home = values[0].home
            if kind == "cat":
                assert home is not None
                parts = [self._values[used].rows for used in _operands(node)]
                made = self._call(node.name, Join(home.rows, self._prologue.mark()), tuple(parts))
            else:
                made = self._graph.node_copy(node, lambda used: self._values[used].rows)
            self._values[node] = _Value(None, made, home, values[0].fill)
        else:
            for used in node.all_input_nodes:
                self._full(used)
            made = self._graph.node_copy(node, lambda used: self._values[used].full)
            self._values[node] = _Value(made, zeros=self._zeros_after(node))
        if node.op == "placeholder" and not node.args:  # the batch; the others have defaults
            self._call("draw", Draw(self._prologue, self._detail), (made,))

    def _emit_sum(self, s: _Sum) -> None:
        """A sum with its convolution, as one step where they commute."""
        layer, other = self._modules[str(s.conv.target)], self._values[s.other]
        home = self._homes.get(s.conv)
        keeps_zero = s.last is s.add or pointwise(s.last, self._modules)
        if home is not None and keeps_zero and other.rows and other.form == (home, fill(layer)):
            value = self._emit_layer(s.conv, other.rows, s.activation)
        elif home is not None:
            value = self._emit_layer(s.conv)
            full = self._full(s.other)
            value = _Value(self._expand(s.conv, value, full, s.activation))
        elif fill(layer) == "zero":
            value = self._emit_layer(s.conv, self._full(s.other), s.activation)
        else:
            self._values[s.conv] = self._emit_layer(s.conv)
            self._emit_other(s.add)
            if s.last is not s.add:
                self._emit_other(s.last)
            return
        self._values[s.last] = value

    def _emit_layer(
        self, node: fx.Node, residual: fx.Node | None = None, post: Activation = NO_ACTIVATION
    ) -> _Value:
        """A drowsy layer, compact where its map is shared."""
        home = self._homes.get(node)
        if home is None:
            return self._emit_full(node, residual, post)
        layer = self._modules[str(node.target)]
        x = node.all_input_nodes[0]
        value = self._values[x]
        height_width = self._shapes[x][2:]
        spec = layer.spec.at(height_width)
        geometry = tables.Geometry(
            (height_width[0], height_width[1]),
            tuple(layer.weight.shape[2:]),
            spec.stride,
            spec.padding,
            spec.dilation,
        )
        if value.rows is not None:
            reads, data, source = "compact", value.rows, value.home
            assert source is not None
            own = geometry.identity and source is home
            table = None if own else home.table(geometry, source.index(value.fill))
        else:
            reads, data = "full", self._full(x)
            table = home.table(geometry, None)
        module = RowsConv(layer, home.rows, table, self._prologue.mark(), post)
        rows = self._call(node.name, module, (data,) if residual is None else (data, residual))
        self._note(node, "compact", reads, "awake rows", residual, post)
        return _Value(None, rows, home, fill(layer))

    def _emit_full(self, node: fx.Node, residual: fx.Node | None, post: Activation) -> _Value:
        layer = self._modules[str(node.target)]
        n, channels, height, width = self._shapes[node]
        drawn = self._map(layer, layer.sleep, (n, channels, height, width))
        x = node.all_input_nodes[0]
        given, spec = padded(torch.empty(self._shapes[x], device="meta"), layer.spec)
        dtype, device = self._example.dtype, self._example.device
        choice = choose(given.shape, layer.weight.shape, dtype, device, spec, drawn.cell)
        awake = getattr(drawn, choice.method) if choice.method in _LISTS else None
        data, zeros, reads = self._full(x), self._values[x].zeros, "full"
        blocks = self._blocks(layer, zeros, choice.method)
        if blocks is not None:
            zeros, reads = None, f"awake channels by {blocks.block}"
        elif zeros is not None and self._same_position(layer, drawn, zeros):
            awake, reads = drawn.rows_but(zeros), "awake rows"
            choice = Choice("rows", None, "the layer before slept in every channel")
        else:
            zeros = None
        ready = self._prologue.mark()
        module = FullConv(layer, choice, drawn, awake, blocks, zeros, ready, post)
        made = self._call(node.name, module, (data,) if residual is None else (data, residual))
        computes = f"awake {choice.method}" if awake is not None else "masked"
        self._note(node, "full", reads, computes, residual, post)
        zero = residual is None and fill(layer) == "zero"
        return _Value(made, zeros=drawn if zero else None)

    def _zeros_after(self, node: fx.Node) -> Map | None:
        """The map whose sleepers are still 0 after a node that is no layer."""
        if len(node.all_input_nodes) != 1:
            return None
        zeros = self._values[node.all_input_nodes[0]].zeros
        if zeros is None or pointwise(node, self._modules) not in (None, "cat"):
            return zeros
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        return zeros if zeros.whole_channels and isinstance(module, _POOLS) else None

    def _same_position(self, layer: DrowsyConv2d, drawn: Map, zeros: Map) -> bool:
        """Whether a layer turns positions that are 0 in every channel into constants."""
        return (
            layer.reads_single_positions
            and layer.groups == 1
            and fill(layer) == "zero"
            and drawn.one_cell
            and zeros.one_cell
        )

    def _blocks(
        self, layer: DrowsyConv2d, zeros: Map | None, method: str
    ) -> lists.AwakeBlocks | None:
        """The input's blocks of channels that are awake, where reading no others saves a step."""
        if zeros is None or not zeros.whole_channels:
            return None
        widths = [width for width in _STEPS[layer.weight.dtype] if zeros.cell[1] % width == 0]
        if not widths or method == "rows" or layer.groups > 1:
            return None
        return zeros.blocks(widths[0])

    def _full(self, node: fx.Node) -> Any:
        """The full map of a value, filled in at its first use."""
        value = self._values[node]
        if value.full is None:
            value.full = self._expand(node, value)
        return value.full

    def _expand(
        self,
        node: fx.Node,
        value: _Value,
        residual: fx.Node | None = None,
        post: Activation = NO_ACTIVATION,
    ) -> fx.Node:
        """Fill in ``value``, which stands for ``node``."""
        assert value.rows is not None
        assert value.home is not None
        n, channels, height, width = self._shapes[node]
        index = value.home.index(value.fill)
        module = Expand(index, (n, channels, height, width), self._prologue.mark(), post)
        args = (value.rows,) if residual is None else (value.rows, residual)
        return self._call(f"{node.name}_full", module, args)

    # --- maps -----------------------------------------------------------------------------------

    def _shared_maps(self) -> dict[fx.Node, Map]:
        """The map of every layer that keeps its outputs compact: two calls or more share it."""
        groups: dict[tuple[SleepSpec, int, int, int], list[fx.Node]] = {}
        equal = dict(zip(self._net.layers, _equal_rates(self._net), strict=True))
        for node in self._source.nodes:
            if not self._is_layer(node):
                continue
            layer = self._modules[str(node.target)]
            _, channels, height, width = self._shapes[node]
            one_cell = layer.sleep.grain.cell(channels, height * width) == (1, channels)
            plain = layer.groups == 1 and layer.padding_mode == "zeros"
            if one_cell and plain and fill(layer) in tables.INDEX_FILLS:
                sleep = replace(layer.sleep, grain=Grain("position"))
                key = (sleep, height, width, equal[str(node.target)])
                groups.setdefault(key, []).append(node)
        homes: dict[fx.Node, Map] = {}
        for (sleep, height, width, _), nodes in groups.items():
            if len(nodes) > 1:
                layer = self._modules[str(nodes[0].target)]
                shape = (len(self._example), 1, height, width)
                homes |= dict.fromkeys(nodes, self._map(layer, sleep, shape))
        return homes

    def _map(self, layer: DrowsyConv2d, sleep: SleepSpec, shape: tuple[int, int, int, int]) -> Map:
        """A map and its drawing, once for every layer, specification and shape."""
        key = (layer.index, sleep, shape)
        if key in self._maps:
            return self._maps[key]
        _, channels, height, width = shape
        cell, source, k = sleep.grain.cell(channels, height * width), sleep.source, sleep.k
        threshold, clock = layer.control.thresholds[layer.index], layer.control.clock
        layer_map = sleep.layer_map(shape, self._detail)
        given = source.tables(layer_map, clock[0])
        if source.follows_seed:
            self._prologue.add(functools.partial(source.reseed, given, layer_map, clock[0]))
        bitmap, (launch,) = kernels.plan_sleep_map(
            source.name,
            shape,
            cell=cell,
            k=k,
            stream=sleep.stream,
            threshold=threshold,
            clock=clock,
            **kernel_options(source, layer_map, given),
        )
        self._prologue.add(launch)
        run = exact_run(sleep, shape)
        exact = None if run is None else (run, threshold)
        self._maps[key] = made = Map(self._prologue, shape, cell, bitmap, exact)
        return made

    # --- emitting -------------------------------------------------------------------------------

    def _call(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> fx.Node:
        target = f"step.{name}"
        while target in self._modules:
            target += "_"
        self._modules[target] = module
        return self._graph.call_module(target, args)

    def _note(
        self,
        node: fx.Node,
        output: str,
        reads: str,
        computes: str,
        residual: fx.Node | None,
        post: Activation,
    ) -> None:
        fused = [] if residual is None else ["sum"]
        if post.name != "none":
            fused.append(post.name)
        self.steps.append(Step(str(node.target), output, reads, computes, " + ".join(fused)))


def _operands(node: fx.Node) -> list[fx.Node]:
    """What a concatenation joins, in order, repeats included."""
    joined = node.args[0] if node.args else node.kwargs["tensors"]
    assert isinstance(joined, Sequence)
    return [operand for operand in joined if isinstance(operand, fx.Node)]


def _sums(graph: fx.Graph, modules: dict[str, Any], sizes: dict[fx.Node, torch.Size]) -> list[_Sum]:
    """Sums of two tensors of one shape, one of them of a layer that nothing else reads."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    found = []
    for add in graph.nodes:
        if pointwise(add, modules) != "add" or len(add.all_input_nodes) != 2:
            continue
        convs = [
            node
            for node in add.all_input_nodes
            if node.op == "call_module"
            and isinstance(modules[str(node.target)], DrowsyConv2d)
            and len(node.users) == 1
        ]
        if not convs or len({sizes[node] for node in add.all_input_nodes}) > 1:
            continue
        # The later one: what it is added to is there by then.
        conv = max(convs, key=place.__getitem__)
        other = next(node for node in add.all_input_nodes if node is not conv)
        after = next(iter(add.users)) if len(add.users) == 1 else None
        post = None if after is None else applied(after, modules, sizes[add][1])
        if after is None or post is None or after.all_input_nodes != [add]:
            after, post = add, NO_ACTIVATION
        found.append(_Sum(conv, add, other, post, after))
    return found
