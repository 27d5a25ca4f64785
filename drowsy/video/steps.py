"""Steps of a planned network: what each computes for one box of one slot, as a function to call.

A *map* is a tensor ``[1, C, h, w]`` of which any part can be computed alone. It is kept from frame
to frame where somebody reads it beyond the part that is awake; where all read the very positions
that they put out, its awake part is enough, and lives for a frame. Everything else is computed
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from drowsy.graph.running import Executor
from drowsy.neuron import Activation
from drowsy.video.areas import Box
from drowsy.video.listed import Listed
from drowsy.video.memory import FRAME, Blocks, Held, Memory, positions_of
from drowsy.video.pointwise import calculation, is_sum
from drowsy.video.windows import Convolution, Margin, Operation, Rectangle, Size

if TYPE_CHECKING:
    from drowsy.backends.triton_areas import Positions

Run = Callable[[], None]
Place = Rectangle | Blocks
"""Where a step is computed: a part of its map, or cells of it."""


class Step:
    """One node, or a few that are computed as one.

    Args:
        node: whose value it makes.
        size: ``(h, w)`` of the node's map.
    """

    def __init__(self, node: fx.Node, size: Size) -> None:
        self.node, self.size = node, size

    def bind(self, memory: Memory, box: Box, held: Held) -> Run | None:
        """What computes the step for one box of a slot; None where the box is empty here."""
        place = box.at(self.size)
        if place[0] == place[1] or place[2] == place[3]:
            return None
        dest = None
        if self.node in memory.kept:
            dest = held[self.node] = memory.part(self.node, place)
        return self._bind(memory, place, held, dest)

    def bind_blocks(self, memory: Memory, blocks: Blocks, held: Held) -> Run:
        """The same for cells, whose parts are held as a batch."""
        run, node = self._bind(memory, blocks, held, None), self.node
        if node not in memory.kept:
            return run
        kept = positions_of(memory.kept[node])
        places = memory.own_places(node, blocks).flatten()

        def run_and_put() -> None:
            run()
            kept.index_copy_(0, places, positions_of(held[node]))

        return run_and_put

    def bind_listed(self, listed: Listed) -> Run | None:
        """What computes the step at the awake positions of all slots; None for nothing to do."""
        raise NotImplementedError

    def _bind(self, memory: Memory, place: Place, held: Held, dest: Tensor | None) -> Run:
        raise NotImplementedError


class Take(Step):
    """The frame itself, of which no more is copied than the box and its readers need."""

    def __init__(self, node: fx.Node, size: Size) -> None:
        super().__init__(node, size)
        # Steps that read parts of the frame; None: it is read whole.
        self.readers: list[Windowed] | None = []

    def bind(self, memory: Memory, box: Box, held: Held) -> Run | None:
        top, bottom, left, right = box.at(self.size)
        for reader in self.readers or ():
            out = box.at(reader.size)
            if out[0] == out[1] or out[2] == out[3]:
                continue
            reads = reader.operation.window.reads(out)
            top, bottom = min(top, reads[0]), max(bottom, reads[1])
            left, right = min(left, reads[2]), max(right, reads[3])
        if self.readers is None:
            top, bottom, left, right = 0, self.size[0], 0, self.size[1]
        top, bottom = max(top, 0), min(bottom, self.size[0])
        left, right = max(left, 0), min(right, self.size[1])
        dest = memory.part(self.node, (top, bottom, left, right))
        held[self.node] = memory.part(self.node, box.at(self.size))
        values = memory.values

        def run() -> None:
            dest.copy_(values[FRAME][:, :, top:bottom, left:right])

        return run

    def bind_blocks(self, memory: Memory, blocks: Blocks, held: Held) -> Run:
        node, values = self.node, memory.values

        def run() -> None:
            values[node].copy_(values[FRAME])
            memory.hold(node, blocks, held)

        return run

    def bind_listed(self, listed: Listed) -> Run | None:
        # Whole frames are shown.
        return None


class Windowed(Step):
    """A convolution or pool."""

    def __init__(self, node: fx.Node, size: Size, operation: Operation) -> None:
        super().__init__(node, size)
        self.operation = operation
        (self.read,) = node.all_input_nodes

    def _reader(self, memory: Memory, place: Place, held: Held) -> tuple[Callable[[], Tensor], int]:
        """What gives the part of the input that is read, and the padding left to add across."""
        operation, window, node = self.operation, self.operation.window, self.read
        if window.reads_own_position:
            return (lambda: held[node]), 0
        if isinstance(place, Blocks):
            return self._gatherer(memory, place), 0
        kept, margin = memory.kept[node], memory.margin(node)
        if operation.pads_whole:
            inner = memory.values[node]
            return (lambda: window.cut(operation.padded(inner), Margin(), place).read()), 0
        cut = window.cut(kept, margin, place)
        if any(cut.pad):
            return cut.read, cut.across
        part = cut.part
        return (lambda: part), cut.across

    def _gatherer(self, memory: Memory, blocks: Blocks) -> Callable[[], Tensor]:
        """What gives the windows of cells, as a batch; those of one position side by side."""
        operation, window, node = self.operation, self.operation.window, self.read
        kept, margin = memory.kept[node], memory.margin(node)
        first, cell = window.reads((0, 1, 0, 1))[::2], blocks.cell(self.size)
        extent = window.extent(cell)
        step = cell[0] * window.stride[0], cell[1] * window.stride[1]
        single = self._single(blocks)
        own = operation.pads_whole or (bool(window.margin(True)) and margin.value != window.value)
        if own:
            margin = window.margin(True)
        width = window.input[1] + margin.left + margin.right
        begin = margin.top + first[0], margin.left + first[1]
        places = blocks.places(width, begin, step, extent)
        index = (places.transpose(0, 1) if single else places).flatten()
        rows = None if own else positions_of(kept)

        def read() -> Tensor:
            source = rows
            if source is None:
                inner = operation.padded(memory.values[node])
                sides = (margin.left, margin.right, margin.top, margin.bottom)
                source = positions_of(F.pad(inner, sides, value=window.value))
            found = source.index_select(0, index)
            if single:
                return found.view(1, extent[0], -1, found.shape[1]).permute(0, 3, 1, 2)
            return found.view(*places.shape, -1).permute(0, 3, 1, 2)

        return read

    def bind_listed(self, listed: Listed) -> Run | None:
        x, out = listed.maps[self.read], listed.maps[self.node]
        return self.operation.listed(x, listed.positions(self.node), out)

    def _single(self, blocks: Blocks) -> bool:
        """Whether cells of one position lie side by side, which a convolution is faster with."""
        window = self.operation.window
        one = blocks.cell(self.size) == (1, 1) and not window.reads_own_position
        return one and isinstance(self.operation, Convolution)

    def _run(self, place: Place) -> Callable[[Tensor, int], Tensor]:
        """What computes the part from what is read."""
        operation = self.operation
        if not isinstance(place, Blocks) or not self._single(place):
            return operation.run
        assert isinstance(operation, Convolution)
        run_single = operation.run_single
        return lambda x, _: run_single(x).permute(3, 1, 2, 0)

    def _bind(self, memory: Memory, place: Place, held: Held, dest: Tensor | None) -> Run:
        node, operation = self.node, self.operation
        read, across = self._reader(memory, place, held)
        compute = self._run(place)
        if dest is None:

            def run() -> None:
                held[node] = compute(read(), across)
        else:

            def run() -> None:
                operation.into(dest, read(), across)

        return run


class Summed(Windowed):
    """A convolution, to which another map is added, and an activation: computed in one pass.

    Args:
        node: of the last of them.
        convolution: its node, of which nothing else reads.
        other: node of the map that is added.
        then: the activation.
        within: nodes beside the last that are computed with it.
    """

    def __init__(
        self,
        node: fx.Node,
        size: Size,
        operation: Convolution,
        convolution: fx.Node,
        other: fx.Node,
        then: Activation,
        within: set[fx.Node],
    ) -> None:
        Step.__init__(self, node, size)
        self.operation = operation
        (self.read,) = convolution.all_input_nodes
        self._other, self._then, self.within = other, then, within

    def bind_listed(self, listed: Listed) -> Run | None:
        x, other, out = (listed.maps[each] for each in (self.read, self._other, self.node))
        return self.operation.listed(x, listed.positions(self.node), out, other, self._then)

    def _bind(self, memory: Memory, place: Place, held: Held, dest: Tensor | None) -> Run:
        node, operation, other, then = self.node, self.operation, self._other, self._then
        assert isinstance(operation, Convolution)
        read, across = self._reader(memory, place, held)
        compute = self._run(place)

        def run() -> None:
            x, added = read(), held[other]
            if dest is not None and operation.into_sum(dest, added, x, across, then):
                return
            y = then.apply(compute(x, across).add_(added))
            if dest is None:
                held[node] = y
            else:
                dest.copy_(y)

        return run


class Pointwise(Step):
    """An operation on every position alone.

    Args:
        activation: which one it is, if one.
        concatenates: whether it concatenates channels.
        maps: the maps among what it reads.
        spare: what it reads that nobody reads after it, and that lives for a frame.
    """

    def __init__(
        self,
        node: fx.Node,
        size: Size,
        modules: Mapping[str, Any],
        activation: Activation | None,
        concatenates: bool,
        maps: set[fx.Node],
        spare: set[fx.Node],
    ) -> None:
        super().__init__(node, size)
        self._function, self._takes_out = calculation(node, modules)
        self._activation, self._concatenates = activation, concatenates
        self._maps, self._spare = maps, spare

    def _bind(self, memory: Memory, place: Place, held: Held, dest: Tensor | None) -> Run:
        if self._concatenates:
            return self._join(held, dest)
        if self._activation is not None:
            return self._activate(self._activation, held, dest)
        return self._calculate(memory, held, dest)

    def bind_listed(self, listed: Listed) -> Run | None:
        from drowsy.backends import triton_areas as areas

        node, maps = self.node, listed.maps
        awake, out, read = listed.positions(node), maps[node], list(node.all_input_nodes)
        if self._concatenates:
            parts = [maps[part] for part in node.args[0]]  # type: ignore[index, union-attr]
            ends = list(accumulate(part.shape[1] for part in parts))
            calls = [
                partial(areas.place, part, awake, out, first=end - part.shape[1])
                for part, end in zip(parts, ends, strict=True)
            ]
            return partial(_all, calls)
        if self._activation is not None:
            return partial(areas.place, maps[read[0]], awake, out, then=self._activation)
        if is_sum(node) and all(each in maps and maps[each].shape == out.shape for each in read):
            first, second = node.args
            return partial(areas.place, maps[first], awake, out, other=maps[second])  # type: ignore[index]
        return self._place_calculated(listed, awake, out)

    def _place_calculated(self, listed: Listed, awake: Positions, out: Tensor) -> Run:
        """By torch for the whole map, of which the awake positions are kept."""
        from drowsy.backends import triton_areas as areas

        function, values = self._function, listed.values
        args, kwargs = self.node.args, self.node.kwargs

        def run() -> None:
            y = function(
                *fx.map_arg(args, values.__getitem__), **fx.map_arg(kwargs, values.__getitem__)
            )
            whole = y.to(out.dtype).expand(out.shape)
            areas.place(whole.contiguous(memory_format=torch.channels_last), awake, out)

        return run

    def _join(self, held: Held, dest: Tensor | None) -> Run:
        node, parts = self.node, list(self.node.args[0])  # type: ignore[arg-type]

        def run() -> None:
            tensors = [held[part] for part in parts]  # type: ignore[index]
            if dest is None:
                held[node] = torch.cat(tensors, 1)
                return
            first = 0
            for tensor in tensors:
                dest.narrow(1, first, tensor.shape[1]).copy_(tensor)
                first += tensor.shape[1]

        return run

    def _activate(self, activation: Activation, held: Held, dest: Tensor | None) -> Run:
        node = self.node
        (read,) = node.all_input_nodes
        spare = read in self._spare

        def run() -> None:
            x = held[read]
            if dest is None:
                held[node] = activation.apply(x if spare else x.clone())
            elif activation.name == "relu":
                torch.clamp_min(x, 0, out=dest)
            else:
                activation.apply(dest.copy_(x))

        return run

    def _calculate(self, memory: Memory, held: Held, dest: Tensor | None) -> Run:
        node, function, values, maps = self.node, self._function, memory.values, self._maps
        args, kwargs = node.args, node.kwargs

        def value(used: fx.Node) -> Any:
            return held[used] if used in maps else values[used]

        def run() -> None:
            y = function(*fx.map_arg(args, value), **fx.map_arg(kwargs, value))
            if dest is None:
                held[node] = y
            else:
                dest.copy_(y)

        if not self._takes_out:
            return run
        first, second = args
        into = first if first in self._spare else second if second in self._spare else None

        def run_out() -> None:
            a = value(first)  # type: ignore[arg-type]
            b = value(second) if isinstance(second, fx.Node) else second
            out = held.get(into) if dest is None else dest  # type: ignore[arg-type]
            y = function(a, b, out=out)
            if dest is None:
                held[node] = y

        return run_out


class Whole:
    """A node that is computed from whole values, of maps as they are kept, once a frame.

    Args:
        node: any.
        maps: the maps among what it reads.
        size: ``(h, w)`` of its result, if others read it as a map.
    """

    def __init__(
        self, node: fx.Node, executor: Executor, maps: set[fx.Node], size: Size | None
    ) -> None:
        self.node, self._executor, self._maps = node, executor, maps
        self._size = size

    @property
    def size(self) -> Size:
        assert self._size is not None, "it is a map"
        return self._size

    def bind_listed(self, listed: Listed) -> Run | None:
        """What computes the node for all slots."""
        return self.bind(listed)

    def bind(self, memory: Memory | Listed) -> Run:
        """What computes the node for a slot."""
        node, executor, maps, values = self.node, self._executor, self._maps, memory.values
        read = node.all_input_nodes

        def run() -> None:
            given = {
                # As the network's own code has them: it may look at them in that order.
                used: values[used].contiguous() if used in maps else values[used]
                for used in read
            }
            if node.op == "placeholder":
                given[node] = values[node]
            result = executor.compute(node, given)
            if self._size is not None:
                values[node].copy_(result)
            else:
                values[node] = result

        return run


def _all(calls: Iterable[Run]) -> None:
    for call in calls:
        call()
