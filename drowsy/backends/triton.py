"""The Triton backend: CUDA tensors, or CPU tensors under Triton's interpreter."""

from __future__ import annotations

import functools

import drowsy_kernels as kernels
import torch
import torch.nn.functional as F
from drowsy_kernels import tuning
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

# The rate is on the device and may change under a captured graph: a layer is run as suits this one.
_EXPECTED_RATE = 0.5


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
    choice = choose(x, packed, spec, padding, cell)
    options = {
        "padding": padding,
        "dilation": spec.dilation,
        "activation": spec.activation,
        "bitmap": bitmap,
        "cell": cell,
        "scale": scale,
        "precision": _precision(x),
        "config": choice.config,
    }
    # What only the tensors at hand show, such as an odd address, is left to the kernel to say.
    if choice.method == "box" and not kernels.box_supports(x, packed):
        y = kernels.conv2d_box(x, packed, bias, **options)
    else:
        if choice.method == "box":
            options["config"] = None
        awake = list_awake(choice.method, sleep, bitmap, shape, cell, threshold)
        y = kernels.conv2d(x, packed, bias, stride=spec.stride, awake=awake, **options)
    if choice.method in ("cells", "rows") or fill in NEIGHBOUR_FILLS:
        kernels.fill_sleepers(y, bitmap, cell, fill)
    return y


def choose(
    x: Tensor,
    weight: kernels.PackedWeight,
    spec: ConvSpec,
    padding: tuple[int, int, int, int],
    cell: tuple[int, int],
) -> tuning.Choice:
    """The way that a layer takes at whatever rate is set on the device."""
    choice = _choose(
        tuning.ConvShape(
            weight.in_channels,
            weight.out_channels,
            (x.shape[2], x.shape[3]),
            weight.kernel_size,
            spec.stride,
            padding,
            spec.dilation,
            spec.groups,
        ),
        x.shape[0],
        tuning.number_format(x.dtype, _precision(x)),
        cell,
        x.device,
    )
    return choice


@functools.lru_cache(maxsize=4096)
def _choose(
    shape: tuning.ConvShape,
    images: int,
    number: str,
    cell: tuple[int, int],
    device: torch.device,
) -> tuning.Choice:
    cuda = device.type == "cuda"
    return tuning.choose(
        shape,
        images=images,
        number=number,
        cell=cell,
        rate=_EXPECTED_RATE,
        table=tuning.table_for(torch.cuda.get_device_name(device)) if cuda else None,
        capability=torch.cuda.get_device_capability(device) if cuda else None,
    )


def _precision(x: Tensor) -> str:
    return "tf32" if torch.backends.cudnn.allow_tf32 and x.is_cuda else "ieee"


def list_awake(
    method: str,
    sleep: SleepSpec,
    bitmap: Tensor,
    shape: tuple[int, int, int, int],
    cell: tuple[int, int],
    threshold: Tensor,
) -> kernels.AwakeCells | kernels.AwakeRows | kernels.AwakeChannels | None:
    """The list that a method works through; None for those that do without."""
    if method == "rows":
        run = exact_run(sleep, shape)
        exact = None if run is None else (run, threshold)
        return kernels.awake_rows(bitmap, shape, cell, exact=exact)
    if method == "cells":
        return kernels.awake_cells(bitmap, shape, cell)
    return kernels.awake_channels(bitmap, shape, cell) if method == "channels" else None


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
