"""The operator behind a drowsy layer, and the choice of its backend.

``torch.ops.drowsy.conv2d`` is one opaque node to ``torch.compile``, ``torch.export`` and fx. Its
run-time arguments (rates, seed) are tensors, so a captured or compiled network follows the knob.
``torch.ops.drowsy.detail`` is another, ``drowsy.sleep.detail_map``: what sources see of a network's
input, computed once and given to its layers.

Under ``torch.autocast`` it is a convolution like torch's own: input, weight and bias are rounded to
autocast's dtype (float64 stays), and so are slopes and the output, at every rate. A folded batch
norm is part of the weight and bias, which are folded in float32 at least and then rounded once; a
batch norm of its own after the layer is torch's, and takes the layer's output as it takes a
convolution's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from drowsy import neuron
from drowsy.backends import cpu, eager
from drowsy.neuron import ConvSpec
from drowsy.sleep import SleepSpec, detail_grid, detail_map
from drowsy.sleep.turning import TURNING

BACKENDS = ("auto", "torch", "triton")

_library = torch.library.Library("drowsy", "DEF")
_library.define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor thresholds, Tensor scales, Tensor clock,"
    f" Tensor? table, int index, {ConvSpec.SCHEMA}, str sleep, str fill, str backend,"
    " Tensor? detail=None, Tensor? slopes=None) -> Tensor"
)
_library.define("detail(Tensor pictures) -> Tensor")


def choose_backend(requested: str, device: torch.device) -> str:
    """``triton`` or ``torch`` for tensors on this device.

    ``auto`` means Triton on CUDA and torch elsewhere. Triton on the CPU needs its interpreter.
    """
    if requested not in BACKENDS:
        raise ValueError(f"backend: got {requested!r}, allowed: {', '.join(BACKENDS)}")
    if requested == "auto":
        return "triton" if device.type == "cuda" else "torch"
    return requested


class _Call(NamedTuple):
    """The operator's arguments, those of the specification as one."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    thresholds: Tensor
    scales: Tensor
    clock: Tensor
    table: Tensor | None
    layer: int
    spec: ConvSpec
    sleep: str
    fill: str
    backend: str
    detail: Tensor | None = None
    slopes: Tensor | None = None

    @classmethod
    def of(cls, *arguments: Any) -> _Call:
        """Arguments in the order of the operator's schema."""
        before, told, after = arguments[:_BEFORE], arguments[_BEFORE:_END], arguments[_END:]
        spec = ConvSpec.of(*told).at(arguments[0].shape[-2:])
        call = cls(*before, spec, *after)  # type: ignore[call-arg]
        if call.x.dim() != 4:
            raise ValueError(f"input: got {tuple(call.x.shape)}, allowed: [N, C, H, W]")
        return call


# Where the arguments of the specification begin and end.
_BEFORE = _Call._fields.index("spec")
_END = _BEFORE + ConvSpec.SCHEMA.count(",") + 1
# Where those are that autocast rounds: input, weight, bias and, the last of all, slopes.
_ROUNDED = {0, 1, 2, _END + len(_Call._fields[_BEFORE + 1 :]) - 1}


def _conv2d(*arguments: Any) -> Tensor:
    call = _Call.of(*arguments)
    x, layer, sleep = call.x, call.layer, SleepSpec.parse(call.sleep)
    on_torch = choose_backend(call.backend, x.device) == "torch"
    if x.device.type == "cpu" and on_torch:
        knob = (call.thresholds, call.scales, call.clock)
        return on_cpu(
            x,
            call.weight,
            call.bias,
            *knob,
            layer,
            call.spec,
            sleep,
            call.fill,
            call.table,
            call.slopes,
            call.detail,
        )
    threshold, scale = call.thresholds[layer], call.scales[layer]
    if x.device.type == "cpu":
        with TURNING:  # of one setting
            threshold, scale = threshold.clone(), scale.clone()
    if x.dtype == torch.float64:
        scale = _in_float64(scale, threshold, sleep.k)
    knob = (threshold, scale, call.clock)
    given = (x, call.weight, call.bias, *knob, call.spec, sleep, call.fill, call.table)
    if on_torch:
        return eager.conv2d(*given, call.detail, call.slopes)
    # Imported here: ``import drowsy`` must work where Triton finds no driver.
    from drowsy.backends import triton

    return triton.conv2d(*given, call.detail, call.slopes)


def on_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    thresholds: Tensor,
    scales: Tensor,
    clock: Tensor,
    layer: int,
    spec: ConvSpec,
    sleep: SleepSpec,
    fill: str,
    table: Tensor | None,
    slopes: Tensor | None,
    detail: Tensor | None = None,
) -> Tensor:
    """What the operator does with tensors on the CPU; arguments as for it, but for the texts.

    The operator's dispatch takes tens of microseconds, which small layers notice: where nobody
    records operators, a layer calls this.
    """
    with TURNING:  # of one setting
        j, factor = int(thresholds[layer].item()), scales[layer].item()
    if x.dtype == torch.float64:
        factor = float(_in_float64(torch.tensor(factor), torch.tensor(j), sleep.k))
    return cpu.conv2d(x, weight, bias, j, factor, clock, spec, sleep, fill, table, slopes, detail)


def _in_float64(scale: Tensor, threshold: Tensor, k: int) -> Tensor:
    """The factor that the knob holds in float32, as exact as the rate that it stands for."""
    rescale = k / (k - threshold.double())
    return torch.where(rescale.float() == scale, rescale, scale.double())


def _conv2d_shape(*arguments: Any) -> Tensor:
    """What the operator returns, for tracing: shape, dtype and strides without values."""
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(NO_ONNX)
    call = _Call.of(*arguments)
    y = neuron.awake_conv2d(call.x, call.weight, call.bias, call.spec, call.slopes)
    if choose_backend(call.backend, call.x.device) == "triton":
        y = torch.empty_like(y, memory_format=torch.channels_last)
    return y


def _detail_shape(pictures: Tensor) -> Tensor:
    n, _, height, width = pictures.shape
    return pictures.new_empty((n, *detail_grid(height, width)), dtype=torch.int32)


NO_ONNX = (
    "ONNX has no operator for a sleeping layer, and the constants that stand for it are of the "
    "example's shape: export the network itself, and no program that torch.export made of it, "
    "without dynamic_shapes or at rate 0; or the network that drowsy.revert(net) gives"
)
NO_TRANSFORMS = (
    "a drowsy layer cannot run under transforms of torch.func (vmap, grad, jvp): its maps are "
    "drawn for the images of a batch. Call it with the whole batch, or transform the "
    "network that drowsy.revert(net) gives"
)


def _refuse_vmap(*_: Any) -> NoReturn:
    raise RuntimeError(NO_TRANSFORMS)


def _autocast(*arguments: Any) -> Tensor:
    rounded = [
        each.to(neuron.autocast_dtype(each)) if place in _ROUNDED and each is not None else each
        for place, each in enumerate(arguments)
    ]
    with torch.autocast(arguments[0].device.type, enabled=False):
        return torch.ops.drowsy.conv2d(*rounded)


for _key in ("CPU", "CUDA"):
    _library.impl("conv2d", _conv2d, _key)
    _library.impl("conv2d", _autocast, f"Autocast{_key}")
    _library.impl("detail", detail_map, _key)
torch.library.register_fake("drowsy::conv2d", _conv2d_shape, lib=_library)
torch.library.register_fake("drowsy::detail", _detail_shape, lib=_library)
for _name in ("conv2d", "detail"):
    torch.library.register_vmap(f"drowsy::{_name}", _refuse_vmap, lib=_library)
