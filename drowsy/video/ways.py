"""Ways to spend less on a clip that can be mixed, and what answers frames by one of them.

A frame may be scaled down, skipped, or computed in part while neurons elsewhere remember.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from drowsy.files.messages import quoted
from drowsy.files.versioned import check_keys
from drowsy.images.scaling import Size
from drowsy.images.structures import mapped
from drowsy.images.view import View
from drowsy.knob.costs import network_cost
from drowsy.network.net import DrowsyNet, check_network
from drowsy.video.areas import REFRESH, WHOLE
from drowsy.video.cuts import DEFAULT_CUT, Cuts, check_cut
from drowsy.video.stream import Look, Stream, check_slots, together

_NONE = Fraction(0)


@dataclass(frozen=True)
class Way:
    """What is computed of the frames of a clip. As it is, everything of every frame.

    Args:
        size: ``(H, W)`` in pixels that frames are scaled down to; None as they are.
        every: of so many frames one is computed, and its answer repeated for the others.
        refresh, rate: as for ``Stream``: a part of each frame is computed; None and 0: all of it.
        packed: whole frames are computed as a stream does, with weights in the order that the
            device's library wants; it is not for ways with a refresh, whose frames always are.

    Raises:
        TypeError, ValueError: a value outside of what is listed here, or frames that are both
            skipped and computed in part.
    """

    size: Size | None = None
    every: int = 1
    refresh: str | None = None
    rate: Fraction = _NONE
    packed: bool = False

    def __post_init__(self) -> None:
        size = self.size
        if size is not None and not (
            isinstance(size, tuple) and len(size) == 2 and all(_is_count(side) for side in size)
        ):
            raise ValueError(f"size: got {quoted(size)}, allowed: (H, W) in pixels, or None")
        if not _is_count(self.every):
            raise ValueError(f"every: got {quoted(self.every)}, allowed: an integer, 1 or more")
        if type(self.packed) is not bool:
            raise ValueError(f"packed: got {quoted(self.packed)}, allowed: True or False")
        if self.refresh is None:
            if self.rate:
                raise ValueError(f"rate: got {quoted(self.rate)}, allowed: 0 without a refresh")
            return
        if self.refresh not in REFRESH:
            allowed = ", ".join(REFRESH)
            raise ValueError(f"refresh: got {quoted(self.refresh)}, allowed: {allowed}, or None")
        object.__setattr__(self, "rate", REFRESH[self.refresh].check(self.rate))
        if not self.rate:
            raise ValueError(f"rate: got {quoted(self.rate)}, allowed: above 0 with a refresh")
        if self.every > 1 or self.packed:
            other = "packed" if self.packed else f"every {self.every}"
            raise ValueError(
                f"refresh: got {self.refresh} and {other}, allowed: one of them, as frames that "
                "are computed in part are neither skipped nor whole"
            )

    def __str__(self) -> str:
        return ", ".join(self.turned.values()) or "awake"

    @property
    def turned(self) -> dict[str, str]:
        """What each lever does, in words: ``size``, ``skip``, ``remember``, ``packed``, if any."""
        told = {}
        if self.size is not None:
            height, width = self.size
            told["size"] = f"{height} px" if height == width else f"{height} x {width} px"
        if self.every > 1:
            told["skip"] = f"one frame of {self.every}"
        if self.refresh is not None:
            told["remember"] = f"{self.refresh}, {self.rate} asleep"
        if self.packed:
            told["packed"] = "packed"
        return told

    @property
    def is_awake(self) -> bool:
        """Whether it is the network as it is, on every frame."""
        return self == Way()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        size = None if self.size is None else list(self.size)
        return {**vars(self), "size": size, "rate": str(self.rate)}

    @classmethod
    def from_dict(cls, data: Any, where: str = "way") -> Way:
        """Read the JSON form; ``where`` names it in errors."""
        check_keys(data, {"size", "every", "refresh", "rate", "packed"}, where)
        size = tuple(data["size"]) if isinstance(data["size"], list) else data["size"]
        try:
            rate = Fraction(data["rate"]) if isinstance(data["rate"], str) else data["rate"]
            return cls(**{**data, "size": size, "rate": rate})
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{where}: {error}") from error


class Player:
    """Answers the frames of one camera or several by one way.

    The first frame of a slot is computed, as is one after a cut. Where frames are scaled down, maps
    and boxes are scaled back to what all pixels would give; for that the network runs once, awake.

    Args:
        net: a converted network, as for ``Stream``.
        way: what is computed.
        streams: cameras, each with a slot of its own.
        cut: as for ``Stream``; None looks for no cuts.
    """

    def __init__(
        self, net: DrowsyNet, way: Way, streams: int = 1, *, cut: float | None = DEFAULT_CUT
    ) -> None:
        check_network(net)
        self.net, self.way = net, way
        if way.refresh is not None:
            self._stream = Stream(net, streams, way.refresh, rate=way.rate, cut=cut)
        elif way.packed:
            self._stream = Stream(net, streams, cut=None)
        least = None if cut is None or way.every == 1 else check_cut(cut)
        self._slots = [_Slot(way.every, least) for _ in range(streams)]
        # Of frames that are scaled down: their shape, outputs for whole ones, and the share of the
        # multiplications.
        self._image: tuple[int, ...] = ()
        self._whole: Any = None
        self._share = 1.0

    def __call__(self, frames: Tensor, slots: Sequence[int] | None = None) -> Any:
        """The output for one frame of each camera, ``[N, C, H, W]``; as for ``Stream``."""
        indices = check_slots(slots, len(self._slots))
        if not isinstance(frames, Tensor) or frames.dim() != 4 or len(frames) != len(indices):
            shape = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(
                f"frames: got {shape}, allowed: [{len(indices)}, C, H, W], a frame a slot"
            )
        with torch.inference_mode():
            self._prepare(frames[:1])
            if self.way.refresh is not None:
                return self._in_part(frames, indices)
            return together(
                [self._whole_or_held(frames[i : i + 1], index) for i, index in enumerate(indices)]
            )

    def _in_part(self, frames: Tensor, indices: Sequence[int]) -> Any:
        output = self._at_size(frames, lambda seen: self._stream(seen, indices))
        for index in indices:
            look = self._stream.looks[index]
            assert look is not None, "it has looked at a frame"
            self._slots[index].look = replace(look, work=look.work * self._share)
        return output

    def _whole_or_held(self, frame: Tensor, index: int) -> Any:
        def compute() -> Any:
            return self._at_size(frame, lambda seen: self._dense(seen, index))

        return self._slots[index].answer(frame, compute, self._share)

    def _dense(self, frame: Tensor, index: int) -> Any:
        if not self.way.packed:
            return self.net(frame)
        self._stream.reset(index)
        return self._stream(frame, [index])

    def _at_size(self, frames: Tensor, run: Callable[[Tensor], Any]) -> Any:
        """What is said of frames that are scaled to the way's size."""
        if self.way.size is None:
            return run(frames)
        full: Size = (frames.shape[-2], frames.shape[-1])
        view = View(full, full, self.way.size)
        return view.restored(run(view(frames)), full, self._whole)

    def _prepare(self, frame: Tensor) -> None:
        """Learn what frames of this shape need, where they are scaled down."""
        image, size = tuple(frame.shape[1:]), self.way.size
        if size is None or image == self._image:
            return
        self._whole = mapped(lambda y: y.to("meta"), self.net(frame))
        seen = network_cost(self.net, (image[0], *size)).multiplies
        self._share = seen / network_cost(self.net, image).multiplies
        self._image = image

    def set(self, rate: Fraction) -> None:
        """Turn to another rate of the refresh, as ``Stream.set``; ``way`` is then that."""
        way = replace(self.way, rate=rate)
        self._stream.set(rate)
        self.way = way

    def reset(self, slot: int | None = None) -> None:
        """Forget what a slot remembers, or all slots: the next frame is computed."""
        for index in check_slots(None if slot is None else [slot], len(self._slots)):
            self._slots[index].forget()
            if self.way.refresh is not None:
                self._stream.reset(index)

    @property
    def looks(self) -> tuple[Look | None, ...]:
        """What was done with each slot's last frame; None before its first."""
        return tuple(slot.look for slot in self._slots)


class _Slot:
    """One camera: the answer that is repeated, and when the next frame is computed."""

    def __init__(self, every: int, cut: float | None) -> None:
        self.look: Look | None = None
        self._every, self._cut = every, cut
        self.forget()

    def forget(self) -> None:
        """The next frame is the first."""
        self._held: Any = None
        # Frames since one was computed; None before the first.
        self._age: int | None = None
        self._cuts = None if self._cut is None else Cuts(self._cut)

    def answer(self, frame: Tensor, compute: Callable[[], Any], work: float) -> Any:
        """What is said of a frame: computed, or repeated."""
        cut = self._cuts is not None and self._cuts.found(frame[0])
        if self._age is not None and self._age + 1 < self._every and not cut:
            self._age += 1
            self.look = Look((), "skipped", 0.0)
            return mapped(torch.clone, self._held)
        why = "first" if self._age is None else "cut" if cut else "turn"
        self.look = Look((WHOLE,), why, work)
        # Where that fails, the next frame is the first.
        self._age = None
        output = compute()
        self._age = 0
        if self._every > 1:
            # The caller may write into what it is given.
            self._held = mapped(torch.clone, output)
        return output


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1
