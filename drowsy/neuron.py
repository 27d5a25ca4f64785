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


def awake_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    padding_mode: str,
    dilation: tuple[int, int],
    groups: int,
    activation: str,
) -> Tensor:
    """What the neurons would output if none slept: ``act(conv2d(x) + bias)``.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, any floating dtype and memory format.
        weight: ``[OC, C / groups, KH, KW]`` of the same dtype.
        bias: ``[OC]`` or None.
        padding: cells added ``(left, right, top, bottom)``.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
        activation: one of ``ACTIVATIONS``.
    """
    left, right, top, bottom = padding
    if padding_mode != "zeros":
        x = F.pad(x, padding, mode=padding_mode)
        top = left = 0
    elif (left, top) != (right, bottom):
        x = F.pad(x, padding)
        top = left = 0
    y = F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return _activation(activation)(y)


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
    n, channels, height, width = y.shape
    bits = _SAME_SIZE[y.element_size()]
    # All ones where awake: clearing bits is exact for any value, and several times as fast as a
    # masked fill, which does not vectorise on the CPU.
    keep = expand_cells((levels >= j).to(bits).neg_(), (n, channels, height, width), grain)
    slept = (y.view(bits) & keep).view(y.dtype)
    return slept if isinstance(scale, float) and scale == 1 else slept.mul_(scale)


_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
