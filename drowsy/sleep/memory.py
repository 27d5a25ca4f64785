"""Tables that are made once and kept, up to so many bytes."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Memory:
    """Keeps what functions return, like ``functools.lru_cache``, but up to ``limit`` bytes in all.

    A function takes hashable arguments by position and returns a tensor, or a tuple, dictionary or
    dataclass that holds some. It may ask for what others return. Those used longest ago are dropped
    first; the one made last stays, however large. What is asked for while a CUDA graph is captured
    stays too: the graph reads it at its address. Threads make a table once.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        # By function and arguments, with its bytes, and whether it lies on CUDA.
        self._kept: OrderedDict[tuple[Hashable, ...], tuple[Any, int, bool]] = OrderedDict()
        self._captured: dict[tuple[Hashable, ...], Any] = {}
        self._making = threading.RLock()

    def __call__(self, make: Callable[..., Made]) -> Callable[..., Made]:
        """The function that returns what is kept of ``make``, and calls it for the rest."""

        @functools.wraps(make)
        def remember(*arguments: Hashable) -> Made:
            key = (make, *arguments)
            try:
                entry = self._kept[key]
                self._kept.move_to_end(key)
            except KeyError:  # or another thread has dropped it
                entry = self._make(key)
            made, _, on_cuda = entry
            # Asked of tensors on CUDA alone: the question itself may start CUDA.
            if on_cuda and torch.cuda.is_current_stream_capturing():
                self._captured[key] = made
            return made

        return remember

    def _make(self, key: tuple[Any, ...]) -> tuple[Any, int, bool]:
        with self._making:
            if key in self._kept:  # another thread was waited for
                return self._kept[key]
            make, *arguments = key
            # On the CPU first, whatever torch's default device is.
            with torch.device("cpu"):
                made = make(*arguments)
            tensors = _tensors(made)
            size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
            entry = self._kept[key] = made, size, any(tensor.is_cuda for tensor in tensors)
            self._held += size
            while self._held > self._limit and len(self._kept) > 1:
                self._held -= self._kept.popitem(last=False)[1][1]
            return entry


remembered = Memory(256 << 20)
"""What every table of sleep maps and of the CPU's ways is kept by."""


def _tensors(made: Any) -> list[Tensor]:
    if dataclasses.is_dataclass(made):
        made = vars(made)
    if isinstance(made, dict):
        made = tuple(made.values())
    parts = made if isinstance(made, tuple) else (made,)
    return [part for part in parts if isinstance(part, Tensor)]
