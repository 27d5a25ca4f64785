"""A neuron awake: convolution, bias, activation."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu_,
    "relu6": lambda y: y.clamp_(0, 6),
    "silu": lambda y: F.silu(y, inplace=True),
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": functools.partial(torch.ops.aten.gelu_, approximate="tanh"),
    "hardswish": lambda y: F.hardswish(y, inplace=True),
    "sigmoid": Tensor.sigmoid_,
    "tanh": Tensor.tanh_,
}
ACTIVATIONS = (*_ACTIVATIONS, "prelu", "leaky_relu:SLOPE")
"""What a neuron may apply; ``SLOPE`` is a number, and ``prelu`` has a tensor of them."""


def check_activation(name: str) -> str:
    """Return the name of an activation.

    Raises ValueError if it is not one of ``ACTIVATIONS``, TypeError if it is no text.

    A slope is a finite number; it is returned in the form that every backend reads: ``1e16`` for
    ``1e+16``.
    """
    if not isinstance(name, str):
        raise TypeError(f"activation: got {name!r}, allowed: {', '.join(ACTIVATIONS)}")
    _activation(name)
    return name.replace("e+", "e")


@functools.lru_cache(maxsize=64)
def _activation(name: str) -> Callable[..., Tensor]:
    if name == "prelu":
        return _prelu_
    kind, _, slope = str(name).partition(":")
    number = re.fullmatch(r"-?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?", slope)
    if kind == "leaky_relu" and number and math.isfinite(float(slope)):
        return functools.partial(F.leaky_relu_, negative_slope=float(slope))
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: got {name!r}, allowed: {', '.join(ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _prelu_(y: Tensor, slopes: Tensor) -> Tensor:
    # torch has none in place. Under autocast ``y`` is narrower than what it was made of.
    return y.copy_(F.prelu(y, slopes.to(y.dtype)))


def activate(y: Tensor, name: str, slopes: Tensor | None = None) -> Tensor:
    """Apply one of ``ACTIVATIONS`` in place, so that the layout stays to the last stride.

    Args:
        y: with the channels in dimension 1.
        name: of the activation.
        slopes: of ``prelu``, a tensor ``[C]``; None for all others.

    Raises:
        ValueError: another activation, or slopes that do not belong to it.
    """
    if (name == "prelu") != (slopes is not None):
        raise ValueError(
            f"slopes: got {'none' if slopes is None else 'some'} with activation {name!r}, "
            "allowed: a tensor [C] with prelu, None with all others"
        )
    return _activation(name)(y) if slopes is None else _activation(name)(y, slopes)


class Activation(NamedTuple):
    """An activation with what it needs.

    Args:
        name: one of ``ACTIVATIONS``.
        slopes: ``[C]``, of ``prelu``; None for all others.
    """

    name: str = "none"
    slopes: Tensor | None = None

    def apply(self, y: Tensor) -> Tensor:
        """Apply it in place."""
        return activate(y, self.name, self.slopes)


NO_ACTIVATION = Activation()


@dataclass(frozen=True)
class ConvSpec:
    """What a layer computes, its parameters and its sleep aside.

    Args:
        stride, dilation: ``(vertical, horizontal)``.
        padding: cells added ``(left, right, top, bottom)``, as in ``F.pad``.
        padding_mode: ``zeros``, ``reflect``, ``replicate``, ``circular``; or ``same``: as many
            zeros as TensorFlow's rule of that name adds, which depends on the size of the input
            (``at``). ``padding`` is then what it adds at stride 1.
        groups: number of groups.
        activation: one of ``ACTIVATIONS``.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding_mode: str = "zeros"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"

    # The fields as arguments of an operator: what ``arguments`` gives and ``of`` takes.
    SCHEMA: ClassVar[str] = (
        "int[2] stride, int[4] padding, str padding_mode, int[2] dilation, int groups,"
        " str activation"
    )

    def arguments(self) -> tuple[Sequence[int] | int | str, ...]:
        """The fields in the order of ``SCHEMA``."""
        return (
            self.stride,
            self.padding,
            self.padding_mode,
            self.dilation,
            self.groups,
            self.activation,
        )

    @classmethod
    def of(
        cls,
        stride: Sequence[int],
        padding: Sequence[int],
        padding_mode: str,
        dilation: Sequence[int],
        groups: int,
        activation: str,
    ) -> ConvSpec:
        """The specification that gave these ``arguments``; lists for its tuples."""
        return cls(
            tuple(stride),  # type: ignore[arg-type]
            tuple(padding),  # type: ignore[arg-type]
            padding_mode,
            tuple(dilation),  # type: ignore[arg-type]
            groups,
            activation,
        )

    @classmethod
    def of_conv(
        cls,
        conv: nn.Conv2d,
        activation: str = "none",
        *,
        weight: Tensor | None = None,
        pads_same: bool | None = None,
    ) -> ConvSpec:
        """The geometry that an ``nn.Conv2d``'s attributes tell now, as its ``forward`` reads them.

        Args:
            conv: the convolution; integers, pairs and names of paddings are all allowed.
            activation: what follows it inside the neuron.
            weight: what it convolves with, if not ``conv.weight``; its size is read.
            pads_same: whether it pads by TensorFlow's rule; None: its attribute of that name, and
                zeros that it adds besides by that of ``pads_first``.

        Raises:
            ValueError: a geometry that ``F.conv2d`` does not take.
        """
        kernel = (conv.weight if weight is None else weight).shape
        first = None
        if pads_same is None:
            pads_same = getattr(conv, "pads_same", False)
            first = getattr(conv, "pads_first", None)
        if pads_same:
            spec = cls.of_call(kernel, 1, "same", conv.dilation, conv.groups, activation)
            return replace(spec, stride=_pair("stride", conv.stride), padding_mode="same")
        if conv.padding_mode == "zeros" or first is not None:
            given = conv.stride, conv.padding, conv.dilation, conv.groups, activation
            spec = cls.of_call(kernel, *given)
            return spec if first is None else spec.padded_first(first)
        return cls.of(
            _pair("stride", conv.stride),
            # Written down when the convolution was made, whatever became of its ``padding``.
            conv._reversed_padding_repeated_twice,
            conv.padding_mode,
            _pair("dilation", conv.dilation),
            conv.groups,
            activation,
        )

    @classmethod
    def of_call(
        cls,
        kernel: Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        activation: str = "none",
    ) -> ConvSpec:
        """The geometry of a call of ``F.conv2d``.

        Args:
            kernel: sizes of the weight, ``KH`` and ``KW`` at the end.
            stride, padding, dilation, groups: as ``F.conv2d`` takes them.
            activation: what follows.

        Raises:
            ValueError: what ``F.conv2d`` does not take.
        """
        steps, holes = _pair("stride", stride), _pair("dilation", dilation)
        if padding == "same":
            if steps != (1, 1):
                raise ValueError(f"padding: got 'same' with stride {steps}, allowed: stride 1")
            down, across = ((taps - 1) * d for taps, d in zip(kernel[-2:], holes, strict=True))
            sides = (across // 2, across - across // 2, down // 2, down - down // 2)
        else:
            down, across = (0, 0) if padding == "valid" else _pair("padding", padding, least=0)
            sides = (across, across, down, down)
        return cls(steps, sides, "zeros", holes, groups, activation)

    def padded_first(self, sides: Sequence[int]) -> ConvSpec:
        """This geometry over inputs that get these zeros first, ``(left, right, top, bottom)``."""
        both = tuple(a + b for a, b in zip(self.padding, sides, strict=True))
        return replace(self, padding=both)  # type: ignore[arg-type]

    def at(self, size: Sequence[int]) -> ConvSpec:
        """This geometry over inputs of ``size`` ``(H, W)``: mode ``same`` is worked out."""
        if self.padding_mode != "same":
            return self
        left, right, top, bottom = self.padding
        sides = (
            *_same(size[1], self.stride[1], left + right),
            *_same(size[0], self.stride[0], top + bottom),
        )
        return replace(self, padding=sides, padding_mode="zeros")

    def output_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """``(OH, OW)`` over an input of ``size`` ``(H, W)`` before padding."""
        left, right, top, bottom = self.at(size).padding
        height, width = (
            (padded - dilation * (taps - 1) - 1) // stride + 1
            for padded, taps, stride, dilation in zip(
                (size[0] + top + bottom, size[1] + left + right),
                kernel,
                self.stride,
                self.dilation,
                strict=True,
            )
        )
        return height, width


def _pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """``(vertical, horizontal)`` of one number, or of a sequence of one or two."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) == 1:
        pair *= 2
    if len(pair) != 2 or pair[0] < least or pair[1] < least:
        raise ValueError(f"{name}: got {value!r}, allowed: one or two integers from {least} up")
    return pair


def _same(size: int, stride: int, reach: int) -> tuple[int, int]:
    """Zeros before and after a row of ``size``, for ``ceil(size / stride)`` outputs.

    Args:
        size: of the row.
        stride: of the windows.
        reach: from a window's first cell to its last.
    """
    missing = torch.sym_max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return missing // 2, missing - missing // 2


def awake_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    slopes: Tensor | None = None,
) -> Tensor:
    """What the neurons would output if none slept: ``act(conv2d(x) + bias)``.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, any floating dtype and memory format.
        weight: ``[OC, C / groups, KH, KW]`` of the same dtype.
        bias: ``[OC]`` or None.
        spec: geometry and activation.
        slopes: ``[OC]`` of activation ``prelu``, None for all others.
    """
    x, spec = padded(x, spec)
    left, right, top, bottom = spec.padding
    # Sizes that a compiler keeps open are not compared, which would fix them.
    if any(isinstance(p, torch.SymInt) for p in spec.padding) or (left, top) != (right, bottom):
        x = padded_input(x, spec)
        top = left = 0
    y = F.conv2d(x, weight, bias, spec.stride, (top, left), spec.dilation, spec.groups)
    return activate(y, spec.activation, slopes)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype to which a convolution rounds this operand: ``torch.autocast``'s where it is on."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def padded(x: Tensor, spec: ConvSpec) -> tuple[Tensor, ConvSpec]:
    """``x`` with a padding of other than zeros written out, and what is left of ``spec``.

    Before anything is decided by the input's layout: a circular padding is contiguous, whatever
    the input was.
    """
    spec = spec.at(x.shape[-2:])
    if spec.padding_mode == "zeros":
        return x, spec
    return padded_input(x, spec), replace(spec, padding=(0, 0, 0, 0), padding_mode="zeros")


def padded_input(x: Tensor, spec: ConvSpec) -> Tensor:
    """``x`` ``[N, C, H, W]`` with its padding written out, whatever the mode."""
    spec = spec.at(x.shape[-2:])
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    return F.pad(x, spec.padding, mode=mode)
