"""The operator behind a drowsy layer, and the choice of its backend.

``torch.ops.drowsy.conv2d`` is one opaque node to ``torch.compile``, ``torch.export`` and fx. Its
run-time arguments (rates, seed) are tensors, so a captured or compiled network follows the knob.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.backends import cpu, eager
from drowsy.neuron import ConvSpec
from drowsy.sleep import SleepSpec

BACKENDS = ("auto", "torch", "triton")

_library = torch.library.Library("drowsy", "DEF")
_library.define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor thresholds, Tensor scales, Tensor clock,"
    " Tensor? table, int index, int[2] stride, int[4] padding, str padding_mode, int[2] dilation,"
    " int groups, str activation, str sleep, str fill, str backend) -> Tensor"
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
    table: Tensor | None,
    index: int,
    stride: list[int],
    padding: list[int],
    padding_mode: str,
    dilation: list[int],
    groups: int,
    activation: str,
    sleep: str,
    fill: str,
    backend: str,
) -> Tensor:
    spec = ConvSpec(
        (stride[0], stride[1]),
        (padding[0], padding[1], padding[2], padding[3]),
        padding_mode,
        (dilation[0], dilation[1]),
        groups,
        activation,
    )
    arguments = (x, weight, bias, thresholds[index], scales[index], clock, spec)
    if choose_backend(backend, x.device) == "torch":
        backend_module = cpu if x.device.type == "cpu" else eager
        return backend_module.conv2d(*arguments, SleepSpec.parse(sleep), fill, table)
    # Imported here: ``import drowsy`` must work where Triton finds no driver.
    from drowsy.backends import triton

    return triton.conv2d(*arguments, SleepSpec.parse(sleep), fill, table)


def _conv2d_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    thresholds: Tensor,
    scales: Tensor,
    clock: Tensor,
    table: Tensor | None,
    index: int,
    stride: list[int],
    padding: list[int],
    padding_mode: str,
    dilation: list[int],
    groups: int,
    activation: str,
    sleep: str,
    fill: str,
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
