"""Tensors of several dtypes in one neuron: what the model's own code refuses is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy import SleepSpec
from drowsy.graph.convert import convert
from drowsy.network.layer import DrowsyConv2d

HALVES = [torch.float16, torch.bfloat16]


def run(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_slopes_of_another_dtype_are_refused_as_by_prelu(
    dtype: torch.dtype, later: bool, rate: float
) -> None:
    prelu, x = nn.PReLU(4), torch.randn(2, 3, 9, 9, dtype=dtype)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), prelu, nn.Conv2d(4, 2, 3)).eval().to(dtype)
    net = convert(model, x) if later else convert(model, verify=False)
    prelu.float()
    net.set(rate)
    for refusing in (model, net):
        with pytest.raises(RuntimeError, match=r"prelu: Type promoting|slopes: got torch.float32"):
            run(refusing, x)
    prelu.to(dtype)
    assert run(net, x).dtype == dtype


@pytest.mark.parametrize("grain", ["neuron", "position", "channel", "tile:4x4"])
@pytest.mark.parametrize("rate", [0, 0.5])
def test_slopes_of_another_dtype_are_refused_by_a_layer_alone(rate: float, grain: str) -> None:
    layer = DrowsyConv2d(
        *(8, 8, 3), activation=nn.PReLU(8).double(), sleep=SleepSpec("stratified", grain), rate=rate
    )
    x = torch.randn(1, 8, 9, 9)
    told = r"slopes: got torch.float64 beside a weight in torch.float32, allowed: torch.float32"
    with pytest.raises(RuntimeError, match=told):
        run(layer, x)
    # There torch's own PReLU takes any.
    with torch.autocast("cpu", torch.bfloat16):
        assert run(layer, x).dtype == run(nn.PReLU(8), x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bias", "norm", "told"),
    [
        (torch.float32, torch.float16, "bias: got torch.float32 beside a weight in torch.float16"),
        (torch.float16, torch.float64, "norm: got torch.float64 beside a weight in torch.float16"),
        (torch.float16, torch.bfloat16, "norm: got torch.bfloat16.* or torch.float32"),
    ],
)
def test_what_cannot_be_folded_in_one_dtype_is_refused(
    bias: torch.dtype, norm: torch.dtype, told: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3).half(), nn.BatchNorm2d(4).to(norm)).eval()
    model[0].bias.data = model[0].bias.data.to(bias)
    with pytest.raises(RuntimeError):
        run(model, torch.randn(1, 3, 9, 9).half())
    with pytest.raises(RuntimeError, match=told):
        convert(model, verify=False)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("name", ["norm.running_mean", "norm.weight", "norm.bias", "bias"])
def test_what_was_folded_is_refused_once_it_is_of_another_dtype(
    name: str, rate: float, corrected: bool
) -> None:
    conv, norm, x = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), torch.randn(2, 3, 9, 9)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    net = convert(model, x, source="lattice", grain="position")
    if corrected:
        drowsy.calibrate(net, x, rate)
    net.set(rate)
    stream = drowsy.Stream(net, cut=None)
    if not rate:
        stream(x[:1])
    *inner, own = name.split(".")
    was = getattr(norm if inner else conv, own)
    now = nn.Parameter(was.double()) if isinstance(was, nn.Parameter) else was.double()
    for module in (norm,) if inner else (conv, net.layers["0"]):
        setattr(module, own, now)
    told = "norm: got torch.float64 beside" if inner else "bias"
    for refusing in (model, net, *([] if rate else [lambda x: stream(x[:1])])):
        with pytest.raises(
            RuntimeError, match="Double|mixed dtype|double" if refusing is model else told
        ):
            run(refusing, x)
    net.to(torch.float64)
    assert run(net, x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", HALVES)
def test_a_norm_in_float32_is_folded_into_half_a_convolution(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3).to(dtype), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 3, 9, 9, dtype=dtype)
    net = convert(model, x)
    assert net.layers["0"].norm is not None
    torch.testing.assert_close(run(net, x), run(model, x), rtol=0.02, atol=0.02)
