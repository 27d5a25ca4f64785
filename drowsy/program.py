"""The graph that a deployed network runs: rewritten from the network's own, one module a step.

``Builder`` walks the network's graph and emits another. Every tensor of the network is there as its
full map, as the awake rows of a shared map (*compact*), or as both, whichever its readers want.
"""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import drowsy_kernels as kernels
import torch
import torch.nn.functional as F
from drowsy_kernels import lists, tables
from drowsy_kernels.conv2d import Awake
from drowsy_kernels.tuning import Choice
from torch import Tensor, fx, nn

from drowsy.backends.triton import choose, convolve, exact_run, map_options, padded, precision
from drowsy.convert import activation_name
from drowsy.evaluate import asked_in_place
from drowsy.layer import DrowsyConv2d
from drowsy.net import DrowsyNet
from drowsy.sleep import (
    NEIGHBOUR_FILLS,
    Grain,
    Lfsr,
    SleepSpec,
    lfsr_phases,
)
from drowsy.stages import pointwise, shapes


@dataclass(frozen=True)
class Step:
    """How one drowsy layer of a deployed network runs.

    Args:
        layer: its name.
        output: ``compact`` (awake rows of a shared map) or ``full``.
        reads: ``compact``, ``full``, or what of the full input is skipped.
        computes: which neurons: ``awake rows``, ``awake cells``, ``awake channels``, or ``masked``.
        fused: residual sum and activation that became part of it.
    """

    layer: str
    output: str
    reads: str
    computes: str
    fused: str


def structure(net: DrowsyNet, compact: bool, copied: Set[int]) -> tuple[object, ...]:
    """What a built graph depends on, beside the shapes; read without a synchronisation.

    It cannot change unless ``net.control.version`` does. ``copied`` are the indices of the layers
    whose weight the graph has a copy of: the others' it reads where corrections are written.
    """
    layers = net.layers.values()
    return (
        [layer.sleep for layer in layers],
        [(_fill(layer), id(layer.table)) for layer in layers],
        _equal_rates(net) if compact else [],
        [(layer.laid, layer.written if layer.index in copied else 0) for layer in layers],
    )


def _fill(layer: DrowsyConv2d) -> str:
    """A layer's fill; ``rescale`` is ``zero`` with a factor, and the factor is data."""
    return layer.fill if layer.fill in NEIGHBOUR_FILLS else "zero"


def _equal_rates(net: DrowsyNet) -> list[int]:
    """For every layer the first layer of its stream that has the same rate."""
    first: dict[tuple[int, int], int] = {}
    settings = zip(net.layers.values(), net.control.settings, strict=True)
    return [first.setdefault((layer.sleep.stream, j), i) for i, (layer, j) in enumerate(settings)]


# --- what is drawn at the start of an inference --------------------------------------------------


