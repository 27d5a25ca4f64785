"""The Triton backend: CUDA tensors, or CPU tensors under Triton's interpreter."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels import tuning
from drowsy_kernels.conv2d import Awake
from torch import Tensor

from drowsy.neuron import ConvSize, ConvSpec, autocast_dtype, padded
from drowsy.sleep import NEIGHBOUR_FILLS, LayerMap, SleepSpec, Source

# The rate is on the device and may change under a captured graph: a layer is run as suits this one.
_EXPECTED_RATE = 0.5
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    table: Tensor | None = None,
    detail: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """A drowsy layer; arguments as for ``backends.eager.conv2d``, the result is channels_last."""
    x, spec = padded(x, spec)
    packed = kernels.pack_weight(weight, spec.groups)
    size = kernels.output_size(
        (x.shape[2], x.shape[3]), packed.kernel_size, spec.stride, spec.padding, spec.dilation
    )
    shape = (x.shape[0], weight.shape[0], *size)
    cell = sleep.grain.cell(shape[1], size[0] * size[1])
    bitmap = draw_bitmap(sleep, shape, cell, threshold, clock, detail)
    choice = choose(x.shape, weight.shape, x.dtype, x.device, spec, cell)
    awake = list_awake(choice.method, sleep, bitmap, shape, cell, threshold)
    sleepers: dict[str, Any] = {"bitmap": bitmap, "cell": cell, "awake": awake, "scale": scale}
    y = convolve(choice, x, packed, bias, spec, slopes=slopes, **sleepers)
    if fill in NEIGHBOUR_FILLS or isinstance(awake, (kernels.AwakeCells, kernels.AwakeRows)):
        kernels.fill_sleepers(y, bitmap, cell, fill, table=table)
    return y


def choose(
    size: Sequence[int],
    weight_size: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    spec: ConvSpec,
    cell: tuple[int, int],
) -> tuning.Choice:
    """The way that a layer takes at whatever rate is set on the device.

    Args:
        size: ``[N, C, H, W]`` of the input, as ``padded`` leaves it.
        weight_size: ``[OC, C / groups, KH, KW]``.
        dtype, device: of the input.
        spec: as ``padded`` leaves it.
        cell: positions and channels that share a bit.
    """
    shape = conv_shape(ConvSize(tuple(size), tuple(weight_size), spec))  # type: ignore[arg-type]
    number = tuning.number_format(dtype, precision(device))
    return _choose(shape, max(size[0], 1), number, device, cell, _EXPECTED_RATE, False)


def library_wins(x: Tensor, weight: Tensor, spec: ConvSpec) -> bool:
    """Whether torch's own convolution is the fastest way to a layer in which nobody sleeps."""
    dtype = autocast_dtype(x)
    if dtype not in _DTYPES or spec.padding_mode != "zeros":
        return True
    shape = conv_shape(ConvSize(tuple(x.shape), tuple(weight.shape), spec))  # type: ignore[arg-type]
    number = tuning.number_format(dtype, precision(x.device))
    return _choose(shape, max(len(x), 1), number, x.device, (1, 1), 0.0, True).method == "cudnn"


def conv_shape(size: ConvSize) -> tuning.ConvShape:
    """A convolution's size as the kernels have it: without its batch and its activation."""
    _, channels, height, width = size.input
    spec = size.spec
    return tuning.ConvShape(
        channels,
        size.weight[0],
        (height, width),
        size.kernel,
        spec.stride,
        spec.padding,
        spec.dilation,
        spec.groups,
    )


@functools.lru_cache(maxsize=4096)
def _choose(
    shape: tuning.ConvShape,
    images: int,
    number: str,
    device: torch.device,
    cell: tuple[int, int],
    rate: float,
    fixed_rate: bool,
) -> tuning.Choice:
    cuda = device.type == "cuda"
    return tuning.choose(
        shape,
        images=images,
        number=number,
        cell=cell,
        rate=rate,
        fixed_rate=fixed_rate,
        table=tuning.table_for(torch.cuda.get_device_name(device)) if cuda else None,
        capability=torch.cuda.get_device_capability(device) if cuda else None,
    )


