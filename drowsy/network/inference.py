"""One inference of a network: whose images it counts, and which setting it sees."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from drowsy.knob.control import Control

_NO_PARTS = (
    "net: a part of it is compiled, exported or traced by itself, allowed: the whole network, "
    "whose graph holds no norm or activation that its layers compute already"
)


class Inference:
    """What one call of a network, in one thread, finds out while it runs.

    Attributes:
        control: of the network.
        images: of the largest batch that a layer has seen.
        awaited: neurons whose norm or activation the model's code has not come to yet.
        in_graph: whether the network's graph runs, and not the model's code.
        detail: of the network's input, for sources that see it; None where nobody sleeps by it.
        marked: what layers put out for the model's code to pass over (``tail``).
        other: how the code was seen to go another way than was observed; None for none.
    """

    __slots__ = ("awaited", "control", "detail", "images", "in_graph", "marked", "other")

    def __init__(self, control: Control, in_graph: bool = False) -> None:
        self.control, self.in_graph = control, in_graph
        self.images = self.awaited = 0
        self.marked: list[weakref.ref[Tensor]] = []
        self.detail: Tensor | None = None
        self.other: str | None = None


class _Thread(threading.local):
    inference: Inference | None = None


_thread = _Thread()


def running() -> Inference | None:
    """The inference that this thread is in; None outside of a network's call."""
    return _thread.inference


def joined(control: Control) -> Inference | None:
    """The inference of a network that this thread is in; None outside of its call."""
    begun = _thread.inference
    return begun if begun is not None and begun.control is control else None


def join(control: Control, layer: int, images: int) -> None:
    """Note that a layer of a network is about to run on so many images.

    Outside of its network's call nobody tells when an inference is over.
    """
    if (begun := joined(control)) is None:
        control.called_alone(layer, images)
    else:
        begun.images = max(begun.images, images)


def in_graph(x: object) -> bool:
    """Whether ``x`` is on its way through a graph, or makes one, and not through the model's code.

    A network's graph holds nothing that a layer computes already, and advances the clock itself.
    """
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return True
    return torch.jit.is_tracing() or (_thread.inference is not None and _thread.inference.in_graph)


def check_graph() -> None:
    """Raise where a layer of a network is on its way through a graph that is not the network's."""
    # Of which network: tracers put other objects in the place of a layer's control.
    if (begun := running()) is None or not begun.in_graph:
        raise RuntimeError(_NO_PARTS)


@contextmanager
def inference(control: Control, in_graph: bool = False) -> Iterator[Inference]:
    """One inference of the network that has this control."""
    before = _thread.inference
    _thread.inference = begun = Inference(control, in_graph)
    try:
        yield begun
    finally:
        _thread.inference = before
