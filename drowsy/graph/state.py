"""What running a module changes in it, given back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def kept_state(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules run; attributes that were set and buffers are then as they were.

    What changed within a list or another object of theirs stays changed.
    """
    before = [(module, _attributes(module), _buffers(module)) for module in modules]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            for name in [name for name in vars(module) if name not in attributes]:
                del vars(module)[name]
            vars(module).update(attributes)
            for name, buffer, held in buffers:
                module._buffers[name] = buffer
                if buffer is not None and not torch.equal(buffer, held):
                    buffer.copy_(held)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return dict(vars(module))


def _buffers(module: nn.Module) -> list[tuple[str, Tensor | None, Any]]:
    return [
        (name, buffer, None if buffer is None else buffer.clone())
        for name, buffer in module._buffers.items()
        if buffer is None or not buffer.is_meta
    ]
