"""Exports to ONNX: the maps of the moment, as constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unusual import BatchNormAct, ConvSame, StdConv, randomise

from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import FILLS, SleepSpec

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore")
WAYS = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])


class Pair(nn.Module):
    """Two layers, of whom the second reads what the first left."""

    def __init__(self, fill: str, grain: str, kind: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        first = kind(3, 8, 3, stride=2).eval()
        norm = randomise(BatchNormAct(8))
        self.first = DrowsyConv2d.from_conv(first, norm=norm, sleep=SleepSpec(grain=grain))
        self.second = DrowsyConv2d(8, 5, 3, padding=1, sleep=SleepSpec("stratified", grain))
        for layer in (self.first, self.second):
            layer.set_stencil(torch.randn(256, 9, layer.out_channels))
            layer.set(rate=0.5, fill=fill)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def reseed(self) -> None:
        self.first.control.reseed(3, 17)
        self.second.control.reseed(4, 1)


def exported(model: nn.Module, x: Tensor, file: Path, dynamo: bool, **options: Any) -> Any:
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(file), dynamo=dynamo, verbose=False, **options)
    return onnxruntime.InferenceSession(str(file))


def run(session: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@WAYS
@pytest.mark.parametrize("grain", ["neuron", "position", "tile:1x4", "channel", "position:8"])
@pytest.mark.parametrize("fill", FILLS)
def test_file_sleeps_as_the_layers_do_now(
    fill: str, grain: str, dynamo: bool, tmp_path: Path
) -> None:
    if fill not in ("zero", "rescale") and grain in ("channel", "position:8"):
        pytest.skip("fills from neighbours need single positions")
    model, x = Pair(fill, grain), torch.randn(2, 3, 13, 12)
    model.reseed()
    session = exported(model, x, tmp_path / "pair.onnx", dynamo)
    assert model.first.control.clock.tolist() == [3, 17]
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run(session, x), expected, rtol=1e-4, atol=1e-5)
    assert (expected == 0).any() == (fill in ("zero", "rescale"))


@WAYS
@pytest.mark.parametrize("kind", [ConvSame, StdConv])
def test_unusual_convolutions_are_written_too(
    kind: type[nn.Conv2d], dynamo: bool, tmp_path: Path
) -> None:
    model, x = Pair("zero", "position", kind), torch.randn(2, 3, 13, 12)
    model.reseed()
    session = exported(model, x, tmp_path / "pair.onnx", dynamo)
    with torch.no_grad():
        torch.testing.assert_close(run(session, x), model(x), rtol=1e-4, atol=1e-5)


@WAYS
def test_other_batches_do_not_pass_by_broadcasting(dynamo: bool, tmp_path: Path) -> None:
    model, x = Pair("zero", "neuron"), torch.randn(1, 3, 13, 12)
    options = {} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": {0: "N"}}}
    session = exported(model, x, tmp_path / "pair.onnx", dynamo, **options)
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        run(session, torch.randn(2, 3, 13, 12))


def test_dynamic_shapes_are_for_layers_that_are_awake(tmp_path: Path) -> None:
    model, x = Pair("zero", "neuron"), torch.randn(2, 3, 13, 12)
    options = {"dynamic_shapes": {"x": {0: torch.export.Dim.DYNAMIC}}}
    with pytest.raises(Exception, match="without dynamic_shapes, at rate 0, or"):
        exported(model, x, tmp_path / "pair.onnx", True, **options)
    for layer in (model.first, model.second):
        layer.set(rate=0)
    session = exported(model, x, tmp_path / "pair.onnx", True, **options)
    more = torch.randn(5, 3, 13, 12)
    torch.testing.assert_close(run(session, more), model(more), rtol=1e-4, atol=1e-5)
