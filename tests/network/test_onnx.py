"""Exports to ONNX: the maps of the moment, as constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unusual import BatchNormAct, ConvSame, StdConv, randomise

import drowsy
from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import SleepSpec

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore")
WAYS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
SLEEPS = [
    ("zero", "neuron"),
    ("rescale", "channel"),
    ("nearest", "position"),
    ("interpolate", "tile:1x4"),
    ("stencil", "position"),
]


class Chain(nn.Module):
    """Layers of these fills and grains, one after the other."""

    def __init__(self, sleeps: list[tuple[str, str]]) -> None:
        super().__init__()
        kinds = (nn.Conv2d, ConvSame, StdConv)
        self.layers = nn.ModuleList()
        for number, (fill, grain) in enumerate(sleeps):
            conv = kinds[number % 3](8 if number else 3, 8, 3, stride=2 if number < 2 else 1)
            layer = DrowsyConv2d.from_conv(
                conv.eval(),
                norm=randomise(BatchNormAct(8, nn.Sigmoid())) if number % 2 else None,
                sleep=SleepSpec("stratified", grain, stream=number),
            )
            layer.set_stencil(torch.randn(256, 9, 8))
            layer.set(rate=0.5, fill=fill)
            self.layers.append(layer)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def reseed(self) -> None:
        for number, layer in enumerate(self.layers):
            layer.control.reseed(3, 17 + number)


def exported(model: nn.Module, x: Tensor, file: Path, dynamo: bool, **options: Any) -> Any:
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(file), dynamo=dynamo, verbose=False, **options)
    return onnxruntime.InferenceSession(str(file))


def run(session: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def expected(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@WAYS
def test_file_sleeps_as_the_layers_do_now(dynamo: bool, tmp_path: Path) -> None:
    model, x = Chain(SLEEPS), torch.randn(2, 3, 53, 56)
    model.reseed()
    session = exported(model, x, tmp_path / "chain.onnx", dynamo)
    assert [layer.control.clock.tolist() for layer in model.layers] == [
        [3, 17 + number] for number in range(len(SLEEPS))
    ]
    torch.testing.assert_close(run(session, x), expected(model, x), rtol=1e-3, atol=1e-4)
    model.layers[-1].control.reseed(4)
    assert not torch.allclose(run(session, x), expected(model, x), atol=1e-2)


@WAYS
def test_converted_network_is_written(dynamo: bool, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), randomise(nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    net, x = (
        drowsy.convert(model.eval(), source="lattice", grain="position"),
        torch.randn(2, 3, 9, 9),
    )
    net.set(0.25)
    net.reseed(5, 7)
    session = exported(net, x, tmp_path / "net.onnx", dynamo)
    assert net.control.clock.tolist() == [5, 7]
    torch.testing.assert_close(run(session, x), expected(net, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("number", "rate", "other"),
    [(0, 0.5, (2, 3, 13, 12)), (1, 0, (1, 8, 14, 12))],
    ids=["maps", "padding"],
)
def test_other_shapes_do_not_pass(
    number: int, rate: float, other: tuple[int, ...], tmp_path: Path
) -> None:
    layer = Chain([("zero", "neuron")] * 2).layers[number]
    layer.set(rate=rate)
    x = torch.randn(1, other[1], 13, 12)
    axes = {"x": {0: "N", 2: "H", 3: "W"}}
    file = tmp_path / "layer.onnx"
    session = exported(layer, x, file, False, input_names=["x"], dynamic_axes=axes)
    torch.testing.assert_close(
        run(session, x), (layer.control.reseed(0), expected(layer, x))[1], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        run(session, torch.randn(other))


def test_dynamic_shapes_are_for_layers_that_are_awake(tmp_path: Path) -> None:
    layer, x = Chain([("zero", "neuron")]).layers[0], torch.randn(2, 3, 13, 12)
    options = {"dynamic_shapes": {"input": {0: torch.export.Dim.DYNAMIC}}}
    with pytest.raises(Exception, match=r"without dynamic_shapes or at rate 0; or.*revert"):
        exported(layer, x, tmp_path / "layer.onnx", True, **options)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
    with pytest.raises(Exception, match="export the network itself, and no program"):
        torch.onnx.export(program, (), str(tmp_path / "program.onnx"), verbose=False)
    layer.set(rate=0)
    session = exported(layer, x, tmp_path / "layer.onnx", True, **options)
    more = torch.randn(5, 3, 13, 12)
    torch.testing.assert_close(run(session, more), expected(layer, more), rtol=1e-4, atol=1e-5)
