"""The paper's Table I, from CaffeNet's definition."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

import drowsy
from drowsy import models
from drowsy.graph.inspection import layer_shapes
from drowsy.knob.costs import LayerCost, cost_table, layer_costs, layer_shares, saving

# Name, neurons (thousands, as printed), multiplies per neuron, multiplies (millions) in Table I.
TABLE_I = [
    ("conv1", 290, 363, 105),
    ("conv2", 187, 2400, 448),
    ("conv3", 65, 2300, 150),
    ("conv4", 64, 3500, 224),
    ("conv5", 43, 3500, 150),
]
GROUPED = {"conv2", "conv4", "conv5"}


@pytest.fixture(scope="module")
def caffenet_costs() -> list[LayerCost]:
    with torch.device("meta"):
        model = models.MODELS["caffenet"].build().eval()
    return layer_costs(model, (3, 227, 227))


def test_shapes_are_those_of_table_i(caffenet_costs) -> None:
    assert [cost.shape for cost in caffenet_costs] == [
        (96, 55, 55),
        (256, 27, 27),
        (384, 13, 13),
        (384, 13, 13),
        (256, 13, 13),
    ]


@pytest.mark.parametrize(("row", "printed"), list(enumerate(TABLE_I)))
def test_table_i(caffenet_costs, row: int, printed: tuple[str, int, int, int]) -> None:
    """Neurons agree to the printed digits; so do multiplies, once grouping is undone."""
    name, thousands, per_neuron, millions = printed
    cost = caffenet_costs[row]
    groups = 2 if name in GROUPED else 1
    assert cost.name == name
    # The paper prints 65 K for conv3 and 64 K for conv4, which have the same 64,896 neurons.
    assert abs(cost.neurons / 1000 - thousands) < 1
    assert cost.multiplies_per_neuron * groups == pytest.approx(per_neuron, rel=0.02)
    assert cost.multiplies * groups / 1e6 == pytest.approx(millions, abs=0.6)


def test_grouped_layers_cost_half_of_what_the_paper_prints(caffenet_costs) -> None:
    by_name = {cost.name: cost for cost in caffenet_costs}
    assert by_name["conv2"].multiplies == 256 * 27 * 27 * 48 * 5 * 5
    assert by_name["conv4"].multiplies == 384 * 13 * 13 * 192 * 3 * 3
    assert sum(cost.multiplies for cost in caffenet_costs) == 665_784_864


def test_converted_network_costs_the_same() -> None:
    model = models.create("resnet18")
    converted = drowsy.convert(model)
    assert layer_costs(converted, (3, 64, 64)) == layer_costs(model, (3, 64, 64))


def test_a_layer_that_runs_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Conv2d(4, 8, 1)

        def forward(self, x):
            return self.last(self.conv(self.conv(x)))

    costs = layer_costs(Twice().eval(), (4, 5, 5))
    assert [cost.name for cost in costs] == ["conv", "conv", "last"]
    shares = layer_shares(costs)
    assert shares["conv"] == pytest.approx(2 * 36 / (2 * 36 + 8))
    assert saving({"conv": Fraction(1, 2), "last": 0}, shares) == pytest.approx(shares["conv"] / 2)


def test_sizes_are_those_of_outputs_however_a_layer_is_called() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 2))
            self.reflected = nn.Conv2d(6, 4, 3, (2, 1), (1, 2), groups=2, padding_mode="reflect")

        def forward(self, x):
            self.outputs = [self.same(input=x), self.reflected(input=self.same(x))]
            return self.outputs[-1]

    model = Uneven().eval()
    with torch.no_grad():
        model(torch.zeros(1, 4, 9, 7))
    same, again, reflected = layer_costs(model, (4, 9, 7))
    assert same == again
    assert [same.shape, reflected.shape] == [y.shape[1:] for y in model.outputs]
    assert [same.kernel, reflected.kernel] == [(4, 2, 4), (3, 3, 3)]
    for cost, shape in zip((same, again, reflected), layer_shapes(model, (4, 9, 7)), strict=True):
        assert shape[0] == cost.name
        assert shape[1].out_size == cost.shape[1:]
        assert shape[1].multiplies == cost.multiplies


def test_the_table_names_every_layer_and_the_total(caffenet_costs) -> None:
    table = cost_table(caffenet_costs)
    assert [line.split()[0] for line in table.splitlines()[2:]] == [
        "conv1", "conv2", "conv3", "conv4", "conv5", "total",
    ]  # fmt: skip
    assert "665.8 M" in table
