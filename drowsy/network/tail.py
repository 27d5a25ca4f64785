"""What a drowsy layer computes in the place of the model's own code, passed over there.

A neuron is asleep or awake *after* its batch norm and activation, so a drowsy layer computes both
(``DrowsyConv2d.norm``, ``activation``). The model's own code still calls them on what the layer
put out. The layer therefore puts out an ``Awaiting`` tensor, marked with the layer's *tail*: what
is to be passed over, in order. ``Absorbed`` stands in for a module of a tail: it hands on what is
marked for it, and computes on all else, so that one activation module may serve many places.
A called activation is passed over by the marked tensor itself.

Whoever else asks a marked tensor for its values, then or once the tail was passed over, asks for
what the layer has not computed. Nor may one outlive its inference, nor a tail be left. In all of
these cases the model's code took another way than the one that was observed, and the network drops
what was observed.
"""

from __future__ import annotations

import weakref
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
    # Another tensor over the same memory; ``as_subclass`` takes thrice as long.
    marked: Any = y.detach()
    marked.__class__ = Awaiting
    marked.awaits, marked.plain = tail, y
    if inference is not None:
        inference.awaited += 1
        inference.marked.append(weakref.ref(marked))
    return marked


def other_way(inference: Inference) -> str | None:
    """How the model's code went another way in an inference that is over; None if not."""
    if inference.other is None and inference.awaited:
        return f"{inference.awaited} norms or activations were not called"
    if inference.other is None and any(type(each()) is Awaiting for each in inference.marked):
        return "what a norm or activation was to read is kept"
    return inference.other


def _passed(y: Awaiting, in_place: bool) -> Tensor:
    """What comes of passing over the first of a tail; ``y`` itself where that overwrites."""
    tail, inference = y.awaits, running()
    assert tail is not None, "there is a tail to pass over"
    rest = tail[1]
    if in_place and rest is not None:
        y.awaits = rest
        return y
    if inference is not None:
        inference.awaited -= 1
    if in_place:
        y.__class__ = Tensor  # type: ignore[assignment]
        return y
    y.awaits = None
    return y.plain if rest is None else mark(y.plain, rest, inference)


def goes_other_way(reason: str) -> OtherWay:
    """To be raised; an inference remembers it, should the model's code catch it."""
    if (inference := running()) is None:
        return OtherWay(f"{reason}; outside of the network its layers' compute() gives it as it is")
    inference.other = reason
    return OtherWay(reason)


class Absorbed(Standin):
    """Stands in for a norm or activation that drowsy layers compute themselves."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = args[0] if len(args) == 1 and not kwargs else None
        if type(y) is Awaiting and y.awaits is not None and y.awaits[0] is self:
            module = self._module
            if module._forward_hooks or module._forward_pre_hooks:
                raise goes_other_way("a norm or activation has hooks now, which are to be called")
            if "forward" in vars(module):
                raise goes_other_way("a norm or activation has another forward now")
            # Not asked of what has none: a module takes long to say so.
            asked = "inplace" in vars(module) or hasattr(type(module), "inplace")
            return _passed(y, asked and module.inplace)  # type: ignore[arg-type]
        return self._module.forward(*args, **kwargs)


class Awaiting(Tensor):
    """What a layer with a tail puts out, until the model's code comes to the end of the tail."""

    # Of a call: which of ``drowsy.neuron.ACTIVATIONS`` it applies. Set by ``graph.nodes``, which
    # knows how torch spells them.
    name_of: Callable[..., str | None]

    awaits: Tail | None = None
    plain: Tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if tells_no_values(func):
                return func(*args, **kwargs)
            y = args[0] if args and type(args[0]) is Awaiting else None
            awaited = None if y is None or y.awaits is None else y.awaits[0]
            if (
                y is not None
                and isinstance(awaited, str)
                and cls.name_of(func, args, kwargs) == awaited
            ):
                return _passed(y, _overwrites(func, args, kwargs))
            name = getattr(func, "__name__", str(func))
            raise goes_other_way(
                f"{name} reads a convolution's output, where a drowsy layer has computed the norm "
                "or activation after it too"
            )


def _overwrites(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a called activation writes over its argument."""
    asked = kwargs.get("inplace") or any(each is True for each in args[1:])
    return bool(asked) or getattr(func, "__name__", "").endswith("_")


_METADATA = frozenset(
    {"size", "dim", "ndimension", "stride", "numel", "nelement", "element_size", "storage_offset"}
    | {"is_contiguous", "is_floating_point", "is_complex", "is_inference", "get_device", "__len__"}
    | {"__hash__", "dim_order", "has_names"}
)


def tells_no_values(func: Any) -> bool:
    """Whether a function of torch tells of a tensor's shape, type or place alone."""
    name = getattr(func, "__name__", "")
    owner = getattr(getattr(func, "__self__", None), "__name__", "")
    # ``tensor.shape`` is ``Tensor.shape.__get__``; those of values are the few listed here.
    if name == "__get__":
        return owner not in ("data", "T", "mT", "H", "mH", "real", "imag", "grad")
    return name in _METADATA
