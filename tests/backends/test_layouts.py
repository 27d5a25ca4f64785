"""Memory formats of outputs: torch's own, and what compilers are told, in every way and fill."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import drowsy
from drowsy import neuron
from drowsy.backends import cpu
from drowsy.backends.cpu.crossover import Layer, candidates
from drowsy.neuron import ConvSpec
from drowsy.sleep import FILLS, NEIGHBOUR_FILLS, SleepSpec, levels

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("last", [True, False], ids=["weight channels_last", "weight contiguous"])
@pytest.mark.parametrize("channels", [1, 8])
def test_strides_are_torchs_and_what_compilers_are_told(
    mode: str,
    layout: str,
    last: bool,
    channels: int,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every padding, memory format, fill and way, to the last stride: one channel's too."""
    x = LAYOUTS[layout](torch.randn(2, 5, 6, 7, dtype=torch.float64, generator=generator))
    conv = torch.nn.Conv2d(5, channels, 3, padding=1, padding_mode=mode, dtype=x.dtype)  # type: ignore[arg-type]
    if last:
        conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    conv.requires_grad_(False)
    x_padded, left = neuron.padded(x, ConvSpec.of_conv(conv))
    sizes = Layer.of(x_padded, conv.weight, left)
    table = torch.randn(256, 9, channels, dtype=x.dtype, generator=generator)
    gelu = torch.nn.functional.gelu
    for grain, fill in [*(("position", fill) for fill in FILLS), ("channel:4", "zero")]:
        sleep = SleepSpec("lattice", grain)
        layer = drowsy.DrowsyConv2d.from_conv(conv, sleep=sleep, activation="gelu")
        layer.set_stencil(table)
        layer.set(rate=0.5, fill=fill)
        told = _told(layer, x)
        awake = gelu(conv(x))
        exact = neuron.sleep(
            awake,
            levels(sleep, tuple(awake.shape), layer.control.clock),  # type: ignore[arg-type]
            4,
            2.0 if fill == "rescale" else 1.0,
            sleep.grain,
            fill,
            layer.table,
        )
        for way in candidates(sizes, sleep):
            monkeypatch.setattr(cpu.ways, "fastest", lambda *_, way=way: way)
            layer.control.reseed(0)
            with torch.inference_mode():
                y = layer(x)
            torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-12)
            assert y.stride() == conv(x).stride() == told


def _told(layer: drowsy.DrowsyConv2d, x: Tensor) -> tuple[int, ...]:
    """The strides that tracers and compilers are told."""
    operands = [x, layer.weight.detach(), layer.bias.detach(), layer.control.thresholds]  # type: ignore[union-attr]
    operands += [layer.control.scales, layer.control.clock]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) for each in operands]
        table = None if layer.table is None else mode.from_tensor(layer.table)
        y = torch.ops.drowsy.conv2d(
            *fakes,
            table,
            0,
            *layer.spec.arguments(),
            str(layer.sleep),
            layer.fill if layer.fill in NEIGHBOUR_FILLS else "zero",
            "torch",
        )
    return y.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
def test_a_compiled_layer_with_circular_padding(layout: str, fill: str) -> None:
    """The layer behind it relies on the strides that were told."""
    first = drowsy.DrowsyConv2d(
        5, 8, 3, padding=1, padding_mode="circular", sleep=SleepSpec("lattice", "position")
    )
    second = drowsy.DrowsyConv2d(8, 4, 1, sleep=SleepSpec("lattice", "position"))
    first.set_stencil(torch.randn(256, 9, 8) / 3)
    first.set(rate=0.5, fill=fill)
    second.set(rate=0.5)
    net = torch.nn.Sequential(first, second).requires_grad_(False)
    x = LAYOUTS[layout](torch.randn(2, 5, 6, 7))
    torch._dynamo.reset()
    outputs = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        first.control.reseed(0)
        second.control.reseed(0)
        with torch.inference_mode():
            outputs.append(run(x))
    assert torch.equal(*outputs)
    assert outputs[0].stride() == outputs[1].stride()
