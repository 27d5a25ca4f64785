"""The Triton backend: CUDA tensors, or CPU tensors under Triton's interpreter."""

from __future__ import annotations

import drowsy_kernels as kernels
import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.neuron import ConvSpec
from drowsy.sleep import NEIGHBOUR_FILLS, Lattice, Lfsr, SleepSpec, lattice_tables, lfsr_tables


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
        scale=scale,
        precision="tf32" if torch.backends.cudnn.allow_tf32 and x.is_cuda else "ieee",
    )
    if fill in NEIGHBOUR_FILLS:
        kernels.fill_sleepers(y, bitmap, cell, fill)
    return y


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
