"""``Stream``: a network over the frames of cameras, neurons remembering what they put out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils._pytree import tree_map

from drowsy.backends.ops import choose_backend
from drowsy.files.messages import quoted
from drowsy.network.net import DrowsyNet, check_network
from drowsy.video.areas import REFRESH, WHOLE, Areas, Box
from drowsy.video.captured import Captured, refusal
from drowsy.video.cuts import DEFAULT_CUT, Cuts, check_cut
from drowsy.video.following import MadeOf
from drowsy.video.memory import Memory
from drowsy.video.program import Frame, Program

_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Look:
    """What a stream did with one frame of one slot.

    Args:
        boxes: the areas that were awake; none where the frame was skipped.
        why: ``areas``; or why all was awake: ``first`` (a slot's first frame, and the first after a
            reset), ``cut``, or ``rate 0``. Of ways that skip frames (``drowsy.video.ways``)
            ``turn`` or ``skipped``.
        work: share of the network's multiplications that it took.
    """

    boxes: tuple[Box, ...]
    why: str
    work: float

    @property
    def dense(self) -> bool:
        """Whether everything was awake."""
        return self.boxes == (WHOLE,)


class Stream:
    """Runs a converted network over the frames of one camera or several.

    In every frame a part of the picture is awake, the same part in every layer; everywhere else
    neurons keep what they put out when they were last awake. The work of every frame is bounded,
    and on a picture that stands still the output becomes the awake network's.

        stream = drowsy.Stream(net, refresh="bands")
        for frame in frames:               # [1, C, H, W]
            answer = stream(frame)

    A slot's first frame is computed densely, as is one after a cut. Copies and what is pickled have
    not seen a frame yet; ``copy.copy`` shares the network.

    Args:
        net: a converted network that has a graph (``net.known``) and in which nobody sleeps
            otherwise (``net.set(0)``). Its weights, norms, slopes, corrections, hooks and
            ``forward`` are followed as its own code follows them: where one was changed or replaced
            since, all slots begin anew. Hooks or another ``forward`` within neurons, or another
            buffer or number that code of others computes with, cost it its graph, which is an
            error, as is a part in training mode. Writes that torch does not count
            (to ``weight.data``) are seen after ``net.refresh()``.
        streams: cameras; each has a slot of its own, and nothing of one reaches another.
        refresh: which areas are awake: ``bands``, of the full width, in turn; ``quads``, quarters
            in turn; ``change``, of 7 x 7 blocks those that changed most.
        rate: share of the picture that sleeps: for ``bands`` ``m/k`` with ``k`` up to 8, for
            ``quads`` multiples of 1/4, for ``change`` of 1/8, below 1. At 0 the awake network runs.
        cut: how different from the one before a frame must be to be dense (``Cuts``), or None: no
            frame but a slot's first is dense. After a cut no other is found for 8 frames, so at
            most one frame in 9 is dense, whatever the camera shows.
        backend: ``auto`` (Triton on CUDA for networks that it serves, torch elsewhere), ``torch``
            (slabs, a slot after the other) or ``triton`` (all slots together, on CUDA as one
            captured graph; on the CPU under its interpreter). ``backend`` tells which it became.

    Raises:
        TypeError: no converted network.
        ValueError: a number of streams, refresh, rate, cut or backend that is not allowed; in the
            first call, a network without a graph, or one that ``triton`` does not serve.
    """

    def __init__(
        self,
        net: DrowsyNet,
        streams: int = 1,
        refresh: str = "bands",
        *,
        rate: float | Fraction = _HALF,
        cut: float | None = DEFAULT_CUT,
        backend: str = "auto",
    ) -> None:
        check_network(net)
        if isinstance(streams, bool) or not isinstance(streams, int) or streams < 1:
            raise ValueError(f"streams: got {quoted(streams)}, allowed: an integer, 1 or more")
        if refresh not in REFRESH:
            raise ValueError(f"refresh: got {quoted(refresh)}, allowed: {', '.join(REFRESH)}")
        self.net, self.refresh = net, refresh
        self._rate = REFRESH[refresh].check(rate)
        self._cut = None if cut is None else check_cut(cut)
        choose_backend(backend, torch.device("cpu"))
        self._requested, self._unserved = backend, ""
        self._program: Program | None = None
        self._captured: Captured | None = None
        self._made_of: MadeOf | None = None
        self._slots = [self._slot() for _ in range(streams)]

    def _slot(self) -> _Slot:
        areas = REFRESH[self.refresh](self._rate)
        return _Slot(areas, None if self._cut is None else Cuts(self._cut))

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies, too: shallow ones share the network, all begin anew. Of what slots remember some
        # lies in orders of a library's own, which nothing copies.
        made = partial(type(self), rate=self._rate, cut=self._cut, backend=self._requested)
        return made, (self.net, len(self._slots), self.refresh)

    # --- the knob -------------------------------------------------------------------------------

    @property
    def rate(self) -> Fraction:
        """Share of the picture that sleeps."""
        return self._rate

    def set(self, rate: float | Fraction) -> None:
        """Turn the knob: from the next frame on this share of the picture sleeps.

        What is remembered stays, unless the rate was 0, where nothing is.

        Raises:
            TypeError, ValueError: a rate that the refresh does not have. The stream is then as it
                was.
        """
        self._rate = REFRESH[self.refresh].check(rate)
        for slot in self._slots:
            slot.areas.set(self._rate)

    def reset(self, slot: int | None = None) -> None:
        """Forget what a slot remembers, or all slots: its next frame is computed densely.

        Raises:
            ValueError: no such slot.
        """
        for index in self._indices(None if slot is None else [slot]):
            self._slots[index].forget()

    # --- running --------------------------------------------------------------------------------

    def __call__(self, frames: Tensor, slots: Sequence[int] | None = None) -> Any:
        """The network's output for one frame of each camera.

        Args:
            frames: ``[N, C, H, W]``, as the network takes them, one a slot; of one size, dtype and
                device for the life of the stream.
            slots: whose frames they are, by default of all slots in order.

        Returns:
            what the network returns for such a batch, whose tensors are joined along their first
            dimension; made in inference mode.

        Raises:
            ValueError: frames of another shape, dtype or device; slots that do not fit; a network
                in which neurons sleep otherwise, or without a graph.
            RuntimeError: under autocast, or with hooks that are registered for all modules, which a
                stream does not follow.
        """
        indices = self._indices(slots)
        self._check(frames, indices)
        shown = [(self._slots[i], frame) for i, frame in zip(indices, frames.split(1), strict=True)]
        try:
            with torch.inference_mode():
                return self._run(shown, frames, indices)
        except BaseException:
            # Of what was begun nothing is known.
            for slot, _ in shown:
                slot.forget()
            raise

    def _run(
        self, shown: list[tuple[_Slot, Tensor]], frames: Tensor, indices: Sequence[int]
    ) -> Any:
        awake = [self._awake(slot, frame) for slot, frame in shown]
        if self._captured is not None and self._rate:
            with self.net.control.turns.inferring():
                return self._captured.run(frames, indices, awake)
        outputs = [self._one(*each, boxes) for each, boxes in zip(shown, awake, strict=True)]
        return together(outputs)

    def _awake(self, slot: _Slot, frame: Tensor) -> tuple[Box, ...]:
        """What is awake in a slot's next frame."""
        program = self._program
        assert program is not None
        cut = slot.cuts is not None and slot.cuts.found(frame[0])
        if not self._rate:
            slot.leave_memory()
            slot.look = Look((WHOLE,), "rate 0", 1.0)
            return slot.look.boxes
        if slot.remembers and not cut:
            boxes, why = slot.areas.next(frame[0]), "areas"
        else:
            boxes, why = (WHOLE,), "cut" if slot.remembers else "first"
            slot.areas.refreshed(frame[0])
        slot.remembers = True
        slot.look = Look(boxes, why, program.work(boxes))
        return boxes

    def _one(self, slot: _Slot, frame: Tensor, boxes: tuple[Box, ...]) -> Any:
        if not self._rate:
            return self.net(frame)
        assert self._program is not None
        with self.net.control.turns.inferring():
            return slot.frame(self._program, boxes).run(frame)

    def _check(self, frames: Tensor, indices: Sequence[int]) -> None:
        if not isinstance(frames, Tensor) or not frames.is_floating_point():
            kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
            raise TypeError(f"frames: got {kind}, allowed: a floating-point tensor")
        if frames.dim() != 4 or 0 in frames.shape or len(frames) != len(indices):
            raise ValueError(
                f"frames: got shape {tuple(frames.shape)}, allowed: [{len(indices)}, C, H, W], a "
                "frame a slot"
            )
        if torch.is_autocast_enabled(frames.device.type):
            raise RuntimeError(
                "autocast is on, which a stream does not follow: give the network and the frames "
                "the dtype (net.to(torch.bfloat16))"
            )
        if _global_forward_hooks or _global_forward_pre_hooks:
            raise RuntimeError(
                "hooks of all modules are registered (torch.nn.modules.module), which a stream "
                "does not call: register them with the modules that they are for"
            )
        if any(self.net.control.settings):
            rates = sorted({j / self.net.k for j in self.net.control.settings})
            raise ValueError(
                f"net: its layers sleep at rates of {rates[0]} to {rates[-1]}, allowed: "
                "net.set(0), in a stream areas sleep"
            )
        program = self._plan(frames)
        for what in ("shape", "dtype", "device"):
            got, allowed = getattr(frames[:1], what), getattr(program.example, what)
            if got != allowed:
                raise ValueError(
                    f"frames: got {what} {got} a frame, allowed: {allowed}, as the first had"
                )

    def _plan(self, frames: Tensor) -> Program:
        """The program, made anew where the network computes another thing than it did."""
        if self._program is None or self._made_of is None or not self._made_of.holds():
            for slot in self._slots:
                slot.leave_memory()
            self._program = Program(self.net, frames, by_cells=self.refresh == "change")
            self._captured = self._serve(self._program)
            self._made_of = MadeOf(self.net, self._program)
            if self._program.grid is not None:
                for slot in self._slots:
                    slot.areas.fit(self._program.grid)
        return self._program

    def _serve(self, program: Program) -> Captured | None:
        """All slots by Triton, where that was asked for or is right; None: by slabs, in torch."""
        device = program.example.device
        if choose_backend(self._requested, device) == "torch":
            return None
        self._unserved = refusal(program, len(self._slots))
        if self._unserved and self._requested == "triton":
            raise ValueError(f"backend: got 'triton' for {self._unserved}; 'auto' would take torch")
        return None if self._unserved else Captured(program, len(self._slots))

    def _indices(self, slots: Sequence[int] | None) -> Sequence[int]:
        return check_slots(slots, len(self._slots))

    # --- what it tells --------------------------------------------------------------------------

    @property
    def looks(self) -> tuple[Look | None, ...]:
        """What was done with each slot's last frame; None before its first."""
        return tuple(slot.look for slot in self._slots)

    def bytes_for(self, frames: Tensor) -> int:
        """Bytes of memory that all slots will take for frames like ``[N, C, H, W]``.

        Of maps that are kept, and of weights kept in a second order. Nothing is taken yet, but a
        network that has not run is compared with its model on these frames.
        """
        self._check(frames, range(len(frames)))
        program = self._plan(frames)
        if self._captured is not None:
            return self._captured.bytes
        return len(self._slots) * program.bytes_per_slot + program.bytes_shared

    @property
    def settles(self) -> int:
        """Frames after which the output on a still picture is the awake network's, at this rate.

        A bound: for every layer that reads neighbours the frames in which each area is awake once.

        Raises:
            RuntimeError: before the first frame, or ``bytes_for``.
        """
        if self._program is None:
            raise RuntimeError("settles: is known after the first frame")
        return self._slots[0].areas.cycle * self._program.depth if self._rate else 1

    @property
    def backend(self) -> str:
        """How frames are computed: ``triton``, or ``torch`` and why it is not Triton, if it might.

        Raises:
            RuntimeError: before the first frame, or ``bytes_for``.
        """
        if self._program is None:
            raise RuntimeError("backend: is known after the first frame")
        if self._captured is not None:
            return "triton"
        return f"torch ({self._unserved})" if self._unserved else "torch"

    @property
    def whole(self) -> list[str]:
        """What is computed whole in every frame, by the names of the graph's nodes."""
        return [] if self._program is None else list(self._program.whole)