class _Prologue:
    """Work that needs no data, in the order in which the layers need it.

    Runs on a stream of its own; ``wait`` holds the current stream until what was added before
    ``mark`` is there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._work: list[Callable[[], None] | torch.cuda.Event] = []
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def add(self, work: kernels.Launch | Callable[[], None]) -> None:
        """Append a launch, or a function to call."""
        self._work.append(
            (lambda: work.run(self._device)) if isinstance(work, kernels.Launch) else work
        )

    def mark(self) -> torch.cuda.Event | None:
        """What to wait for, to have all that was added so far."""
        if self._side is None:
            return None
        if not self._work or not isinstance(self._work[-1], torch.cuda.Event):
            self._work.append(torch.cuda.Event())
        event = self._work[-1]
        assert isinstance(event, torch.cuda.Event)
        return event

    def run(self) -> None:
        """Start the work."""
        if self._side is None:
            for work in self._work:
                work()  # type: ignore[operator]
            return
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            for work in self._work:
                if isinstance(work, torch.cuda.Event):
                    work.record()
                else:
                    work()


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        event.wait()


class _Draw(nn.Module):
    """Starts the prologue."""

    def __init__(self, prologue: _Prologue) -> None:
        super().__init__()
        self._prologue = prologue

    def forward(self) -> None:
        self._prologue.run()


@dataclass(eq=False)
class _Map:
    """A sleep map's buffers, filled by the prologue.

    Args:
        shape: ``(N, C, OH, OW)`` that it is about; ``C`` is 1 where all channels share it.
        cell: positions and channels that share a bit.
        bitmap: int32 ``[N, PC, W]``.
        exact: for ``awake_rows``.
    """

    prologue: _Prologue
    shape: tuple[int, int, int, int]
    cell: tuple[int, int]
    bitmap: Tensor
    exact: tuple[int, Tensor] | None
    _made: dict[Any, Any] = field(default_factory=dict)

    def _planned(
        self, key: object, plan: Callable[[], tuple[Any, Sequence[kernels.Launch]]]
    ) -> Any:
        """The buffers that ``plan`` allocates; its launches join the prologue, once."""
        if key not in self._made:
            self._made[key], launches = plan()
            for launch in launches:
                self.prologue.add(launch)
        return self._made[key]

    @property
    def whole_channels(self) -> bool:
        """Whether all positions of a channel share a bit."""
        return self.cell[0] >= self.shape[2] * self.shape[3]

    @property
    def one_cell(self) -> bool:
        """Whether all channels of a position share a bit, and no two positions do."""
        return self.cell == (1, self.shape[1])

    def rows_but(self, zeros: _Map) -> lists.AwakeRows:
        """Rows that are awake in this map and in another."""

        def plan() -> tuple[lists.AwakeRows, Sequence[kernels.Launch]]:
            either = torch.empty_like(self.bitmap)
            self.prologue.add(
                functools.partial(lists.combine, self.bitmap, zeros.bitmap, out=either)
            )
            return lists.plan_awake_rows(either, self.shape, self.cell)

        return self._planned(("rows but", id(zeros)), plan)

    @property
    def rows(self) -> lists.AwakeRows:
        """Awake rows of every channel cell."""
        return self._planned(
            "rows",
            lambda: lists.plan_awake_rows(self.bitmap, self.shape, self.cell, exact=self.exact),
        )

    @property
    def cells(self) -> lists.AwakeCells:
        """Awake cells."""
        return self._planned(
            "cells", lambda: lists.plan_awake_cells(self.bitmap, self.shape, self.cell)
        )

    @property
    def channels(self) -> lists.AwakeChannels:
        """Awake channels of every image."""
        return self._planned(
            "channels", lambda: lists.plan_awake_channels(self.bitmap, self.shape, self.cell)
        )

    def blocks(self, width: int) -> lists.AwakeBlocks:
        """Blocks of ``width`` channels in which a channel is awake, of every image."""
        return self._planned(
            ("blocks", width),
            lambda: lists.plan_awake_blocks(self.bitmap, self.shape, self.cell, width),
        )

    def index(self, fill: str) -> Tensor:
        """The compact row that stands for each position."""
        rows = self.rows
        return self._planned(
            ("index", fill), lambda: tables.plan_row_index(self.bitmap, rows, self.shape[2:], fill)
        )

    def table(self, geometry: tables.Geometry, index: Tensor | None) -> Tensor:
        """Tap table of a convolution onto this map; ``index`` is that of its compact input."""
        rows = self.rows

        def plan() -> tuple[Tensor, list[kernels.Launch]]:
            table, launch = tables.plan_tap_table(rows, self.shape[0], geometry, index)
            return table, [launch]

        return self._planned((geometry, id(index)), plan)


# --- layers --------------------------------------------------------------------------------------


# Input channels that a K step can take, as deep as they come.
_STEPS = {torch.float32: (32, 16), torch.float16: (64, 32, 16), torch.bfloat16: (64, 32, 16)}
# Methods that work through a list, named as the list is.
_LISTS = ("cells", "rows", "channels")
# What leaves a channel of zeros a channel of zeros.
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


class _Conv(nn.Module):
    """What both forms of a layer hold."""

    def __init__(self, layer: DrowsyConv2d, post_activation: str) -> None:
        super().__init__()
        weight, bias = layer.parameters_in_effect()
        self._weight = kernels.pack_weight(weight.detach(), layer.groups)
        self.index, self.copied = layer.index, not self._weight.shares_memory(weight)
        self._bias = None if bias is None else bias.detach()
        self._spec = layer.spec
        self._shared: dict[str, Any] = {
            "post_activation": post_activation,
            "scale": layer.control.scales[layer.index],
        }


class _FullConv(_Conv):
    """A layer that writes the full map."""

    def __init__(
        self,
        layer: DrowsyConv2d,
        choice: Choice,
        drawn: _Map,
        awake: Awake | None,
        blocks: lists.AwakeBlocks | None,
        zeros: _Map | None,
        ready: torch.cuda.Event | None,
        post_activation: str,
    ) -> None:
        super().__init__(layer, post_activation)
        self._choice, self._drawn, self._awake, self._ready = choice, drawn, awake, ready
        self._blocks, self._zeros = blocks, zeros
        self._fill, self._table = _fill(layer), layer.table

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x, spec = padded(x, self._spec)
        _wait(self._ready)
        bitmap, cell = self._drawn.bitmap, self._drawn.cell
        residual = _channels_last(residual)
        y = convolve(
            self._choice,
            x,
            self._weight,
            self._bias,
            spec,
            bitmap=bitmap,
            cell=cell,
            awake=self._awake,
            x_blocks=self._blocks,
            residual=residual,
            **self._shared,
        )
        if self._zeros is not None:
            tables.fill_unread(
                y,
                bitmap,
                self._zeros.bitmap,
                self._bias,
                activation=spec.activation,
                residual=residual,
                **self._shared,
            )
        # Channel lists leave no sleeper to write, and neither does a masked convolution.
        elif self._fill != "zero" or isinstance(self._awake, (lists.AwakeRows, lists.AwakeCells)):
            kernels.fill_sleepers(
                y,
                bitmap,
                cell,
                self._fill,
                residual=residual,
                post_activation=self._shared["post_activation"],
                table=self._table,
            )
        return y


class _RowsConv(_Conv):
    """A layer that writes the awake rows of a shared map."""

    def __init__(
        self,
        layer: DrowsyConv2d,
        rows: lists.AwakeRows,
        table: Tensor | None,
        ready: torch.cuda.Event | None,
        post_activation: str,
    ) -> None:
        super().__init__(layer, post_activation)
        self._count, self._table, self._ready = rows.counts, table, ready

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() == 4:
            # The rows of a full map are its positions.
            x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        _wait(self._ready)
        return kernels.conv2d_rows(
            x,
            self._weight,
            self._bias,
            table=self._table,
            count=self._count,
            residual=residual,
            activation=self._spec.activation,
            precision=precision(x.device),
            **self._shared,
        )


class _Expand(nn.Module):
    """Fills in the full map of a compact activation, and adds a full residual."""

    def __init__(
        self,
        index: Tensor,
        shape: tuple[int, int, int, int],
        ready: torch.cuda.Event | None,
        post_activation: str = "none",
    ) -> None:
        super().__init__()
        self._index, self._shape, self._ready = index, shape, ready
        self._post_activation = post_activation

    def forward(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        _wait(self._ready)
        return tables.expand_rows(
            rows,
            self._index,
            self._shape,
            residual=_channels_last(residual),
            post_activation=self._post_activation,
        )


class _Join(nn.Module):
    """Concatenates compact activations, awake rows alone."""

    def __init__(self, rows: lists.AwakeRows, ready: torch.cuda.Event | None) -> None:
        super().__init__()
        self._count, self._ready = rows.counts, ready

    def forward(self, *parts: Tensor) -> Tensor:
        _wait(self._ready)
        return tables.join_rows(parts, self._count)


# --- rewriting the graph -------------------------------------------------------------------------


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
    home: _Map | None = None
    fill: str = ""
    zeros: _Map | None = None

    @property
    def form(self) -> tuple[_Map | None, str]:
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
    activation: str
    last: fx.Node


class Builder:
    """Builds a deployed graph for the structure that a network has now."""

    def __init__(self, net: DrowsyNet, example: Tensor, compact: bool) -> None:
        self._net, self._example, self._compact = net, example, compact
        self._modules: dict[str, Any] = dict(net.named_modules(remove_duplicate=False))
        copies: dict[fx.Node, fx.Node] = {}
        self._source = _without_overwriting(net.graph, self._modules, copies)
        self._shapes = {copies[node]: shape for node, shape in shapes(net, example).items()}
        self._prologue = _Prologue(example.device)
        self._graph = fx.Graph()
        self._values: dict[fx.Node, _Value] = {}
        self._maps: dict[object, _Map] = {}
        self.steps: list[Step] = []

    @property
    def copied(self) -> set[int]:
        """Indices of the layers whose weight the graph has a copy of."""
        steps = self._modules.values()
        return {step.index for step in steps if isinstance(step, _Conv) and step.copied}

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
        used = {node.target for node in self._graph.nodes if node.op in ("call_module", "get_attr")}
        root = {
            name: self._modules[name]
            if name in self._modules
            else operator.attrgetter(name)(self._net)
            for name in map(str, used)
        }
        return fx.GraphModule(root, self._graph, "Deployed")

    # --- nodes ----------------------------------------------------------------------------------

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self._modules[str(node.target)], DrowsyConv2d
        )

    def _emit_other(self, node: fx.Node) -> None:
        """Copy a node; on rows where all of its tensors have them and it treats rows alone."""
        values = [self._values[used] for used in node.all_input_nodes]
        alike = values and all(value.same_form(values[0]) for value in values)
        kind = pointwise(node, self._modules) if alike else None
        if kind:
            home = values[0].home
            if kind == "cat":
                assert home is not None
                parts = [self._values[used].rows for used in _operands(node)]
                made = self._call(node.name, _Join(home.rows, self._prologue.mark()), tuple(parts))
            else:
                made = self._graph.node_copy(node, lambda used: self._values[used].rows)
            self._values[node] = _Value(None, made, home, values[0].fill)
        else:
            for used in node.all_input_nodes:
                self._full(used)
            made = self._graph.node_copy(node, lambda used: self._values[used].full)
            self._values[node] = _Value(made, zeros=self._zeros_after(node))
        if node.op == "placeholder":
            self._call("draw", _Draw(self._prologue), ())

    def _emit_sum(self, s: _Sum) -> None:
        """A sum with its convolution, as one step where they commute."""
        layer, other = self._modules[str(s.conv.target)], self._values[s.other]
        home = self._homes.get(s.conv)
        keeps_zero = s.last is s.add or pointwise(s.last, self._modules)
        if home is not None and keeps_zero and other.rows and other.form == (home, _fill(layer)):
            value = self._emit_layer(s.conv, other.rows, s.activation)
        elif home is not None:
            value = self._emit_layer(s.conv)
            full = self._full(s.other)
            value = _Value(self._expand(s.conv, value, full, s.activation))
        elif _fill(layer) == "zero":
            value = self._emit_layer(s.conv, self._full(s.other), s.activation)
        else:
            self._values[s.conv] = self._emit_layer(s.conv)
            self._emit_other(s.add)
            if s.last is not s.add:
                self._emit_other(s.last)
            return
        self._values[s.last] = value

    def _emit_layer(
        self, node: fx.Node, residual: fx.Node | None = None, post_activation: str = "none"
    ) -> _Value:
        """A drowsy layer, compact where its map is shared."""
        home = self._homes.get(node)
        if home is None:
            return self._emit_full(node, residual, post_activation)
        layer = self._modules[str(node.target)]
        x = node.all_input_nodes[0]
        value = self._values[x]
        spec, height_width = layer.spec, self._shapes[x][2:]
        geometry = tables.Geometry(
            (height_width[0], height_width[1]),
            layer.kernel_size,
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
        module = _RowsConv(layer, home.rows, table, self._prologue.mark(), post_activation)
        rows = self._call(node.name, module, (data,) if residual is None else (data, residual))
        self._note(node, "compact", reads, "awake rows", residual, post_activation)
        return _Value(None, rows, home, _fill(layer))

    def _emit_full(self, node: fx.Node, residual: fx.Node | None, post_activation: str) -> _Value:
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
        module = _FullConv(layer, choice, drawn, awake, blocks, zeros, ready, post_activation)
        made = self._call(node.name, module, (data,) if residual is None else (data, residual))
        computes = f"awake {choice.method}" if awake is not None else "masked"
        self._note(node, "full", reads, computes, residual, post_activation)
        zero = residual is None and _fill(layer) == "zero"
        return _Value(made, zeros=drawn if zero else None)

    def _zeros_after(self, node: fx.Node) -> _Map | None:
        """The map whose sleepers are still 0 after a node that is no layer."""
        if len(node.all_input_nodes) != 1:
            return None
        zeros = self._values[node.all_input_nodes[0]].zeros
        if zeros is None or pointwise(node, self._modules) not in (None, "cat"):
            return zeros
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        return zeros if zeros.whole_channels and isinstance(module, _POOLS) else None

    def _same_position(self, layer: DrowsyConv2d, drawn: _Map, zeros: _Map) -> bool:
        """Whether a layer turns positions that are 0 in every channel into constants."""
        return (
            layer.reads_single_positions
            and layer.groups == 1
            and _fill(layer) == "zero"
            and drawn.one_cell
            and zeros.one_cell
        )

    def _blocks(
        self, layer: DrowsyConv2d, zeros: _Map | None, method: str
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
        post_activation: str = "none",
    ) -> fx.Node:
        """Fill in ``value``, which stands for ``node``."""
        assert value.rows is not None
        assert value.home is not None
        n, channels, height, width = self._shapes[node]
        index = value.home.index(value.fill)
        module = _Expand(
            index, (n, channels, height, width), self._prologue.mark(), post_activation
        )
        args = (value.rows,) if residual is None else (value.rows, residual)
        return self._call(f"{node.name}_full", module, args)

    # --- maps -----------------------------------------------------------------------------------

    def _shared_maps(self) -> dict[fx.Node, _Map]:
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
            if one_cell and plain and _fill(layer) in tables.INDEX_FILLS:
                sleep = replace(layer.sleep, grain=Grain("position"))
                key = (sleep, height, width, equal[str(node.target)])
                groups.setdefault(key, []).append(node)
        homes: dict[fx.Node, _Map] = {}
        for (sleep, height, width, _), nodes in groups.items():
            if len(nodes) > 1:
                layer = self._modules[str(nodes[0].target)]
                shape = (len(self._example), 1, height, width)
                homes |= dict.fromkeys(nodes, self._map(layer, sleep, shape))
        return homes

    def _map(self, layer: DrowsyConv2d, sleep: SleepSpec, shape: tuple[int, int, int, int]) -> _Map:
        """A map and its drawing, once for every layer, specification and shape."""
        key = (layer.index, sleep, shape)
        if key in self._maps:
            return self._maps[key]
        _, channels, height, width = shape
        cell, source, k = sleep.grain.cell(channels, height * width), sleep.source, sleep.k
        threshold, clock = layer.control.thresholds[layer.index], layer.control.clock
        given = map_options(sleep, shape, clock)
        if isinstance(source, Lfsr) and not source.seeding:
            self._prologue.add(
                functools.partial(_draw_phases, given["lfsr"][1], source, sleep.stream, clock)
            )
        bitmap, launch = kernels.plan_sleep_map(
            source.name,
            shape,
            cell=cell,
            k=k,
            stream=sleep.stream,
            threshold=threshold,
            clock=clock,
            **given,
        )
        self._prologue.add(launch)
        run = exact_run(sleep, shape)
        exact = None if run is None else (run, threshold)
        self._maps[key] = made = _Map(self._prologue, shape, cell, bitmap, exact)
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
        post_activation: str,
    ) -> None:
        fused = [] if residual is None else ["sum"]
        if post_activation != "none":
            fused.append(post_activation)
        self.steps.append(Step(str(node.target), output, reads, computes, " + ".join(fused)))


def _operands(node: fx.Node) -> list[fx.Node]:
    """What a concatenation joins, in order, repeats included."""
    joined = node.args[0] if node.args else node.kwargs["tensors"]
    assert isinstance(joined, Sequence)
    return [operand for operand in joined if isinstance(operand, fx.Node)]


def _draw_phases(phases: Tensor, source: Lfsr, stream: int, clock: Tensor) -> None:
    """Where the engines start depends on the seed."""
    phases.copy_(lfsr_phases(source, stream, clock[0]))


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
        name = None if after is None else activation_name(after, modules)
        if after is None or name is None or after.all_input_nodes != [add]:
            after, name = add, "none"
        found.append(_Sum(conv, add, other, name, after))
    return found


def _without_overwriting(
    graph: fx.Graph, modules: dict[str, Any], copies: dict[fx.Node, fx.Node]
) -> fx.Graph:
    """A copy of a graph in which no node overwrites its argument.

    What an in-place operation overwrote, later nodes read from its result. ``modules`` gains the
    out-of-place twins of modules, ``copies`` the copy of every node.
    """
    made = fx.Graph()
    made.output(made.graph_copy(graph, copies))  # type: ignore[arg-type]
    place = {node: i for i, node in enumerate(made.nodes)}
    for node in made.nodes:
        if not _made_pure(node, modules):
            continue
        overwritten = node.args[0]
        assert isinstance(overwritten, fx.Node)
        for user in list(overwritten.users):
            if place[user] > place[node]:
                user.replace_input_with(overwritten, node)
    return made


def _made_pure(node: fx.Node, modules: dict[str, Any]) -> bool:
    """Turn an in-place operation into its out-of-place twin; whether it was one."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not getattr(module, "inplace", False):
            return False
        twin = f"{node.target}_pure"
        modules[twin] = copy.copy(module)
        modules[twin].inplace = False
        node.target = twin
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    if asked_in_place(node):
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        else:
            at = list(inspect.signature(node.target).parameters).index("inplace")  # type: ignore[arg-type]
            node.args = (*node.args[:at], False, *node.args[at + 1 :])
        return True
    name = str(getattr(node.target, "__name__", node.target))
    if name.endswith("_") and not name.endswith("__"):
        if isinstance(node.target, str):
            node.target = name[:-1]
            return True
        homes = (torch, F)
        twins = [getattr(home, name[:-1]) for home in homes if hasattr(home, name[:-1])]
        if twins:
            node.target = twins[0]
        return bool(twins)
    if node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]
        return True
    return False


_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
