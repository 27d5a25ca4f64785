"""A program on the GPU: all slots together, at awake positions, as one CUDA graph.

Every map of every slot is kept in full. What is awake is data: boxes are told to the device before
a frame, where lists of positions are made of them, and each step works through the list of its
map's size and writes there alone. So one captured graph serves all phases, blocks and rates, dense
frames too, and slots that have no frame this time, in which nothing is awake.

What is computed whole is computed for all slots at once, in torch, as part of the graph. It must
treat images apart, which is tried (``refusal``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from drowsy.deployment.capturing import captured
from drowsy.video.areas import Box
from drowsy.video.listed import Listed, listed_bytes
from drowsy.video.program import Program
from drowsy.video.steps import Pointwise, Run, Whole
from drowsy.video.windows import Convolution

# Two images' values together and one by one: what another algorithm may make of the same numbers.
_ALIKE = 0.05


class Captured:
    """A program for all slots of a stream.

    Args:
        program: of which ``refusal`` says nothing.
        slots: how many.
        graph: whether to capture a CUDA graph; by default on CUDA.

    Attributes:
        captures: how often one was captured.
    """

    def __init__(self, program: Program, slots: int, graph: bool | None = None) -> None:
        self._program, self._slots = program, slots
        self._graph = program.example.is_cuda if graph is None else graph
        self._listed: Listed | None = None
        self._calls: list[Run] = []
        self._replay: Callable[[], None] | None = None
        self._output: Any = None
        self._addresses: list[int] | None = None
        self.captures = 0

    @property
    def bytes(self) -> int:
        """Of memory that all slots take: maps, lists, and weights in the order of the kernels."""
        from drowsy.backends.triton_areas import packed_bytes

        program = self._program
        weights = sum(
            packed_bytes(each.weight, each.groups)
            for each in program.operations.values()
            if isinstance(each, Convolution)
        )
        return weights + listed_bytes(program.map_shapes, self._slots, program.example)

    def run(self, frames: Tensor, slots: Sequence[int], boxes: Sequence[Sequence[Box]]) -> Any:
        """What the network puts out for frames ``[N, C, H, W]``, with these boxes awake in each.

        Args:
            frames: one for each of ``slots``.
            slots: whose they are.
            boxes: what is awake in them.
        """
        listed = self._start()
        self._show(listed, frames, slots)
        listed.tell(dict(zip(slots, boxes, strict=True)))
        if self._replay is None:
            self._output = self._compute()
        else:
            self._replay()
        return tree_map_only(Tensor, lambda value: self._of(value, slots), self._output)

    def _show(self, listed: Listed, frames: Tensor, slots: Sequence[int]) -> None:
        shown = listed.maps[self._program.input]
        if list(slots) == list(range(self._slots)):
            shown.copy_(frames)
            return
        for slot, frame in zip(slots, frames, strict=True):
            shown[slot].copy_(frame)

    def _of(self, value: Tensor, slots: Sequence[int]) -> Tensor:
        """The slots' part of an output, in memory of its own."""
        if list(slots) == list(range(self._slots)):
            return value.clone()
        return torch.cat([value[slot : slot + 1] for slot in slots])

    def _start(self) -> Listed:
        """The memory; bound and captured, if it was not yet or what is read lies elsewhere now."""
        program = self._program
        if self._listed is None:
            listed = Listed(program.map_shapes, self._slots, program.example)
            program.start(listed)
            calls = [step.bind_listed(listed) for step in program.steps]
            self._listed, self._calls = listed, [call for call in calls if call is not None]
        if self._graph and self._addresses != (now := self._addresses_now()):
            # With nobody awake what is remembered stays as it is.
            self._listed.tell({})
            self._replay, self._output = captured(self._compute, program.example.device)
            self._addresses = now
            self.captures += 1
        return self._listed

    def _compute(self) -> Any:
        """A frame: lists, and all steps."""
        listed = self._listed
        assert listed is not None
        lasting = set(listed.values)
        listed.awake.list()
        for call in self._calls:
            call()
        output = listed.values[self._program.steps[-1].node]
        for node in listed.values.keys() - lasting:
            del listed.values[node]
        return output

    def _addresses_now(self) -> list[int]:
        """Where the tensors lie that torch's part of the graph reads: it knows addresses alone."""
        modules = self._program.modules
        found: list[int] = []
        for step in self._program.steps:
            node = step.node
            if isinstance(step, (Whole, Pointwise)) and node.op == "call_module":
                module: nn.Module = modules[str(node.target)]
                found += (t.data_ptr() for t in (*module.parameters(), *module.buffers()))
            elif node.op == "get_attr":
                value = self._program.executor.compute(node, {})
                found += (t.data_ptr() for t in tree_leaves(value) if isinstance(t, Tensor))
        return found


def refusal(program: Program, slots: int) -> str:
    """Why a program cannot run so; empty where it can.

    The network runs on random images, two together and one by one.
    """
    from drowsy.backends.triton_areas import DTYPES, MAX_ELEMENTS, MAX_POSITIONS, runs_on

    example = program.example
    if not runs_on(example.device):
        return f"frames on {example.device}, allowed: CUDA, or Triton's interpreter"
    if example.dtype not in DTYPES:
        return f"frames of {example.dtype}, allowed: {', '.join(map(str, DTYPES))}"
    for _, c, h, w in program.map_shapes.values():
        if c * h * w > MAX_ELEMENTS or slots * h * w > MAX_POSITIONS:
            return f"a map of {slots} x {c} x {h} x {w}, allowed: below 2**31 elements an image"
    return _mixing(program)


def _mixing(program: Program) -> str:
    """Where images do not stay apart; empty where they do."""
    example, run = program.example, program.executor.run
    generator = torch.Generator(example.device).manual_seed(0)
    size = (2, *example.shape[1:])
    pictures = torch.rand(size, generator=generator, device=example.device).to(example.dtype)
    with torch.inference_mode():
        for (node, both), (_, one), (_, other) in zip(
            run(pictures), run(pictures[:1].clone()), run(pictures[1:].clone()), strict=True
        ):
            leaves = zip(*map(tree_leaves, (both, one, other)), strict=True)
            if not all(_apart(a, b, c, example.dtype) for a, b, c in leaves):
                return f"{node.name} mixes images, or has another dtype than the frames"
    return ""


def _apart(both: Any, one: Any, other: Any, dtype: torch.dtype) -> bool:
    """Whether a value of two images is that of each, or the same whatever the images are."""
    if not isinstance(both, Tensor):
        return True  # a size, or a constant: no tensor's number, which streams refuse
    if both.dim() == 4 and both.is_floating_point() and both.dtype != dtype:
        return False
    if both.shape == one.shape == other.shape:
        return torch.equal(one, other)
    joined = torch.cat([one, other]) if one.dim() else one
    if both.shape != joined.shape:
        return False
    if not both.is_floating_point():
        return True
    most = _ALIKE * float(joined.abs().amax())
    return torch.allclose(both, joined, rtol=0.0, atol=most, equal_nan=True)
