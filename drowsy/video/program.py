"""A network's graph, planned for frames of one size that are computed in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import gcd, prod
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from drowsy.graph.overwriting import check_overwritten, without_overwriting
from drowsy.graph.running import Executor, settled_graph, shapes
from drowsy.knob.costs import network_cost
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.neuron import NO_ACTIVATION, Activation
from drowsy.video import pointwise
from drowsy.video.areas import Box, Cell
from drowsy.video.listed import Listed
from drowsy.video.memory import FRAME, Blocks, Held, Memory
from drowsy.video.steps import Pointwise, Run, Step, Summed, Take, Whole, Windowed
from drowsy.video.windows import Convolution, Margin, Operation, Size, operation

Shape = tuple[int, ...]
_LEAST_CELLS, _MOST_CELLS = 4, 8


class _Twins(Executor):
    """Runs nodes of a graph in which modules that overwrite were replaced by their twins."""

    def __init__(self, net: DrowsyNet, modules: Mapping[str, Any]) -> None:
        super().__init__(net)
        self.modules = modules

    def compute(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            called = module.awake if isinstance(module, DrowsyConv2d) else module
            args: Any = fx.map_arg(node.args, values.__getitem__)
            kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
            return called(*args, **kwargs)
        return super().compute(node, values)


class Program:
    """What runs a network in parts, on frames of one size.

    Attributes:
        example: a frame ``[1, C, H, W]`` of that size, dtype and device, without values.
        bytes_per_slot: of memory that each camera takes.
        bytes_shared: that all of them take together, for weights in an order of their own.
        depth: how many steps on the way to the output read beyond the positions that they put out.
        multiplies: of the network for one frame, and those of it that are computed in parts.
        whole: names of what is computed whole every frame, as ``(node, multiplications)``.
        modules: by the names that nodes call them by.
        shapes: of what nodes put out.
        executor: what runs nodes one by one.
        operations: of the convolutions and pools that are computed in parts.
    """

    def __init__(self, net: DrowsyNet, frames: Tensor, by_cells: bool = False) -> None:
        """Plan for frames like ``[N, C, H, W]``; of which the first is run, if none was yet.

        Args:
            net: converted.
            frames: at least one.
            by_cells: whether single cells of a grid will be awake, wherever they lie.

        Raises:
            ValueError: a network without a graph, or with a graph that cannot be run apart.
        """
        image = frames[:1]
        self.example = image.new_empty(image.shape)
        graph = settled_graph(net, image, "a stream")
        check_overwritten(net, image)
        self.modules: dict[str, Any] = net.parts
        copies: dict[fx.Node, fx.Node] = {}
        self._graph = without_overwriting(graph, self.modules, copies)
        known = shapes(net, image)
        self.shapes: dict[fx.Node, Shape] = {
            copies[node]: tuple(shape) for node, shape in known.items()
        }
        self.executor = _Twins(net, self.modules)
        self._inputs = {
            copies[node]: value
            for node, value in self.executor.start(None).items()
            if value is not None
        }
        self._drop_identities()
        self.operations: dict[fx.Node, Operation] = {}
        self._maps: set[fx.Node] = set()
        self._pointwise: set[fx.Node] = set()
        self._find_maps()
        self._kept = {node for node in self._maps if self._must_be_kept(node)}
        self.grid = self._common_grid() if by_cells else None
        self.steps: list[Step | Whole] = []
        self._plan()
        self._margins = {node: self._margin(node) for node in self._kept}
        self._count(net)
        self.depth = self._depths()

    # --- what nodes are -------------------------------------------------------------------------

    def _drop_identities(self) -> None:
        for node in list(self._graph.nodes):
            if pointwise.is_identity(node, self.modules):
                node.replace_all_uses_with(node.all_input_nodes[0])
                self._graph.erase_node(node)

    def _find_maps(self) -> None:
        """Which nodes are maps, of which any part can be computed alone, and by what."""
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if node in self.shapes and not node.args:
                    self._maps.add(node)
            elif node.op != "output" and node in self.shapes and len(self.shapes[node]) == 4:
                self._classify(node)

    def _classify(self, node: fx.Node) -> None:
        shape, used = self.shapes[node], node.all_input_nodes
        maps = [each for each in used if each in self._maps]
        if not maps or shape[0] != 1 or shape[2:] == (1, 1):
            return
        if len(used) == 1:
            found = operation(node, self.modules, self._size(used[0]), self._size(node))
            if found is not None:
                self.operations[node] = found
                self._maps.add(node)
                return
        values = [each for each in used if each not in self._maps]
        spread = all(prod(self.shapes[each][-2:]) == 1 for each in values if each in self.shapes)
        if spread and pointwise.works_pointwise(node, self.modules, self.shapes):
            self._pointwise.add(node)
            self._maps.add(node)
        elif self._shows_picture(shape):
            # Computed whole, and a map again for those who read it.
            self._maps.add(node)

    def _size(self, node: fx.Node) -> tuple[int, int]:
        """``(h, w)`` of a map."""
        return self.shapes[node][2], self.shapes[node][3]

    def _shows_picture(self, shape: Shape) -> bool:
        """Whether a map has the picture's proportions, to a row."""
        height, width = self.example.shape[2:]
        return abs(shape[2] * width - shape[3] * height) <= max(height, width)

    def _in_parts(self, node: fx.Node) -> bool:
        return node in self.operations or node in self._pointwise

    def _common_grid(self) -> Cell | None:
        """A grid of 4 to 8 cells down and across that divides every map, if there is one."""
        sizes = [self._size(node) for node in self._maps]
        grid = []
        for lengths in zip(*sizes, strict=True):
            common = gcd(*lengths)
            grid.append(max(n for n in range(1, _MOST_CELLS + 1) if common % n == 0))
        return (grid[0], grid[1]) if min(grid) >= _LEAST_CELLS else None

    def _must_be_kept(self, node: fx.Node) -> bool:
        """Whether somebody reads a map beyond the part that is awake."""
        return not self._in_parts(node) or not all(map(self._reads_own, node.users))

    def _reads_own(self, node: fx.Node) -> bool:
        """Whether a node reads maps at the very positions that it puts out."""
        found = self.operations.get(node)
        return node in self._pointwise or (found is not None and found.window.reads_own_position)

    def _margin(self, node: fx.Node) -> Margin:
        """Rows around a kept map: of the one value that most of its readers want."""
        margins = [
            step.operation.window.margin(self.grid is not None)
            for step in self.steps
            if isinstance(step, Windowed) and step.read is node and not step.operation.pads_whole
        ]
        wanted = [margin for margin in margins if margin]
        values = [margin.value for margin in wanted]
        value = max(set(values), key=values.count, default=0.0)
        fitting = [margin for margin in wanted if margin.value == value]
        sides = ("top", "bottom", "left", "right")
        most = {s: max((getattr(each, s) for each in fitting), default=0) for s in sides}
        return Margin(**most, value=value)

    # --- the plan -------------------------------------------------------------------------------

    def _plan(self) -> None:
        sums = self._find_sums()
        taken_in = {node for step in sums.values() for node in step.within}
        for node in self._graph.nodes:
            if node in sums:
                self.steps.append(sums[node])
            elif node not in taken_in:
                self.steps.append(self._step(node))
        for step in self.steps:
            if isinstance(step, Take):
                step.readers = self._readers(step.node)

    def _step(self, node: fx.Node) -> Step | Whole:
        used = set(node.all_input_nodes)
        maps = used & self._maps
        if node in self._maps and (node.op == "placeholder" or self._in_parts(node)):
            size = self._size(node)
            if node.op == "placeholder":
                return Take(node, size)
            if node in self.operations:
                return Windowed(node, size, self.operations[node])
            return Pointwise(
                *(node, size, self.modules, pointwise.activation(node, self.modules, self.shapes)),
                *(pointwise.is_concatenation(node, self.modules), maps),
                {each for each in maps if self._is_spare(each, node)},
            )
        place = self._size(node) if node in self._maps else None
        return Whole(node, self.executor, maps, place)

    def _is_spare(self, node: fx.Node, reader: fx.Node) -> bool:
        """Whether a reader may write over what it reads."""
        alone = len(node.users) == 1 and self.shapes[node] == self.shapes[reader]
        return alone and node not in self._kept

    def _readers(self, node: fx.Node) -> list[Windowed] | None:
        """The steps that read parts of a map; None where it is read whole."""
        found = [s for s in self.steps if isinstance(s, Windowed) and s.read is node]
        others = [user for user in node.users if not self._in_parts(user)]
        whole = others or any(step.operation.pads_whole for step in found)
        return None if whole else found

    def _find_sums(self) -> dict[fx.Node, Summed]:
        """Sums that a convolution is computed with, by the last node of each."""
        sums: dict[fx.Node, Summed] = {}
        for node in self._graph.nodes:
            if node not in self._pointwise or not pointwise.is_sum(node):
                continue
            for conv, other in (node.args, node.args[::-1]):
                taken = self._taken_in(conv, other, node)
                if taken is not None:
                    last, then = self._activated(node)
                    size = self._size(node)
                    within = {conv, node} - {last}
                    sums[last] = Summed(last, size, taken, conv, other, then, within)
                    break
        return sums

    def _taken_in(self, conv: fx.Node, other: fx.Node, node: fx.Node) -> Convolution | None:
        """The convolution that a sum may be computed with, if this is one."""
        found = self.operations.get(conv)
        alike = self.shapes.get(other) == self.shapes[node] and other in self._maps
        alone = conv is not other and conv not in self._kept and len(conv.users) == 1
        if not isinstance(found, Convolution) or not alike or not alone:
            return None
        return found if self.shapes[conv] == self.shapes[node] else None

    def _activated(self, node: fx.Node) -> tuple[fx.Node, Activation]:
        """The activation that alone reads a sum; the sum itself for none."""
        users = list(node.users)
        if len(users) == 1 and node not in self._kept and users[0] in self._pointwise:
            activation = pointwise.activation(users[0], self.modules, self.shapes)
            if activation is not None:
                return users[0], activation
        return node, NO_ACTIVATION

    def behind_maps(self) -> list[nn.Module]:
        """Modules that run behind all maps: nothing of what they put out is remembered."""
        before: set[fx.Node] = set()
        for node in reversed(self._graph.nodes):
            if node in self._maps or not before.isdisjoint(node.users):
                before.add(node)
        calls = [node for node in self._graph.nodes if node.op == "call_module"]
        others = {id(self.modules[str(node.target)]) for node in calls if node in before}
        behind = [self.modules[str(node.target)] for node in calls if node not in before]
        return [module for module in behind if id(module) not in others]

    # --- what it costs --------------------------------------------------------------------------

    def _count(self, net: DrowsyNet) -> None:
        size = self.example.element_size()
        self.bytes_per_slot = sum(
            self.shapes[node][1]
            * (margin.top + self.shapes[node][2] + margin.bottom)
            * (margin.left + self.shapes[node][3] + margin.right)
            * size
            for node, margin in self._margins.items()
        )
        self.bytes_shared = sum(each.bytes for each in self.operations.values())
        with net.control.kept():
            cost = network_cost(net, self.example.shape[1:])
        # Of a position, by the sizes of maps: they are few.
        self._parts: dict[Size, int] = {}
        for each in self.operations.values():
            of_size = each.window.output
            self._parts[of_size] = self._parts.get(of_size, 0) + each.multiplies
        self.multiplies = cost.multiplies
        self.multiplies_in_parts = sum(each * prod(of) for of, each in self._parts.items())
        self.whole = [step.node.name for step in self.steps if isinstance(step, Whole)]

    def work(self, boxes: Sequence[Box]) -> float:
        """Share of the network's multiplications that a frame with these boxes awake takes."""
        done = self.multiplies - self.multiplies_in_parts
        for size, each in self._parts.items():
            for box in boxes:
                top, bottom, left, right = box.at(size)
                done += each * (bottom - top) * (right - left)
        return done / self.multiplies

    def _depths(self) -> int:
        depth: dict[fx.Node, int] = {}
        last = 0
        for node in self._graph.nodes:
            before = [depth[each] for each in node.all_input_nodes]
            last = max(before, default=0)
            if node in self.operations and not self._reads_own(node):
                last += 1
            elif self._in_parts(node):
                # A value for all positions reaches each of them when it is awake next.
                values = [
                    depth[each] + 1 for each in node.all_input_nodes if each not in self._maps
                ]
                last = max([last, 1, *values])
            depth[node] = last
        return last

    # --- running --------------------------------------------------------------------------------

    @property
    def input(self) -> fx.Node:
        """Whose map the frame is."""
        return next(step.node for step in self.steps if isinstance(step, Take))

    @property
    def map_shapes(self) -> dict[fx.Node, Shape]:
        """``[1, C, h, w]`` of all maps that steps put out."""
        nodes = [step.node for step in self.steps]
        return {node: self.shapes[node] for node in nodes if node in self._maps}

    def memory(self) -> Memory:
        """Memory of one slot; not taken yet."""
        return Memory(self._margins, self.shapes)

    def bind(self, memory: Memory, boxes: Sequence[Box]) -> Frame:
        """What computes a frame of a slot with these boxes awake."""
        if self.grid is None or any(box.grid != self.grid for box in boxes):
            return Frame(self, memory, boxes)
        cells = [cell for box in boxes for cell in box.cells()]
        return Frame(self, memory, Blocks(cells, self.grid, self.example.device))

    def start(self, memory: Memory | Listed) -> None:
        """Put the values in place that the inputs beside the frame have."""
        memory.values.update(self._inputs)


