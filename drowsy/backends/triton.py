"""The Triton backend: CUDA tensors, or CPU tensors under Triton's interpreter."""

from __future__ import annotations

import drowsy_kernels as kernels
import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.neuron import ConvSpec
from drowsy.sleep import (
    NEIGHBOUR_FILLS,
    Lattice,
    Lfsr,
    SleepSpec,
    Stratified,
    lattice_tables,
    lfsr_tables,
)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor,
    clock: Tensor,
    spec: ConvSpec,
    sleep: SleepSpec,
    fill: str,
) -> Tensor:
    """A drowsy layer; arguments as for ``backends.eager.conv2d``, the result is channels_last."""
    if x.dim() != 4:
        raise ValueError(f"input: got {tuple(x.shape)}, allowed: [N, C, H, W]")
    padding = spec.padding
    if spec.padding_mode != "zeros":
        x, padding = F.pad(x, padding, mode=spec.padding_mode), (0, 0, 0, 0)
    packed = kernels.pack_weight(weight, spec.groups)
    size = kernels.output_size(
        (x.shape[2], x.shape[3]), packed.kernel_size, spec.stride, padding, spec.dilation
    )
    shape = (x.shape[0], weight.shape[0], *size)
    cell = sleep.grain.cell(shape[1], size[0] * size[1])
    bitmap = draw_bitmap(sleep, shape, cell, threshold, clock)
    # Depthwise layers are bound by memory and follow no list.
    way = "masked" if packed.depthwise else choose_way(cell, shape)
    awake = list_awake(way, bitmap, shape, cell, exact_run(sleep, shape), threshold)
    y = kernels.conv2d(
        x,
        packed,
        bias,
        stride=spec.stride,
        padding=padding,
        dilation=spec.dilation,
        activation=spec.activation,
        bitmap=bitmap,
        cell=cell,
        awake=awake,
        scale=scale,
        precision="tf32" if torch.backends.cudnn.allow_tf32 and x.is_cuda else "ieee",
    )
    if fill in NEIGHBOUR_FILLS or isinstance(awake, (kernels.AwakeCells, kernels.AwakeRows)):
        kernels.fill_sleepers(y, bitmap, cell, fill)
    return y


# The least tile of a convolution, positions by channels. Smaller cells leave nothing to skip.
_LEAST_TILE = (64, 16)


def choose_way(cell: tuple[int, int], shape: tuple[int, int, int, int]) -> str:
    """How a layer of this output is run: through a list of awake ``cells``, ``rows`` or
    ``channels``, or ``masked``, where everything is computed.

    Args:
        cell: ``(cell_p, cell_c)`` of the sleep map.
        shape: ``(N, C, OH, OW)``.
    """
    _, channels, height, width = shape
    if cell[0] >= height * width > 1:
        return "channels"
    if cell[1] < min(_LEAST_TILE[1], channels):
        return "masked"
    if cell[0] == 1:
        return "rows"
    return "cells" if cell[0] >= _LEAST_TILE[0] else "masked"


def list_awake(
    way: str,
    bitmap: Tensor,
    shape: tuple[int, int, int, int],
    cell: tuple[int, int],
    run: int | None,
    threshold: Tensor,
) -> kernels.AwakeCells | kernels.AwakeRows | kernels.AwakeChannels | None:
    """The list that a way of ``choose_way`` works through; ``run`` is that of ``exact_run``."""
    if way == "rows":
        exact = None if run is None else (run, threshold)
        return kernels.awake_rows(bitmap, shape, cell, exact=exact)
    if way == "cells":
        return kernels.awake_cells(bitmap, shape, cell)
    return kernels.awake_channels(bitmap, shape, cell) if way == "channels" else None


def exact_run(spec: SleepSpec, shape: tuple[int, int, int, int]) -> int | None:
    """``k`` where exactly ``k - j`` of every ``k`` positions in a row are awake, for any ``j``.

    Lists of rows are then built without counting (``kernels.awake_rows``).
    """
    _, _, height, width = shape
    length = height * width if isinstance(spec.source, Stratified) else width
    exact = (
        isinstance(spec.source, (Stratified, Lattice))
        and spec.grain.of_single_positions
        and height * width > 1
    )
    # A power of two, so that runs do not straddle the blocks that kernels list at a time.
    return spec.k if exact and length % spec.k == 0 and spec.k & (spec.k - 1) == 0 else None


def draw_bitmap(
    spec: SleepSpec,
    shape: tuple[int, int, int, int],
    cell: tuple[int, int],
    threshold: Tensor,
    clock: Tensor,
) -> Tensor:
    """The packed sleep bitmap of a layer, drawn by a Triton kernel."""
    lattice = lfsr = None
    if isinstance(spec.source, Lattice):
        slope, order = lattice_tables(spec.k)
        lattice = (slope, order.to(clock.device))
    elif isinstance(spec.source, Lfsr):
        lfsr = lfsr_tables(spec.source, spec.k, spec.stream, clock[0])
    return kernels.sleep_map(
        spec.source.name,
        shape,
        cell=cell,
        k=spec.k,
        stream=spec.stream,
        threshold=threshold,
        clock=clock,
        lattice=lattice,
        lfsr=lfsr,
    )
