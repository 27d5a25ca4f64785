"""The operator behind a drowsy layer, and the choice of its backend.

``torch.ops.drowsy.conv2d`` is one opaque node to ``torch.compile``, ``torch.export`` and fx. Its
run-time arguments (rates, seed) are tensors, so a captured or compiled network follows the knob.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy import neuron
from drowsy.sleep import Lattice, Lfsr, SleepSpec, lattice_tables, levels, lfsr_tables

BACKENDS = ("auto", "torch", "triton")

_library = torch.library.Library("drowsy", "DEF")
_library.define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor thresholds, Tensor scales, Tensor clock,"
    " int index, int[2] stride, int[4] padding, str padding_mode, int[2] dilation, int groups,"
    " str activation, str sleep, str backend) -> Tensor"
)


def choose_backend(requested: str, device: torch.device) -> str:
    """``triton`` or ``torch`` for tensors on this device.

    ``auto`` means Triton on CUDA and torch elsewhere. Triton on the CPU needs its interpreter.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend: got {requested!r}, allowed: {', '.join(BACKENDS)}")
    if requested == "auto":
        return "triton" if device.type == "cuda" else "torch"
    return requested


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    thresholds: Tensor,
    scales: Tensor,
    clock: Tensor,
    index: int,
    stride: list[int],
    padding: list[int],
    padding_mode: str,
    dilation: list[int],
    groups: int,
    activation: str,
    sleep: str,
    backend: str,
) -> Tensor:
    spec = SleepSpec.parse(sleep)
    run = _conv2d_triton if choose_backend(backend, x.device) == "triton" else _conv2d_torch
    return run(
        x,
        weight,
        bias,
        thresholds[index],
        scales[index],
        clock,
        spec,
        (stride[0], stride[1]),
        (padding[0], padding[1], padding[2], padding[3]),
        padding_mode,
        (dilation[0], dilation[1]),
        groups,
        activation,
    )


def _conv2d_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor,
    clock: Tensor,
    spec: SleepSpec,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    padding_mode: str,
    dilation: tuple[int, int],
    groups: int,
    activation: str,
) -> Tensor:
    y = neuron.awake_conv2d(
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        dilation=dilation,
        groups=groups,
        activation=activation,
    )
    # On the CPU the threshold is at hand without a synchronisation: rate 0 costs nothing.
    if threshold.device.type == "cpu" and threshold.item() == 0:
        return y
    n, channels, height, width = y.shape
    drawn = levels(spec, (n, channels, height, width), clock)
    return neuron.sleep(y, drawn, threshold, scale, spec.grain)


def _conv2d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor,
    clock: Tensor,
    spec: SleepSpec,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    padding_mode: str,
    dilation: tuple[int, int],
    groups: int,
    activation: str,
) -> Tensor:
    # Imported here: ``import drowsy`` must work where Triton finds no driver.
    import drowsy_kernels as kernels

    if x.dim() != 4:
        raise ValueError(f"input: got {tuple(x.shape)}, allowed: [N, C, H, W]")
    if padding_mode != "zeros":
        x, padding = F.pad(x, padding, mode=padding_mode), (0, 0, 0, 0)
    packed = kernels.pack_weight(weight, groups)
    size = kernels.output_size(
        (x.shape[2], x.shape[3]), packed.kernel_size, stride, padding, dilation
    )
    shape = (x.shape[0], weight.shape[0], *size)
    cell = spec.grain.cell(shape[1], size[0] * size[1])
    bitmap = _draw_bitmap(spec, shape, cell, threshold, clock)
    return kernels.conv2d(
        x,
        packed,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        bitmap=bitmap,
        cell=cell,
        scale=scale,
        precision="tf32" if torch.backends.cudnn.allow_tf32 and x.is_cuda else "ieee",
    )


def _draw_bitmap(
    spec: SleepSpec,
    shape: tuple[int, int, int, int],
    cell: tuple[int, int],
    threshold: Tensor,
    clock: Tensor,
) -> Tensor:
    """The packed sleep bitmap of a layer, drawn by a Triton kernel."""
    import drowsy_kernels as kernels

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


def _conv2d_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    thresholds: Tensor,
    scales: Tensor,
    clock: Tensor,
    index: int,
    stride: list[int],
    padding: list[int],
    padding_mode: str,
    dilation: list[int],
    groups: int,
    activation: str,
    sleep: str,
    backend: str,
) -> Tensor:
    """What the operator returns, for tracing: shape, dtype and strides without values."""
    left, right, top, bottom = padding
    x = F.pad(x, (left, right, top, bottom))
    y = F.conv2d(x, weight, bias, stride, 0, dilation, groups)
    if choose_backend(backend, x.device) == "triton":
        y = y.contiguous(memory_format=torch.channels_last)
    return y


for _key in ("CPU", "CUDA"):
    _library.impl("conv2d", _conv2d, _key)
torch.library.register_fake("drowsy::conv2d", _conv2d_shape, lib=_library)
