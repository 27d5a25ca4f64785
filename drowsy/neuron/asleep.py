"""A neuron asleep: the awake are scaled, and sleepers get their fill."""

from __future__ import annotations

import torch
from torch import Tensor

from drowsy.neuron.stencil import predict
from drowsy.neuron.window import NEAR, WINDOW, over_channels, pad, shift, unpad
from drowsy.sleep import NEIGHBOUR_FILLS, Grain, expand_cells


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
    asleep = levels < j
    return _laid_out(_slept(y, asleep, scale, grain, fill, table), y)


def _slept(
    y: Tensor, asleep: Tensor, scale: float | Tensor, grain: Grain, fill: str, table: Tensor | None
) -> Tensor:
    if fill in NEIGHBOUR_FILLS and y.numel() > 0:
        images, _, height, width = y.shape
        cells = asleep.view(images, height, width, -1).permute(0, 3, 1, 2)
        if fill == "stencil":
            assert table is not None
            return predict(y, cells, grain, table)
        return (_nearest if fill == "nearest" else _interpolate)(y, cells, grain)
    slept = _clear(y, asleep, grain)
    return slept if isinstance(scale, float) and scale == 1 else slept.mul_(scale)


def _laid_out(values: Tensor, like: Tensor) -> Tensor:
    """``values`` with the very strides of a tensor of the same layout.

    Strides of dimensions of size 1 are not in use, but what reads a tensor tells its memory format
    by them too, and ``torch.empty_like`` does not keep them.
    """
    strides = zip(like.shape, values.stride(), like.stride(), strict=True)
    if any(size > 1 and stride != wanted for size, stride, wanted in strides):
        return values  # ``like`` is not dense
    return values.as_strided(like.shape, like.stride())


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
    # In bytes first: subtracting then takes an eighth of the time, and so does turning a map round.
    cells = asleep.view(torch.int8).sub(1)
    if height * width > 1 < channels and y.is_contiguous() and min(cells.shape[1:]) > 1:
        cells = cells.transpose(1, 2).contiguous().transpose(1, 2)
    cells = cells.to(SAME_SIZE[y.element_size()])
    return expand_cells(cells, (n, channels, height, width), grain)


SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# --- from awake neighbours -----------------------------------------------------------------------

NOBODY = 255


def _nearest(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` replaced by their nearest awake."""
    n, channels, height, width = y.shape
    choice = choose_nearest(asleep)
    here = torch.arange(height * width, device=y.device).view(height, width)
    source = here + steps_to_nearest(width, y.device)[choice.int()]
    filled = torch.empty_like(y)
    source = over_channels(source, channels, grain).expand_as(y)
    torch.gather(y.flatten(2), 2, source.flatten(2), out=filled.view(n, channels, -1))
    nobody = (choice == NOBODY).permute(0, 2, 3, 1).flatten(1, 2)
    return _clear(filled, nobody, grain)


def steps_to_nearest(width: int, device: torch.device) -> Tensor:
    """How far away in a map of this width the neuron is that ``choose_nearest`` numbers so."""
    steps = torch.zeros(NOBODY + 1, dtype=torch.int64)
    steps[1 : len(WINDOW) + 1] = torch.tensor([dy * width + dx for _, dy, dx in WINDOW])
    return steps.to(device)


def choose_nearest(asleep: Tensor) -> Tensor:
    """Whom each neuron takes its value from, for a boolean map ``[N, CC, OH, OW]``.

    A neuron starts with 0 if it is awake and with 255 if it sleeps. Every neighbour offers its own
    start OR its number, its place in ``WINDOW`` counted from 1: the number if it is awake, 255 if
    it sleeps or lies outside. The least of start and offers is the choice. For three neurons in a
    row, the first of them awake:

        neuron                              A     B     C
        start                               0   255   255
        offer of the left one, 2          255     2   255
        offer of the second left, 10      255   255    10
        every other offer                 255   255   255      (A hears of sleepers alone)
        choice                              0     2    10

    A keeps its value, B and C take A's. The number grows with the distance, so that the nearest
    wins, and the first in ``WINDOW`` of equally near ones.

    Returns:
        uint8 ``[N, CC, OH, OW]``: 0 itself, a neighbour's number, or 255 for nobody.
    """
    start = pad(asleep.to(torch.uint8).mul_(NOBODY), NOBODY)
    choice = shift(start, 0, 0).clone()
    for number, (_, dy, dx) in enumerate(WINDOW, start=1):
        torch.minimum(choice, shift(start, dy, dx) | number, out=choice)
    return unpad(choice, start)


def _interpolate(y: Tensor, asleep: Tensor, grain: Grain) -> Tensor:
    """``y`` with the sleepers of the map ``[N, CC, OH, OW]`` replaced by means of neighbours."""
    channels = y.shape[1]
    dtype = torch.promote_types(y.dtype, torch.float32)
    awake = _clear(y, asleep.permute(0, 2, 3, 1).flatten(1, 2), grain)
    near, far = window_sums(awake.to(dtype))
    near_weight, far_weight = window_sums((~asleep).to(dtype))
    alone = near_weight == 0
    weight = torch.where(alone, far_weight, near_weight)
    # Nobody in the window: 0 / 1.
    weight += weight == 0
    mean = torch.where(over_channels(alone, channels, grain), far, near)
    mean /= over_channels(weight, channels, grain)
    sleeper = over_channels(asleep, channels, grain)
    return torch.where(sleeper, mean.to(y.dtype), y, out=torch.empty_like(y))


def window_sums(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the 3x3 window, and over what the 5x5 window adds to it.

    Weighted by the inverse of the squared distance; the centre and what lies outside count 0.
    """
    padded = pad(values, 0)
    near, far = (torch.zeros_like(shift(padded, 0, 0)) for _ in range(2))
    for squared, dy, dx in WINDOW:
        total = near if squared <= NEAR else far
        total.add_(shift(padded, dy, dx), alpha=1 / squared)
    return unpad(near, padded), unpad(far, padded)