class Frame:
    """A program bound to a slot's memory and to what is awake: calls that compute one frame."""

    def __init__(self, program: Program, memory: Memory, awake: Sequence[Box] | Blocks) -> None:
        self._memory = memory
        self._held: list[Held] = [{}] if isinstance(awake, Blocks) else [{} for _ in awake]
        self._calls: list[Run] = []
        self._passing: list[fx.Node] = []
        for step in program.steps:
            if isinstance(step, Whole):
                self._bind_whole(step, awake)
            elif isinstance(awake, Blocks):
                self._calls.append(step.bind_blocks(memory, awake, self._held[0]))
            else:
                calls = (step.bind(memory, *each) for each in zip(awake, self._held, strict=True))
                self._calls += (call for call in calls if call is not None)
        self._output = program.steps[-1].node
        self._kept = [dict(held) for held in self._held]

    def _bind_whole(self, step: Whole, awake: Sequence[Box] | Blocks) -> None:
        node, memory = step.node, self._memory
        self._calls.append(step.bind(memory))
        if node in memory.kept:
            if isinstance(awake, Blocks):
                self._calls.append(partial(memory.hold, node, awake, self._held[0]))
                return
            for box, held in zip(awake, self._held, strict=True):
                held[node] = memory.part(node, box.at(step.size))
        elif node.op != "placeholder":
            self._passing.append(node)

    def run(self, frame: Tensor) -> Any:
        """What the network puts out for a frame ``[1, C, H, W]``; tensors of their own memory."""
        self._memory.values[FRAME] = frame
        for call in self._calls:
            call()
        output = self._memory.values[self._output]
        self._forget()
        return tree_map_only(Tensor, self._own, output)

    def _own(self, value: Tensor) -> Tensor:
        """A tensor of the output, in other memory than the slot's."""
        place = value.untyped_storage().data_ptr()
        return value.clone() if place in self._memory.places else value

    def _forget(self) -> None:
        """Let go of what lives for a frame."""
        for held, kept in zip(self._held, self._kept, strict=True):
            if len(held) > len(kept):
                held.clear()
                held.update(kept)
        for node in self._passing:
            self._memory.values.pop(node, None)
        self._memory.values.pop(FRAME, None)
