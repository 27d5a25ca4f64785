"""What a drowsy layer computes in the place of the model's own code, passed over there.

A neuron is asleep or awake *after* its batch norm and activation, so a drowsy layer computes both
(``DrowsyConv2d.norm``, ``activation``). The model's own code still calls them on what the layer
put out. The layer therefore marks its output with its *tail*: what is to be passed over, in order.
``Absorbed`` stands in for a module of a tail: it hands on what is marked for it, and computes on
all else, so that one activation module may serve many places. A called activation, where computing
it twice would differ from once, is found by ``Activated``, the kind of tensor that such layers put
out.

Every mark is used up by the end of an inference. Where one is not, the model's code took another
way than the one that was observed, and the network drops what was observed (``settle``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drowsy.network.inference import Inference, running
from drowsy.network.standin import Standin

Tail = tuple["Absorbed | str", "Tail | None"]
"""The next to be passed over, a module or a called activation by name, and what comes after it."""


class OtherWay(RuntimeError):
    """The model's code reads a neuron elsewhere than was observed."""


def mark(y: Tensor, tail: Tail, inference: Inference | None) -> Tensor:
    """The same values, marked with a tail that an inference, if there is one, is to pass over."""
    if isinstance(tail[0], str) or (tail[1] is not None and isinstance(tail[1][0], str)):
        y = y.as_subclass(Activated)
    y.awaits = tail  # type: ignore[attr-defined]
    if inference is not None:
        inference.awaited += 1
    return y


def _passed(y: Tensor, tail: Tail) -> None:
    """Note that the first of the tail was passed over."""
    y.awaits = tail[1]  # type: ignore[attr-defined]
    if tail[1] is None and (inference := running()) is not None:
        inference.awaited -= 1


class Absorbed(Standin):
    """Stands in for a norm or activation that drowsy layers compute themselves."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            tail = getattr(args[0], "awaits", None)
            if tail is not None and tail[0] is self:
                if self._forward_hooks or self._forward_pre_hooks:
                    raise OtherWay("a norm or activation has hooks now, which are to be called")
                _passed(args[0], tail)
                return args[0]
        return self.stood_for.forward(*args, **kwargs)


class Activated(Tensor):
    """What a layer with a called activation puts out until the model's code calls it."""

    # Of a call: which of ``drowsy.neuron.ACTIVATIONS`` it applies. Set by ``graph.nodes``, which
    # knows how torch spells them.
    name_of: Callable[..., str | None]

    awaits: Tail | None = None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            y = args[0] if args and isinstance(args[0], Activated) else None
            tail = None if y is None else y.awaits
            if y is not None and tail is not None and cls.name_of(func, args, kwargs) == tail[0]:
                _passed(y, tail)
                return y.as_subclass(Tensor)
            if tells_no_values(func):
                return func(*args, **kwargs)
            waiting = [each for each in _tensors((args, kwargs)) if each.awaits is not None]
            if waiting:
                name = getattr(func, "__name__", str(func))
                raise OtherWay(f"{name} reads what an activation was to read")
            return func(*args, **kwargs)


_METADATA = frozenset(
    {"size", "dim", "ndimension", "stride", "numel", "nelement", "element_size", "storage_offset"}
    | {"is_contiguous", "is_floating_point", "is_complex", "is_inference", "get_device", "__len__"}
    | {"type", "untyped_storage", "data_ptr", "__hash__", "dim_order", "has_names", "as_subclass"}
)


def tells_no_values(func: Any) -> bool:
    """Whether a function of torch tells of a tensor's shape, type or place alone."""
    name = getattr(func, "__name__", "")
    owner = getattr(getattr(func, "__self__", None), "__name__", "")
    # ``tensor.shape`` is ``Tensor.shape.__get__``; those of values are the few listed here.
    if name == "__get__":
        return owner not in ("data", "T", "mT", "H", "mH", "real", "imag", "grad")
    return name in _METADATA


def _tensors(value: Any) -> list[Activated]:
    if isinstance(value, Activated):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for each in value for tensor in _tensors(each)]