def convolve(
    choice: tuning.Choice,
    x: Tensor,
    weight: kernels.PackedWeight,
    bias: Tensor | None,
    spec: ConvSpec,
    *,
    awake: Awake | None = None,
    x_blocks: kernels.AwakeBlocks | None = None,
    **options: Any,
) -> Tensor:
    """Run a layer as chosen; ``options`` as for ``kernels.conv2d``."""
    options |= {
        "padding": spec.padding,
        "dilation": spec.dilation,
        "activation": spec.activation,
        "precision": precision(x.device),
    }
    config = choice.config
    if choice.method == "box":
        # What only the tensors at hand show, such as an odd address, the kernel itself must say.
        if x_blocks is None and not kernels.box_supports(x, weight):
            return kernels.conv2d_box(x, weight, bias, config=config, **options)
        config = None
    if x_blocks is not None:
        config = None  # its K step is that of the blocks
    return kernels.conv2d(
        x,
        weight,
        bias,
        stride=spec.stride,
        awake=awake,
        x_blocks=x_blocks,
        config=config,
        **options,
    )


def precision(device: torch.device) -> str:
    """How float32 products are made: as in torch's own convolutions."""
    return "tf32" if torch.backends.cudnn.allow_tf32 and device.type == "cuda" else "ieee"


def list_awake(
    method: str,
    sleep: SleepSpec,
    bitmap: Tensor,
    shape: tuple[int, int, int, int],
    cell: tuple[int, int],
    threshold: Tensor,
) -> Awake | None:
    """The list that a method works through; None for those that do without."""
    if method == "rows":
        run = exact_run(sleep, shape)
        exact = None if run is None else (run, threshold)
        return kernels.awake_rows(bitmap, shape, cell, exact=exact)
    if method == "cells":
        return kernels.awake_cells(bitmap, shape, cell)
    return kernels.awake_channels(bitmap, shape, cell) if method == "channels" else None


def exact_run(spec: SleepSpec, shape: tuple[int, int, int, int]) -> int | None:
    """``k`` where the map itself says how many positions are awake in every block of a list.

    Lists of rows are then built without counting (``kernels.awake_rows``).
    """
    _, _, height, width = shape
    if not spec.grain.of_single_positions or height * width <= 1 or spec.k & (spec.k - 1):
        return None
    run = spec.source.exact_run(spec.layer_map(shape))
    # As many are awake in every run, and no run straddles two blocks.
    return spec.k if run is not None and kernels.LIST_BLOCK % run == 0 else None


def draw_bitmap(
    spec: SleepSpec,
    shape: tuple[int, int, int, int],
    cell: tuple[int, int],
    threshold: Tensor,
    clock: Tensor,
    detail: Tensor | None = None,
) -> Tensor:
    """The packed sleep bitmap of a layer, drawn by a Triton kernel."""
    return kernels.sleep_map(
        spec.source.name,
        shape,
        cell=cell,
        k=spec.k,
        stream=spec.stream,
        threshold=threshold,
        clock=clock,
        **map_options(spec, shape, clock, detail),
    )


def map_options(
    spec: SleepSpec,
    shape: tuple[int, int, int, int],
    clock: Tensor,
    detail: Tensor | None = None,
) -> dict[str, Any]:
    """What else ``kernels.sleep_map`` needs of a source: its tables, on the clock's device."""
    spec.check_seen(shape[0], detail)
    layer = spec.layer_map(shape, detail)
    return kernel_options(spec.source, layer, spec.source.tables(layer, clock[0]))


def kernel_options(source: Source, layer: LayerMap, tables: tuple[Tensor, ...]) -> dict[str, Any]:
    """A source's tables as ``kernels.sleep_map`` takes them: under the source's name."""
    if not tables:
        return {"upside_down": layer.upside_down}
    return {source.name: tables if len(tables) > 1 else tables[0]}
