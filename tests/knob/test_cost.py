"""The paper's Table I, from CaffeNet's definition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import drowsy
from drowsy import models
from drowsy.graph.inspection import layer_shapes
from drowsy.knob.costs import (
    LayerCost,
    NetworkCost,
    cost_table,
    layer_costs,
    layer_shares,
    network_cost,
    saving,
)

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

    cost = network_cost(Twice().eval(), (4, 5, 5))
    assert [layer.name for layer in cost.layers] == ["conv", "conv", "last"]
    shares = layer_shares(cost)
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
    # Of the convolutions alone, as the paper's.
    assert table.splitlines()[0].endswith("of convolutions")
    assert [line.split()[-1] for line in table.splitlines()[2:]] == [
        "15.8%", "33.6%", "22.5%", "16.8%", "11.2%", "100%",
    ]  # fmt: skip


def test_the_table_of_a_network_tells_all_else_and_shares_of_all() -> None:
    with torch.device("meta"):
        model = models.MODELS["caffenet"].build().eval()
    lines = cost_table(network_cost(model, (3, 227, 227))).splitlines()
    assert lines[0].endswith("of the network")
    assert [line.split()[0] for line in lines[2:]] == [
        "conv1", "conv2", "conv3", "conv4", "conv5", "convolutions", "all", "total",
    ]  # fmt: skip
    assert lines[-3].split() == ["convolutions", "650.1", "K", "665.8", "M", "91.9%"]
    assert lines[-2].split() == ["all", "else", "58.6", "M", "8.1%"]
    assert lines[-1].split() == ["total", "724.4", "M", "100%"]


# --- everything else -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.MODELS)
def test_convolutions_cost_what_torch_counts(name: str) -> None:
    """Two FLOPs a multiplication, to the last one; the rest are the linear layers."""
    side = models.MODELS[name].preprocess.crop
    with torch.device("meta"):
        model = models.create(name).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side, device="meta"))
    counted = counter.get_flop_counts()["Global"]
    cost = network_cost(model, (3, side, side))
    assert 2 * cost.convolutions.multiplies == counted[torch.ops.aten.convolution]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert cost.other == sum(module.weight.numel() for module in linear)
    assert sum(layer_shares(cost).values()) == pytest.approx(1 - cost.other / cost.multiplies)
    assert sum(layer_shares(cost.convolutions).values()) == pytest.approx(1)


class Head(nn.Module):
    """A convolution with 4 channels of 8 x 8, and something behind it."""

    def __init__(self, behind: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.behind, self.used = behind, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.conv(x), *self.used)


def words(x: Tensor) -> Tensor:
    """``[1, 64, 4]``."""
    return x.flatten(2).transpose(1, 2)


ATTENTION = 64 * 4 * 12 + 2 * 64 * 64 * 4 + 64 * 4 * 4
OTHERS = {
    "linear": (Head(lambda x, m: m(x.flatten(1)), nn.Linear(256, 10)), 2560),
    "linear over rows": (Head(lambda x, m: m(x), nn.Linear(8, 5)), 4 * 8 * 8 * 5),
    "transposed": (
        Head(lambda x, m: m(x), nn.ConvTranspose2d(4, 6, 2, 2, groups=2)),
        64 * 4 * 3 * 4,
    ),
    "F.conv2d": (Head(lambda x: F.conv2d(x, x.new_ones(2, 4, 3, 3))), 36 * 2 * 4 * 9),
    "one-dimensional": (
        Head(lambda x, m: m(x.flatten(2)), nn.Conv1d(4, 2, 3, padding=1)),
        64 * 2 * 4 * 3,
    ),
    "matrix product": (Head(lambda x: x @ x.transpose(-1, -2)), 4 * 8 * 8 * 8),
    "einsum": (Head(lambda x: torch.einsum("bchw,bcij->bhwij", x, x)), 64 * 64 * 4),
    "attention": (
        Head(lambda x: F.scaled_dot_product_attention(*[words(x)[:, None]] * 3)),
        2 * 64 * 64 * 4,
    ),
    "multi-head attention": (
        Head(
            lambda x, m: m(*[words(x)] * 3, need_weights=False)[0],
            nn.MultiheadAttention(4, 2, batch_first=True),
        ),
        ATTENTION,
    ),
    "encoder layers": (
        Head(
            lambda x, m: m(words(x)),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 16, batch_first=True), 2),
        ),
        2 * (ATTENTION + 2 * 64 * 4 * 16),
    ),
    "recurrent": (
        Head(lambda x, m: m(words(x))[0], nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
        2 * 64 * 20 * (4 + 5) + 2 * 64 * 20 * (10 + 5),
    ),
    "elementwise": (Head(lambda x: x * torch.sigmoid(x) + F.max_pool2d(x, 1)), 0),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("what", OTHERS)
def test_everything_else_that_multiplies_counts(what: str, device: str) -> None:
    model, expected = OTHERS[what]
    model = copy.deepcopy(model).eval().to(device)
    cost = network_cost(model, (3, 8, 8))
    assert [layer.name for layer in cost.layers] == ["conv"]
    assert cost.other == expected
    assert torch.backends.mha.get_fastpath_enabled()
    assert not model.conv._forward_hooks
    assert not model.conv._forward_pre_hooks


@pytest.mark.parametrize("rate", [0, 1 / 2])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_converted_network_costs_the_same_at_every_rate(rate: float, device: str) -> None:
    net = drowsy.convert(models.create("caffenet_cifar").eval()).to(device)
    net.set(rate)
    with torch.device("meta"):
        model = models.create("caffenet_cifar").eval()
    assert network_cost(net, (3, 32, 32)) == network_cost(model, (3, 32, 32))


def test_a_layer_that_gets_several_maps_of_an_image_costs_all_of_them() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.unfold(3, 4, 4).transpose(1, 3).flatten(0, 1).transpose(1, 2))

    (layer,) = network_cost(Windows().eval(), (3, 8, 8)).layers
    assert (layer.size.input[0], layer.shape) == (2, (4, 8, 4))
    assert layer.multiplies == 4 * 8 * 8 * 27


def test_a_convolution_within_a_convolution_module_is_no_other_work() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, 2 * self.weight, self.bias)

    model = nn.Sequential(Scaled(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    cost = network_cost(model, (3, 8, 8))
    assert (cost.convolutions, cost.other) == (NetworkCost(cost.layers), 288)


def test_costs_are_given_back_as_they_were_after_an_error() -> None:
    model = Head(lambda x, m: m(x), nn.Linear(7, 1)).eval()
    with pytest.raises(RuntimeError):
        network_cost(model, (3, 8, 8))
    assert torch.backends.mha.get_fastpath_enabled()
    assert not model.conv._forward_hooks
    assert not model.conv._forward_pre_hooks
