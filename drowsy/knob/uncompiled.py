"""A model that runs by its own code, whatever ``compile`` has made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Let a model, and its parts, run by their own code for a while.

    For who watches it by hooks or modes. What ``nn.Module.compile`` made calls no hook that came
    later; and a frame that Dynamo meets under a mode of dispatch it leaves out ever after, in all
    of the process: what it compiles then is what that frame calls.
    """
    compiled = [(each, each._compiled_call_impl) for each in model.modules()]
    compiled = [(each, call) for each, call in compiled if call is not None]
    try:
        for each, _ in compiled:
            each._compiled_call_impl = None
        yield
    finally:
        for each, call in compiled:
            each._compiled_call_impl = call