class _Slot:
    """One camera: which areas are awake, and what is remembered."""

    # Frames bound to other boxes than these many are bound anew.
    _BOUND = 16

    def __init__(self, areas: Areas, cuts: Cuts | None) -> None:
        self.areas, self.cuts = areas, cuts
        self.remembers = False
        self.look: Look | None = None
        self._memory: Memory | None = None
        self._frames: dict[tuple[Box, ...], Frame] = {}

    def frame(self, program: Program, boxes: tuple[Box, ...]) -> Frame:
        """What computes a frame with these boxes awake."""
        if self._memory is None:
            self._memory = program.memory()
            self._memory.take(program.example)
            program.start(self._memory)
        found = self._frames.get(boxes)
        if found is None:
            found = program.bind(self._memory, boxes)
            if len(self._frames) < self._BOUND:
                self._frames[boxes] = found
        return found

    def forget(self) -> None:
        """The next frame is the first."""
        self.remembers = False
        if self.cuts is not None:
            self.cuts = Cuts(self.cuts.least, self.cuts.rest)

    def leave_memory(self) -> None:
        """Forget, and give the memory back."""
        self.remembers, self._memory = False, None
        self._frames.clear()


def check_slots(slots: Sequence[int] | None, count: int) -> Sequence[int]:
    """The slots that are meant, of so many; None means all. ValueError for others."""
    if slots is None:
        return range(count)
    given = list(slots)
    good = all(isinstance(i, int) and not isinstance(i, bool) for i in given)
    if not given or not good or len({*given}) < len(given) or {*given} - {*range(count)}:
        raise ValueError(
            f"slots: got {quoted(slots)}, allowed: at least one of 0 to {count - 1}, each once"
        )
    return given


def together(outputs: Sequence[Any]) -> Any:
    """What a network puts out for a batch, of what it put out for each of its frames."""
    return outputs[0] if len(outputs) == 1 else tree_map(_joined, *outputs)


def _joined(*parts: Any) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
