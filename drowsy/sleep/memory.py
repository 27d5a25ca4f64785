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


def remembered(limit: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Keep what a function returns, like ``functools.lru_cache``, but up to ``limit`` bytes.

    The function takes hashable arguments by position and returns a tensor, or a tuple or dataclass
    that holds some. Those used longest ago are dropped first; the one made last stays, however
    large. What is asked for while a CUDA graph is captured stays too: the graph reads it at its
    address.
    """

    def decorate(make: Callable[..., Made]) -> Callable[..., Made]:
        # With its bytes, and whether it lies on CUDA.
        kept: OrderedDict[tuple[Hashable, ...], tuple[Made, int, bool]] = OrderedDict()
        captured: dict[tuple[Hashable, ...], Made] = {}
        making = threading.Lock()
        held = 0

        def keep(arguments: tuple[Hashable, ...]) -> tuple[Made, int, bool]:
            nonlocal held
            with making:
                if arguments in kept:  # another thread was waited for
                    return kept[arguments]
                made = make(*arguments)
                tensors = _tensors(made)
                size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
                entry = kept[arguments] = made, size, any(tensor.is_cuda for tensor in tensors)
                held += size
                while held > limit and len(kept) > 1:
                    held -= kept.popitem(last=False)[1][1]
                return entry

        @functools.wraps(make)
        def remember(*arguments: Hashable) -> Made:
            try:
                entry = kept[arguments]
                kept.move_to_end(arguments)
            except KeyError:
                entry = keep(arguments)
            made, _, on_cuda = entry
            # Asked of tensors on CUDA alone: the question itself may start CUDA.
            if on_cuda and torch.cuda.is_current_stream_capturing():
                captured[arguments] = made
            return made

        return remember

    return decorate


def _tensors(made: Any) -> list[Tensor]:
    if dataclasses.is_dataclass(made):
        made = tuple(vars(made).values())
    parts = made if isinstance(made, tuple) else (made,)
    return [part for part in parts if isinstance(part, Tensor)]
