"""The Drowsy Neuron in eager torch: the exact semantics every backend is held to.

Source: DrowsyNet, section III-A. In a layer's output a neuron is

    0                                   if it sleeps,
    scale * act(sum(x * w) + bias)      otherwise,

with ``scale = 1 / (1 - r)`` for the *rescaled* flavour and 1 for the *non-rescaled* one. The paper
writes the ReLU into the equation; here any activation stands in its place.

Beyond the paper, a sleeper may take its value from awake neurons of its own image and channel,
which are then not scaled:

- ``nearest``: the nearest awake neuron of the 5x5 window around it, of equally near ones the first
  by (row, column); 0 where nobody in the window is awake.
- ``interpolate``: the mean of the awake neurons of the 3x3 window, weighted by the inverse of their
  squared distance; where there are none, the same over the 5x5 window; else 0.
- ``stencil``: a constant plus a weighted sum of the awake neurons of the 3x3 window. Weights and
  constant are the channel's own, for each of the 256 sets of awake neighbours, from a table that
  ``drowsy.stencil`` makes of the layer's outputs on sample images.

Positions outside of the map do not count. A sleeper's own value is never read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.sleep import NEIGHBOUR_FILLS, Grain, expand_cells

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
    if spec.padding_mode != "zeros" or (left, top) != (right, bottom):
        x = padded_input(x, spec)
        top = left = 0
    y = F.conv2d(x, weight, bias, spec.stride, (top, left), spec.dilation, spec.groups)
    return activate(y, spec.activation)


def padded_input(x: Tensor, spec: ConvSpec) -> Tensor:
    """``x`` ``[N, C, H, W]`` with its padding written out, whatever the mode."""
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    return F.pad(x, spec.padding, mode=mode)


def sleep(
    y: Tensor,
    levels: Tensor,
    j: int | Tensor,
    scale: float | Tensor,
    grain: Grain,
    fill: str = "zero",
    table: Tensor | None = None,
) -> Tensor:
    """Put neurons to sleep: scale the awake, write the fill over the sleepers.

    Args:
        y: ``[N, C, OH, OW]`` outputs of neurons that are all awake; left as it is.
        levels: uint8 level map ``[N, PC, CC]`` of this grain.
        j: threshold; a cell sleeps when its level is below it.
        scale: factor on awake outputs; not read where sleepers are filled from them.
        grain: of the map; single positions for fills that read neighbours.
        fill: one of ``drowsy.sleep.FILLS``. ``rescale`` is ``zero``, with its factor in ``scale``.
        table: ``[256, 9, C]`` of ``stencil``: by set of awake neighbours (bit ``i`` is ``RING[i]``)
            the weights of the eight, and the constant.

    Returns:
        a new tensor, laid out like ``y``. What a sleeper held, NaN and infinity too, leaves no
        trace in it.
    """
    shape = (y.shape[0], y.shape[1], y.shape[2], y.shape[3])
    asleep = levels < j
    if fill in NEIGHBOUR_FILLS and y.numel() > 0:
        images, _, height, width = shape
        cells = asleep.view(images, height, width, -1).permute(0, 3, 1, 2)
        if fill == "stencil":
            assert table is not None
            return _stencil(y, cells, grain, table)
        return (_nearest if fill == "nearest" else _interpolate)(y, cells, grain)
    slept = _clear(y, asleep, grain)
    return slept if isinstance(scale, float) and scale == 1 else slept.mul_(scale)


def _clear(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """A copy of ``y`` with zeros where a cell of the boolean map ``[N, PC, CC]`` sleeps."""
    keep = _keep(y, asleep, grain)
    return (y.view(keep.dtype) & keep).view(y.dtype)


def clear_(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """Write zeros over the neurons of ``y`` whose cell of the boolean map ``[N, PC, CC]`` sleeps.

    They are cleared whatever they hold, NaN and infinity too.
    """
    keep = _keep(y, asleep, grain)
    y.view(keep.dtype).bitwise_and_(keep)
    return y


def _keep(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """Integers as large as elements of ``y``, all ones where awake and all zeros where asleep.

    Clearing bits is exact for any value, and several times as fast as a masked fill, which does not
    vectorise on the CPU.
    """
    n, channels, height, width = y.shape
    cells = asleep.to(_SAME_SIZE[y.element_size()]).sub_(1)
    return expand_cells(cells, (n, channels, height, width), grain)


_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# --- from awake neighbours -----------------------------------------------------------------------

_REACH = 2
_NOBODY = 255
# The 5x5 window but its centre, in the order in which ``nearest`` looks: (squared distance, row,
# column).
_WINDOW = sorted(
    (dy * dy + dx * dx, dy, dx)
    for dy in range(-_REACH, _REACH + 1)
    for dx in range(-_REACH, _REACH + 1)
)[1:]


# The neighbours of ``stencil``, in the order of its table.
RING = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
# Elements of sleepers predicted at a time: they stay in the cache.
_PART = 1 << 14


def _nearest(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` replaced by their nearest awake."""
    n, channels, height, width = y.shape
    # A sleeper is all ones, so that whatever is combined with it stays beyond every choice.
    padded = _pad(asleep.to(torch.uint8).mul_(_NOBODY), _NOBODY)
    choice = _shift(padded, 0, 0).clone()
    for number, (_, dy, dx) in enumerate(_WINDOW, start=1):
        torch.minimum(choice, _shift(padded, dy, dx) | number, out=choice)
    choice = _unpad(choice, padded)

    steps = torch.zeros(_NOBODY + 1, dtype=torch.int64)
    steps[1 : len(_WINDOW) + 1] = torch.tensor([dy * width + dx for _, dy, dx in _WINDOW])
    here = torch.arange(height * width, device=y.device).view(height, width)
    source = here + steps.to(y.device)[choice.int()]
    filled = torch.empty_like(y)
    source = _over_channels(source, channels, grain).expand_as(y)
    torch.gather(y.flatten(2), 2, source.flatten(2), out=filled.view(n, channels, -1))
    nobody = (choice == _NOBODY).permute(0, 2, 3, 1).flatten(1, 2)
    return _clear(filled, nobody, grain)


