"""The Drowsy Neuron in eager torch: the exact semantics every backend is held to.

Source: DrowsyNet, section III-A. In a layer's output a neuron is

    0                                   if it sleeps,
    scale * act(sum(x * w) + bias)      otherwise,

with ``scale = 1 / (1 - r)`` for the *rescaled* flavour and 1 for the *non-rescaled* one. The paper
writes the ReLU into the equation; here any activation stands in its place.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.sleep import Grain, expand_cells

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu_,
    "relu6": lambda y: y.clamp_(0, 6),
    "silu": lambda y: F.silu(y, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "hardswish": lambda y: F.hardswish(y, inplace=True),
    "sigmoid": Tensor.sigmoid_,
    "tanh": Tensor.tanh_,
}
ACTIVATIONS = (*_ACTIVATIONS, "leaky_relu:SLOPE")


def check_activation(name: str) -> str:
    """Return the name of an activation, or raise ValueError if it is not one of ``ACTIVATIONS``."""
    _activation(name)
    return name


@functools.lru_cache(maxsize=64)
def _activation(name: str) -> Callable[[Tensor], Tensor]:
    kind, _, slope = name.partition(":")
    if kind == "leaky_relu" and re.fullmatch(r"-?\d+(\.\d*)?(e-?\d+)?", slope):
        return functools.partial(F.leaky_relu_, negative_slope=float(slope))
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: got {name!r}, allowed: {', '.join(ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def activate(y: Tensor, name: str) -> Tensor:
    """Apply one of ``ACTIVATIONS``, in place where it can be."""
    return _activation(name)(y)


@dataclass(frozen=True)
class ConvSpec:
    """What a layer computes, its parameters and its sleep aside.

    Args:
        stride, dilation: ``(vertical, horizontal)``.
        padding: cells added ``(left, right, top, bottom)``, as in ``F.pad``.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        groups: number of groups.
        activation: one of ``ACTIVATIONS``.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding_mode: str = "zeros"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"


def awake_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """What the neurons would output if none slept: ``act(conv2d(x) + bias)``.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, any floating dtype and memory format.
        weight: ``[OC, C / groups, KH, KW]`` of the same dtype.
        bias: ``[OC]`` or None.
        spec: geometry and activation.
    """
    left, right, top, bottom = spec.padding
    if spec.padding_mode != "zeros":
        x = F.pad(x, spec.padding, mode=spec.padding_mode)
        top = left = 0
    elif (left, top) != (right, bottom):
        x = F.pad(x, spec.padding)
        top = left = 0
    y = F.conv2d(x, weight, bias, spec.stride, (top, left), spec.dilation, spec.groups)
    return activate(y, spec.activation)


def sleep(
    y: Tensor, levels: Tensor, j: int | Tensor, scale: float | Tensor, grain: Grain
) -> Tensor:
    """Put neurons to sleep: scale the awake, write 0 over the sleepers.

    Args:
        y: ``[N, C, OH, OW]`` outputs of neurons that are all awake; left as it is.
        levels: uint8 level map ``[N, PC, CC]`` of this grain.
        j: threshold; a cell sleeps when its level is below it.
        scale: factor on awake outputs.

    Returns:
        a new tensor. A sleeper is 0 whatever it held, NaN and infinity too.
    """
    return sleep_(y.clone(), levels, j, scale, grain)


def sleep_(
    y: Tensor, levels: Tensor, j: int | Tensor, scale: float | Tensor, grain: Grain
) -> Tensor:
    """``sleep`` in place."""
    n, channels, height, width = y.shape
    bits = _SAME_SIZE[y.element_size()]
    # All ones where awake: clearing bits is exact for any value, and several times as fast as a
    # masked fill, which does not vectorise on the CPU.
    keep = expand_cells((levels >= j).to(bits).neg_(), (n, channels, height, width), grain)
    y.view(bits).bitwise_and_(keep)
    return y if isinstance(scale, float) and scale == 1 else y.mul_(scale)


_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
