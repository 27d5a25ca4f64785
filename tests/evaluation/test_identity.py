"""What a stored result belongs to: the very text that stores were written with."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import drowsy
from drowsy.evaluation.identity import Context, LayerRecord, fingerprint_network
from drowsy.evaluation.measurer import Measurer

DATA = "f0d97f50f96ce1de3074c20c41c7dcf3f3cfb950a5bed9f5725d227970f3ac90"
LAYERS = (
    '"layers": {"0": ["lattice, revision 2", "position", "zero"], '
    '"2": ["lattice, revision 2", "position", "zero", 0], '
    '"3": ["lattice, revision 2", "position", "zero", 2, 3], '
    '"4": ["lattice, revision 2", "position", "stencil", '
    '"50716ddc0bb626a657db65fb62cd3bb81dcd9e659198653f8d2041f24ee9f6c5"]}}'
)
CORRECTED = "21b117df70904369706e1bdecb85a8b4d77eff224438562fcc3ab1b11c403cb7"


@pytest.fixture
def net() -> drowsy.DrowsyNet:
    """Layers with a stream of their own, another's, one with a phase, and a table."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1),
        nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) / 64)
    net = drowsy.convert(model.eval(), source="lattice", grain="position", k=8)
    _, second, third, last = net.layers.values()
    second.stage(stream=0)
    third.stage(stream=2, phase=3)
    last.set_stencil(torch.arange(256 * 9 * 2).view(256, 9, 2) / 1024)
    net.set(0.25, fill="zero")
    last.stage(fill="stencil")
    return net


@pytest.fixture
def measurer(net: drowsy.DrowsyNet) -> Measurer:
    images = torch.arange(4 * 16).view(4, 1, 4, 4) / 64
    return Measurer(net, images, torch.tensor([0, 1, 2, 0]))


def stored(context: Context) -> tuple[str, str, str, int]:
    """As a store's row holds it."""
    configuration = json.dumps(context.configuration, sort_keys=True)
    return context.network, context.data, configuration, context.seed


def test_the_text_of_a_context(measurer: Measurer) -> None:
    assert stored(measurer.context(3)) == (
        fingerprint_network(measurer.net),
        DATA,
        f'{{"k": 8, {LAYERS}',
        3,
    )


def test_the_text_of_a_stretch_of_the_images(measurer: Measurer) -> None:
    expected = f'{{"images": [0, 2], "k": 8, {LAYERS}'
    assert stored(measurer.context(3, range(2))) == (
        fingerprint_network(measurer.net),
        DATA,
        expected,
        3,
    )


def test_the_text_of_corrections(measurer: Measurer) -> None:
    correction = drowsy.Correction(torch.ones(2), torch.arange(2.0))
    measurer.net._corrections.apply({"0": correction, "2": correction})
    expected = f'{{"corrected": "{CORRECTED}", "k": 8, {LAYERS}'
    assert stored(measurer.context(0)) == (fingerprint_network(measurer.net), DATA, expected, 0)


@pytest.mark.parametrize(
    ("stream", "phase", "table", "told"),
    [
        (None, 0, None, []),
        (4, 0, None, [4]),
        (0, 1, None, [0, 1]),
        (None, 0, "abc", ["abc"]),
        (2, 3, "abc", [2, 3, "abc"]),
    ],
)
def test_what_goes_without_saying_is_left_out(
    stream: int | None, phase: int, table: str | None, told: list[object]
) -> None:
    record = LayerRecord("bernoulli", "neuron", "zero", stream, phase, table)
    assert record.stored() == ["bernoulli", "neuron", "zero", *told]


def test_a_phase_on_a_layers_own_stream_is_told_with_the_stream(net: drowsy.DrowsyNet) -> None:
    layer = net.layers["0"]
    layer.stage(phase=5)
    assert LayerRecord.of(layer, None).stored()[3:] == [0, 5]