def _interpolate(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` replaced by means of neighbours."""
    channels = y.shape[1]
    dtype = torch.promote_types(y.dtype, torch.float32)
    awake = _clear(y, asleep.permute(0, 2, 3, 1).flatten(1, 2), grain)
    near, far = _window_sums(awake.to(dtype))
    near_weight, far_weight = _window_sums((~asleep).to(dtype))
    alone = near_weight == 0
    weight = torch.where(alone, far_weight, near_weight)
    # Nobody in the window: 0 / 1.
    weight += weight == 0
    mean = torch.where(_over_channels(alone, channels, grain), far, near)
    mean /= _over_channels(weight, channels, grain)
    sleeper = _over_channels(asleep, channels, grain)
    return torch.where(sleeper, mean.to(y.dtype), y, out=torch.empty_like(y))


def _stencil(y: Tensor, asleep: Tensor, grain: Grain, table: Tensor) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` predicted from their neighbours."""
    _, channels, height, width = y.shape
    # A cell's neurons lie together in a row, where all cells have as many.
    if channels % grain.cell(channels, 1)[1]:
        asleep = _over_channels(asleep, channels, grain)
    cells = asleep.shape[1]
    dtype = torch.promote_types(y.dtype, torch.float32)
    weights = table.to(dtype).view(len(table), len(RING) + 1, cells, channels // cells)

    awake = F.pad(~asleep, (1, 1, 1, 1))
    sets = torch.zeros_like(asleep, dtype=torch.int64)
    for bit, (dy, dx) in enumerate(RING):
        sets |= awake[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width].long() << bit
    sleepers = asleep.permute(0, 2, 3, 1).flatten().nonzero()[:, 0]
    # Sleepers with the same awake neighbours have the same weights.
    order = sets.permute(0, 2, 3, 1).flatten()[sleepers].sort(stable=True)
    counts = order.values.bincount(minlength=len(table)).tolist()

    filled = y.clone(memory_format=torch.channels_last)
    rows = filled.permute(0, 2, 3, 1).view(-1, channels // cells)
    for number, alike in enumerate(sleepers[order.indices].split(counts)):
        for part in alike.split(_PART // rows.shape[1] + 1):
            own = weights[number] if cells == 1 else weights[number][:, part % cells]
            value = own[-1].expand(len(part), -1).clone()
            for bit, (dy, dx) in enumerate(RING):
                if number >> bit & 1:
                    there = rows.index_select(0, part + (dy * width + dx) * cells)
                    value.addcmul_(own[bit], there.to(dtype))
            rows.index_copy_(0, part, value.to(y.dtype))
    if filled.stride() == y.stride():
        return filled
    return torch.empty_like(y).copy_(filled)


def _window_sums(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the 3x3 window, and over what the 5x5 window adds to it.

    Weighted by the inverse of the squared distance; the centre and what lies outside count 0.
    """
    padded = _pad(values, 0)
    near, far = (torch.zeros_like(_shift(padded, 0, 0)) for _ in range(2))
    for squared, dy, dx in _WINDOW:
        total = near if squared <= 2 else far
        total.add_(_shift(padded, dy, dx), alpha=1 / squared)
    return _unpad(near, padded), _unpad(far, padded)


# A shift of a padded map is a contiguous slice of its memory, of any layout: several times as fast
# as a slice of its rows and columns.


def _pad(values: Tensor, outside: int) -> Tensor:
    return F.pad(values, (_REACH,) * 4, value=outside)


def _shift(padded: Tensor, dy: int, dx: int) -> Tensor:
    """What lies ``(dy, dx)`` away, for every position, as one row."""
    steps = padded.stride(2), padded.stride(3)
    reach = _REACH * sum(steps)
    start = reach + dy * steps[0] + dx * steps[1]
    length = padded.numel() - 2 * reach
    return padded.as_strided((length,), (1,), start)


def _unpad(row: Tensor, padded: Tensor) -> Tensor:
    """The map ``[N, C, OH, OW]`` in a row that was made from shifts of ``padded``."""
    n, channels, height, width = padded.shape
    size = (n, channels, height - 2 * _REACH, width - 2 * _REACH)
    return row.as_strided(size, padded.stride())


def _over_channels(cells: Tensor, channels: int, grain: Grain) -> Tensor:
    """A map ``[N, CC, OH, OW]`` in a shape that broadcasts to ``[N, channels, OH, OW]``."""
    if cells.shape[1] in (1, channels):
        return cells
    return cells.repeat_interleave(grain.cell(channels, 1)[1], dim=1)[:, :channels]
