"""Under ``torch.autocast`` a drowsy layer is a convolution like torch's, at every rate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy import neuron
from drowsy.backends import cpu, triton
from drowsy.backends.cpu.crossover import Layer, candidates
from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import ConvSpec
from drowsy.sleep import FILLS, NEIGHBOUR_FILLS, SleepSpec, levels, scale

K = 8
LAYERS = [
    (way, grain, fill)
    for way, grain in [
        ("mask", "neuron"),
        ("mask", "position"),
        ("rows", "position"),
        ("rows", "tile:4x8"),
        ("sublattices", "position:8"),
        ("channels", "channel:2"),
    ]
    for fill in FILLS
    if fill not in NEIGHBOUR_FILLS or "position" in grain or grain == "neuron"
]


def layer_of(conv: nn.Conv2d, grain: str, fill: str) -> DrowsyConv2d:
    layer = DrowsyConv2d.from_conv(conv, sleep=SleepSpec("lattice", grain, K), activation="relu")
    layer.set_stencil(torch.randn(256, 9, conv.out_channels) / 3)
    layer.set(fill=fill)
    return layer.requires_grad_(False)


def expected(conv: nn.Conv2d, layer: DrowsyConv2d, x: Tensor, j: int) -> Tensor:
    """torch's convolution where autocast is on, put to sleep by the specification."""
    y = conv(x).relu()
    drawn = levels(layer.sleep, tuple(y.shape), layer.control.clock)  # type: ignore[arg-type]
    table = layer.table
    return neuron.sleep(y, drawn, j, scale(j, K, layer.fill), layer.sleep.grain, layer.fill, table)


def prefer(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(layer: Layer, sleep: SleepSpec, *_: object) -> str:
        assert way in candidates(layer, sleep)
        return way

    monkeypatch.setattr(cpu.ways, "fastest", chosen)


@pytest.mark.parametrize("slopes", [1, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slopes_are_rounded_as_torch_rounds_them(dtype: torch.dtype, slopes: int) -> None:
    conv, prelu = nn.Conv2d(6, 16, 3, padding=1), nn.PReLU(slopes)
    nn.init.normal_(prelu.weight, std=2)
    layer = DrowsyConv2d.from_conv(
        conv, sleep=SleepSpec("lattice", "position", K), activation=prelu
    )
    x = torch.randn(3, 6, 9, 10)
    for j in (0, 4):
        layer.set(rate=j / K)
        layer.control.reseed(5)
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            exact = prelu(conv(x))
            drawn = levels(layer.sleep, tuple(exact.shape), layer.control.clock)  # type: ignore[arg-type]
            wanted = neuron.sleep(exact, drawn, j, scale(j, K, "zero"), layer.sleep.grain, "zero")
            y = layer(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize(("way", "grain", "fill"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_are_those_of_torchs_convolution(
    way: str, grain: str, fill: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(way, monkeypatch)
    conv = nn.Conv2d(6, 16, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer = layer_of(conv, grain, fill)
    x = torch.randn(3, 6, 9, 10).to(memory_format=torch.channels_last)
    for j in (0, 2, 4, 7):
        layer.set(rate=j / K)
        layer.control.reseed(5)
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            exact = expected(conv, layer, x, j) if j else conv(x).relu()
            y = layer(x)
        assert y.dtype == dtype
        assert y.stride() == exact.stride()
        if way == "mask":
            assert torch.equal(y, exact)
        else:  # sums of 54 products in another order, rounded to dtype
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(y, exact, rtol=4 * unit, atol=4 * unit)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_of_inputs_are_taken_as_by_torchs_convolution(given: torch.dtype) -> None:
    parameters = torch.float64 if given == torch.float64 else torch.float32
    conv = nn.Conv2d(3, 4, 3, dtype=parameters)
    layer = layer_of(conv, "neuron", "zero")
    x = torch.randn(1, 3, 6, 6, dtype=given)
    for j in (0, 4):
        layer.set(rate=j / K)
        layer.control.reseed(0)
        with torch.inference_mode(), torch.autocast("cpu"):
            exact = expected(conv, layer, x, j)
            assert torch.equal(layer(x), exact)
    assert exact.dtype == (torch.float64 if given == torch.float64 else torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        assert layer(x.to(parameters)).dtype == parameters


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_paddings_written_out_do_not_decide_the_dtype(mode: str) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    layer = layer_of(conv, "position", "zero")
    layer.set(rate=0.5)
    x = torch.randn(2, 3, 6, 6)
    with torch.inference_mode(), torch.autocast("cpu"):
        exact = expected(conv, layer, x, 4)
        assert torch.equal(layer(x), exact)
    assert exact.dtype == torch.bfloat16


def test_triton_follows(triton_device: torch.device) -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, device=triton_device)
    layer = layer_of(conv, "position", "interpolate")
    layer.backend = "triton"
    layer.set(rate=0.5)
    x = torch.randn(2, 3, 6, 6, device=triton_device)
    with torch.inference_mode(), torch.autocast(triton_device.type, torch.bfloat16):
        exact = expected(conv, layer, x, 4)
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, exact, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_library_is_chosen_by_the_dtype_that_is_computed_in(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []
    monkeypatch.setattr(
        triton.tuning, "number_format", lambda dtype, _: numbers.append(dtype) or "fp32"
    )
    x, weight = torch.ones(1, 16, 8, 8), torch.ones(16, 16, 3, 3)
    with torch.autocast("cpu", torch.float16, enabled=enabled):
        triton.library_wins(x, weight, ConvSpec())
        triton.library_wins(x.double(), weight, ConvSpec())  # is the library's: no kernel has it
    assert numbers == [torch.float16 if enabled else torch.float32]


def test_a_compiled_layer_follows() -> None:
    layer = layer_of(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), "position", "nearest")
    layer.set(rate=0.5)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for enabled in (True, False):
        with torch.inference_mode(), torch.autocast("cpu", enabled=enabled):
            layer.control.reseed(1)
            y = layer(x)
            layer.control.reseed(1)
            again = compiled(x)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        assert torch.equal(again, y)
        assert again.stride() == y.stride()


@pytest.mark.parametrize("cached", [True, False])
def test_a_folded_norm_is_rounded_once_with_the_weight(cached: bool) -> None:
    """And one that is left where it is takes the layer's output as a convolution's."""
    conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
    norm.running_mean, norm.running_var = torch.randn(8), torch.rand(8) + 0.1
    model = nn.Sequential(conv, norm, nn.ReLU()).eval()
    x = torch.randn(4, 3, 8, 8)
    folded = drowsy.convert(model, fold_bn=cached)
    apart = nn.Sequential(DrowsyConv2d.from_conv(conv), norm, nn.ReLU())
    with torch.inference_mode(), torch.autocast("cpu"):
        layer = next(iter(folded.layers.values()))
        weight, bias = layer.parameters_in_effect()
        assert weight.dtype == torch.float32
        rounded = weight.bfloat16(), bias.bfloat16()
        exact = nn.functional.conv2d(x.bfloat16(), *rounded).relu()
        assert torch.equal(folded(x), exact)
        assert torch.equal(apart(x), model(x))
        torch.testing.assert_close(folded(x), model(x), rtol=2**-6, atol=2**-5)
        folded.set(0.5, fill="zero")
        y = folded(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, torch.where(y == 0, y, exact))
        assert 0.4 < (y[exact != 0] == 0).float().mean() < 0.6
