"""``convert``: which neurons a network gets, by which flavour, and what its knob promises."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from drowsy import models
from drowsy.graph import settling
from drowsy.graph.convert import convert, revert
from drowsy.knob.schedule import LayerSetting, Schedule
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.neuron import sleep
from drowsy.sleep import FILLS, levels, scale


def run(module: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(x)


def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics that a forgotten fold would be noticed with."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def neurons(net: DrowsyNet) -> dict[str, tuple[str | None, str | None, str]]:
    """Layer -> (norm, activation, fill), as the report tells it."""
    return {r.name: (r.norm, r.activation, r.fill) for r in net.report if r.fill}


# --- networks in the shapes that torch code comes in ---------------------------------------------


class Residual(nn.Module):
    """A basic block whose addition is written in one of three ways."""

    ADDITIONS = {
        "x + y": lambda x, y: x + y,
        "x += y": lambda x, y: x.__iadd__(y),
        "torch.add": torch.add,
        "y.add_": lambda x, y: y.add_(x),
    }

    def __init__(self, addition: str) -> None:
        super().__init__()
        self.addition = addition
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.addition == "x += y":
            x += y
        else:
            x = self.ADDITIONS[self.addition](x, y)
        return self.fc(self.relu(x).mean((2, 3)))


class Fire(nn.Module):
    """SqueezeNet's module: one convolution feeds two, which are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.expand1 = nn.Conv2d(4, 6, 1)
        self.expand3 = nn.Conv2d(4, 6, 3, padding=1)
        self.classifier = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)
        x = F.max_pool2d(x, 2)
        return F.adaptive_avg_pool2d(F.relu(self.classifier(x)), 1).flatten(1)


class Inception(nn.Module):
    """Branches of convolutions and of pooling side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Conv2d(3, 4, 1)
        self.branch3 = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.project = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.branch1(x).relu(), self.branch3(x), torch.relu(self.project(self.pool(x)))]
        return self.head(torch.cat(parts, dim=1).mean(dim=(2, 3)))


class Recurrent(nn.Module):
    """One convolution called twice."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.alike = alike
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = self.conv(x)
        return (F.relu(x) if self.alike else x.sigmoid()).mean((2, 3))


class TwoUsers(nn.Module):
    """A convolution whose raw output is needed beside its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((F.relu(y) - 0.1 * y).mean((2, 3)))


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sequential": sequential,
    **{f"residual {way}": lambda way=way: Residual(way) for way in Residual.ADDITIONS},
    "fire": Fire,
    "inception": Inception,
    "recurrent": lambda: Recurrent(True),
    "recurrent, not alike": lambda: Recurrent(False),
    "two users": TwoUsers,
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return randomise_norms(NETWORKS[request.param]())


@pytest.fixture
def net() -> DrowsyNet:
    return convert(randomise_norms(sequential()))


X = (2, 3, 8, 8)


# --- what conversion keeps -----------------------------------------------------------------------


def test_converted_network_computes_the_same_at_rate_zero(network: nn.Module) -> None:
    x = torch.randn(X)
    expected = run(network, x)
    for fold_bn in (True, False):
        torch.testing.assert_close(run(convert(network, fold_bn=fold_bn), x), expected)


def test_converted_network_keeps_names_and_shares_weights(network: nn.Module) -> None:
    net = convert(network)
    before, after = network.state_dict(), net.state_dict()
    assert after.keys() == before.keys()
    assert all(after[key].data_ptr() == before[key].data_ptr() for key in before)
    assert net.load_state_dict(before).missing_keys == []


def test_original_is_untouched_and_is_what_revert_gives(network: nn.Module) -> None:
    x = torch.randn(X)
    expected, modules = run(network, x), dict(network.named_modules())
    types = {name: type(module) for name, module in modules.items()}
    net = convert(network)
    net.set(0.875)
    run(net, x)
    assert dict(network.named_modules()) == modules
    assert {name: type(module) for name, module in network.named_modules()} == types
    assert revert(net) is network
    assert torch.equal(run(revert(net), x), expected)


def test_every_layer_can_sleep_and_changes_the_output(network: nn.Module) -> None:
    net = convert(network)
    x = torch.randn(X)
    awake = run(net, x)
    for name in net.layers:
        net.set(0)
        net.set({name: 0.875})
        assert not torch.equal(run(net, x), awake), name


def test_input_is_left_as_it_was(network: nn.Module) -> None:
    x = torch.randn(X)
    before = x.clone()
    net = convert(network)
    net.set(0.5)
    run(net, x)
    assert torch.equal(x, before)


# --- what belongs to a neuron --------------------------------------------------------------------


def test_norm_and_activation_become_part_of_the_neuron() -> None:
    assert neurons(convert(randomise_norms(sequential()))) == {
        "0": ("1", "relu", "zero"),
        "4": (None, "relu", "rescale"),
        "6": (None, "none", "rescale"),
    }


MODULE_ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(inplace=True),
    "leaky_relu:0.2": nn.LeakyReLU(0.2),
    "leaky_relu:1e16": nn.LeakyReLU(1e16),
    "leaky_relu:-1.5e-07": nn.LeakyReLU(-1.5e-7),
    "leaky_relu:1": nn.LeakyReLU(True),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "prelu": nn.PReLU(4),
}
CALL_ACTIVATIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("relu", lambda y: F.relu(y)),
    ("relu", lambda y: F.relu(y, inplace=True)),
    ("relu", lambda y: F.relu_(y)),
    ("relu", lambda y: torch.relu(y)),
    ("relu", lambda y: torch.relu_(y)),
    ("relu", lambda y: y.relu()),
    ("relu", lambda y: y.relu_()),
    ("relu6", lambda y: F.relu6(y)),
    ("leaky_relu:0.01", lambda y: F.leaky_relu(y)),
    ("leaky_relu:0.3", lambda y: F.leaky_relu(y, 0.3)),
    ("leaky_relu:0.3", lambda y: F.leaky_relu(y, negative_slope=0.3, inplace=True)),
    ("leaky_relu:2.5e20", lambda y: F.leaky_relu(y, 2.5e20)),
    ("silu", lambda y: F.silu(y)),
    ("gelu", lambda y: F.gelu(y)),
    ("gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
    ("hardswish", lambda y: F.hardswish(y)),
    ("sigmoid", lambda y: torch.sigmoid(y)),
    ("sigmoid", lambda y: y.sigmoid()),
    ("tanh", lambda y: F.tanh(y)),
    ("tanh", lambda y: y.tanh_()),
    # Not known as activations: they stay behind the neuron, which sleeps on its own output.
    ("none", lambda y: F.elu(y)),
    ("none", lambda y: F.leaky_relu(y, math.inf)),
    ("none", lambda y: F.leaky_relu(y, float("nan"))),
    ("none", lambda y: y * 2),
    ("none", lambda y: torch.sub(1, y)),
    ("none", lambda y: y * y.sigmoid()),
]


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize("name", MODULE_ACTIVATIONS)
def test_module_activation_is_recognised(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), MODULE_ACTIVATIONS[name]).eval()
    net = convert(model)
    x = torch.randn(X)
    assert net.layers["0"].activation == name
    torch.testing.assert_close(run(net, x), run(model, x))


@pytest.mark.parametrize(
    ("name", "function"),
    CALL_ACTIVATIONS,
    ids=[inspect.getsource(f).strip().partition(": ")[2] for _, f in CALL_ACTIVATIONS],
)
def test_called_activation_is_recognised(name: str, function: Callable[[Tensor], Tensor]) -> None:
    model = Called(function).eval()
    net = convert(model)
    x = torch.randn(X)
    assert net.layers["conv"].activation == name
    torch.testing.assert_close(run(net, x), run(model, x), equal_nan=True)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, y: y)
    return module


def scalar() -> nn.PReLU:
    prelu = nn.PReLU()
    prelu.weight = nn.Parameter(torch.tensor(-0.7))
    return prelu


@pytest.mark.parametrize("graph", [True, False])
def test_slopes_are_followed_and_shared(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One PReLU after two convolutions, and one after a norm; what is trained is seen at once."""

    def untraceable(model: nn.Module) -> None:
        raise ValueError("torch.fx cannot trace it (as told)")

    if not graph:
        monkeypatch.setattr(settling, "trace", untraceable)
    shared, own = nn.PReLU(), nn.PReLU(4)
    layers = (nn.Conv2d(3, 5, 3), shared, nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), own)
    model = randomise_norms(nn.Sequential(*layers, nn.Conv2d(4, 6, 3), shared, nn.Conv2d(6, 2, 1)))
    nn.init.normal_(own.weight, std=2)
    model, x = model.double(), torch.randn(2, 3, 12, 11).double()
    net = convert(model, x)
    assert {name: layer.activation for name, layer in net.layers.items()} == {
        "0": "prelu",
        "2": "prelu",
        "5": "prelu",
        "7": "none",
    }
    assert net.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(run(net, x), run(model, x))

    def slept() -> Tensor:
        net.set(0.5)
        net.reseed(7)
        y = run(net, x)
        net.set(0)
        return y

    before = slept()
    loss = model(x).square().sum()
    loss.backward()
    with torch.no_grad():
        for prelu in (shared, own):
            assert prelu.weight.grad is not None
            prelu.weight -= torch.sign(prelu.weight.grad)
    torch.testing.assert_close(run(net, x), run(model, x))
    again = slept()
    assert not torch.allclose(again, before)
    torch.testing.assert_close(again, by_hand(net, x))
    with pytest.raises(RuntimeError, match="DrowsyConv2d is for inference"):
        net(x)

    net.float()
    x = x.float()
    torch.testing.assert_close(slept(), by_hand(net, x), rtol=1e-4, atol=1e-4)
    loaded = {name: value * 0.5 for name, value in model.state_dict().items()}
    for assign in (False, True):
        net.load_state_dict(loaded, assign=assign)
        torch.testing.assert_close(run(net, x), run(model, x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(slept(), by_hand(net, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_slopes_are_followed_by_graphs_made_of_a_network() -> None:
    prelu = nn.PReLU(5)
    layers = (nn.Conv2d(3, 5, 3), prelu, nn.Conv2d(5, 4, 3), nn.PReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 9, 8)
    net = convert(nn.Sequential(*layers).eval(), x)
    net.set(0.5)
    made = [
        torch.export.export(net, (x,)).module(),
        make_fx(lambda x: net(x))(x),
        torch.compile(net, backend="aot_eager"),
        torch.jit.trace(net, x, check_trace=False),
    ]
    for change in (0, 1):
        prelu.weight += change
        net.reseed(7)
        expected = net(x)
        # The first holds values of its own, which it was given when it was made.
        for graph in made[change:]:
            net.reseed(7)
            torch.testing.assert_close(graph(x), expected)


@torch.no_grad()
def by_hand(net: DrowsyNet, x: Tensor) -> Tensor:
    """Half asleep by seed 7: the model's modules, and sleep where the report says neurons end."""
    ends = {"1": "0", "4": "2", "6": "5", "7": "7"}
    for name in net.original._modules:  # one of them twice
        x = net.original.get_submodule(name)(x)
        if name in ends:
            layer = net.layers[ends[name]]
            drawn = levels(layer.sleep, tuple(x.shape), torch.tensor([7, 0]))  # type: ignore[arg-type]
            x = sleep(x, drawn, 4, scale(4, 8, layer.fill), layer.sleep.grain, layer.fill)
    return x


@pytest.mark.parametrize(
    ("name", "prelu"),
    [
        ("prelu", scalar()),
        ("prelu", type("MyPReLU", (nn.PReLU,), {})(4)),
        ("none", hooked(nn.PReLU(4))),
        ("none", nn.utils.parametrize.register_parametrization(nn.PReLU(4), "weight", nn.Tanh())),
        ("none", nn.utils.weight_norm(nn.PReLU(4), dim=None)),
    ],
    ids=["no dimension", "subclass", "hooked", "computed slopes", "weight_norm"],
)
def test_which_slopes_are_a_neurons(name: str, prelu: nn.Module) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), prelu).eval(), torch.randn(X)
    net = convert(model, x)
    assert net.layers["0"].activation == name
    torch.testing.assert_close(run(net, x), run(model, x))
    net.set(0.5)
    assert run(net, x).isfinite().all()


@pytest.mark.parametrize("rows", [4, 7])
def test_slopes_of_rows_are_the_models(rows: int) -> None:
    """Of an image without a batch a PReLU takes rows for channels."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(rows)).eval(), torch.randn(3, rows + 2, 9)
    nn.init.normal_(model[1].weight)
    net = convert(model, x)
    assert net.layers["0"].activation == "none"
    torch.testing.assert_close(run(net, x), run(model, x))


def test_norm_without_activation_sleeps_on_its_own_output() -> None:
    net = convert(randomise_norms(Residual("x + y")))
    assert neurons(net)["conv2"] == ("bn2", "none", "rescale")
    assert neurons(net)["conv1"] == ("bn1", "relu", "rescale")


def test_norm_without_running_statistics_stays_behind_the_neuron() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    net = convert(model)
    x = torch.randn(X)
    assert net.layers["0"].norm is None
    torch.testing.assert_close(run(net, x), run(model, x))


def test_output_with_two_users_takes_in_neither() -> None:
    assert neurons(convert(TwoUsers().eval()))["conv"] == (None, "none", "rescale")


def test_convolution_called_twice_is_one_layer() -> None:
    alike, different = convert(Recurrent(True).eval()), convert(Recurrent(False).eval())
    assert neurons(alike) == {"conv": (None, "relu", "rescale")}
    assert neurons(different) == {"conv": (None, "none", "rescale")}


def test_convolution_under_two_names_is_one_layer() -> None:
    conv = nn.Conv2d(3, 3, 1)
    shared = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU()).eval()
    net = convert(shared)
    x = torch.randn(X)
    assert list(net.layers) == ["0"]
    torch.testing.assert_close(run(net, x), run(shared, x))


@pytest.mark.parametrize("network", ["sequential", "fire"], indirect=True)
def test_absorbed_nodes_are_gone_from_the_graph(network: nn.Module) -> None:
    net = convert(network)
    names = [str(node.target) + node.name for node in net.graph.nodes]
    assert not any("relu" in name for name in names)


# --- flavours ------------------------------------------------------------------------------------


class Alex(nn.Module):
    """Two convolutions; normalisation before pooling (AlexNet) or after it (CaffeNet)."""

    def __init__(self, normalise_first: bool) -> None:
        super().__init__()
        self.normalise_first = normalise_first
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.pool = nn.LocalResponseNorm(3), nn.MaxPool2d(2)
        self.fc = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = self.pool(self.norm(x)) if self.normalise_first else self.norm(self.pool(x))
        return self.fc(F.relu(self.conv2(x)).flatten(1))


@pytest.mark.parametrize("normalise_first", [True, False])
def test_normalisation_is_looked_through_on_the_way_to_pooling(normalise_first: bool) -> None:
    net = convert(Alex(normalise_first).eval())
    reasons = {report.name: (report.fill, report.reason) for report in net.report}
    assert reasons == {
        "conv1": ("zero", "feeds max-pooling (pool)"),
        "conv2": ("rescale", "feeds fc"),
    }


def test_both_consumers_are_named_and_the_weighted_sum_decides() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv1(x))
            return F.max_pool2d(x, 2).mean((2, 3)) + self.conv2(x).mean((2, 3))

    report = convert(Both().eval()).report
    assert report[0].fill == "rescale"
    assert "conv2" in report[0].reason
    assert "max-pooling" in report[0].reason


def test_concatenation_is_looked_through() -> None:
    fills = {report.name: report.fill for report in convert(Fire().eval()).report}
    assert fills == {
        "squeeze": "rescale",
        "expand1": "zero",
        "expand3": "zero",
        "classifier": "rescale",
    }


@pytest.mark.parametrize(
    ("consumer", "fill"),
    [
        (lambda y: F.max_pool2d(y, 2), "zero"),
        (lambda y: F.adaptive_max_pool2d(y, 1), "zero"),
        (lambda y: y.amax((2, 3)), "zero"),
        (lambda y: torch.amax(y, (2, 3)), "zero"),
        (lambda y: F.dropout(F.max_pool2d(y, 2), training=False).mean(), "zero"),
        (lambda y: F.avg_pool2d(y, 2), "rescale"),
        (lambda y: F.adaptive_avg_pool2d(y, 1), "rescale"),
        (lambda y: y.mean((2, 3)), "rescale"),
        (lambda y: y, "rescale"),
    ],
)
def test_consumer_decides_the_flavour(consumer: Callable[[Tensor], Tensor], fill: str) -> None:
    net = convert(Called(lambda y: consumer(F.relu(y))).eval())
    assert net.layers["conv"].fill == fill


@pytest.mark.parametrize("source", ["lattice", "stratified", "fovea", "bluenoise"])
@pytest.mark.parametrize("grain", ["neuron", "position", "position:2"])
def test_spread_sleepers_are_interpolated_whatever_reads_them(source: str, grain: str) -> None:
    net = convert(sequential().eval(), source=source, grain=grain)
    found = {(report.fill, report.reason) for report in net.report}
    assert found == {("interpolate", f"{source} leaves awake neighbours everywhere")}
    net.set(0.5, fill="zero")
    net.set(0.5, fill="auto")
    assert {layer.fill for layer in net.layers.values()} == {"interpolate"}


@pytest.mark.parametrize(
    ("source", "grain"),
    [
        ("bernoulli", "neuron"),
        ("lfsr", "position"),
        ("lattice", "channel"),
        ("lattice", "tile:4x2"),
    ],
)
def test_elsewhere_the_papers_rule_holds(source: str, grain: str) -> None:
    fills = {
        layer.fill for layer in convert(Fire().eval(), source=source, grain=grain).layers.values()
    }
    assert fills == {"zero", "rescale"}


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "stencil"])
def test_flavour_can_be_asked_for(fill: str) -> None:
    net = convert(sequential().eval(), fill=fill)
    assert {(report.fill, report.reason) for report in net.report} == {(fill, "as asked")}
    assert {layer.fill for layer in net.layers.values()} == {fill}


# --- what is left awake --------------------------------------------------------------------------


def test_other_kinds_of_convolution_are_reported() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
            self.own = type("OwnConv2d", (nn.Conv2d,), {})(3, 3, 1)
            self.line = nn.Conv1d(3, 3, 1)
            self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(self.own(self.up(self.conv(x))), self.weight)
            return self.line(x.flatten(2))

    model = Kinds().eval()
    net = convert(model)
    # A subclass that runs nn.Conv2d's own code is one at heart.
    assert list(net.layers) == ["conv", "own"]
    left = {report.geometry: report.reason for report in net.report if report.fill is None}
    assert left == {
        "ConvTranspose2d": "left awake: ConvTranspose2d is not an nn.Conv2d",
        "Conv1d": "left awake: Conv1d is not an nn.Conv2d",
        "F.conv2d": "left awake: F.conv2d is not an nn.Conv2d",
    }
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(model, x))


def test_a_weight_that_is_computed_anew_at_every_call_is_computed_once() -> None:
    model = sequential().eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    # As after loading: what the weight is made from has changed, the weight itself has not yet.
    model.get_parameter("0.weight_orig").data.mul_(3)
    model.requires_grad_(False)
    net = convert(model)
    assert "0" in net.layers
    assert set(net.state_dict()) == set(model.state_dict())
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(model, x))
    net.set(0.5)
    assert not torch.allclose(run(net, x), run(model, x))


@pytest.mark.parametrize(
    ("hooked", "left", "norm", "activation"),
    [("0", ["0"], None, None), ("1", [], None, "none"), ("2", [], "1", "none")],
)
def test_hooks_are_called(
    hooked: str, left: list[str], norm: str | None, activation: str | None
) -> None:
    norm_layer = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm_layer, nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    randomise_norms(model)
    model.get_submodule(hooked).register_forward_hook(lambda module, inputs, output: output * 2)
    net = convert(model)
    assert [name for name in ("0", "3") if name not in net.layers] == left
    assert (net.report[0].norm, net.report[0].activation) == (norm, activation)
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(model, x))


@pytest.mark.parametrize(
    ("skip", "converted"),
    [(["0"], ["4", "6"]), (["re:^[04]$"], ["6"]), (["4", "re:6"], ["0"]), ([], ["0", "4", "6"])],
)
def test_skipped_layers_stay_as_they_were(skip: list[str], converted: list[str]) -> None:
    model = randomise_norms(sequential())
    net = convert(model, skip=skip)
    assert list(net.layers) == converted
    for report in net.report:
        if report.name not in converted:
            assert report.reason == "left awake, as asked"
            assert (report.norm, report.activation, report.fill) == (None, None, None)
            assert net.get_submodule(report.name) is model.get_submodule(report.name)
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(model, x))


def test_options_reach_every_layer() -> None:
    net = convert(sequential().eval(), source="stratified", grain="position:4", k=4, seed=77)
    layers = list(net.layers.values())
    assert {layer.sleep.source.name for layer in layers} == {"stratified"}
    assert {str(layer.sleep.grain) for layer in layers} == {"position:4"}
    assert net.k == 4
    assert net.control.clock.tolist() == [77, 0]
    assert sorted(layer.sleep.stream for layer in layers) == [0, 1, 2]


# --- shipped and third-party networks ------------------------------------------------------------

# name: convolutions, smallest square input
SHIPPED = {
    "caffenet": (5, 99),
    "caffenet_cifar": (5, 32),
    "cifar_resnet20": (19, 16),
    "cifar_resnet56": (55, 16),
    "resnet18": (20, 32),
    "resnet50": (53, 32),
    "squeezenet1_1": (26, 64),
    "vgg16": (13, 32),
}


def test_every_shipped_network_is_tested() -> None:
    assert SHIPPED.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_network_converts_whole(name: str) -> None:
    convolutions, size = SHIPPED[name]
    with torch.device("meta"):
        model = models.create(name, num_classes=4)
        net = convert(model)
        x = torch.empty(1, 3, size, size)
        if name != "caffenet":
            assert run(net, x).shape == (1, 4)
    assert len(net.layers) == convolutions
    assert all(report.fill for report in net.report)
    assert net.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["caffenet_cifar", "cifar_resnet20", "resnet18", "squeezenet1_1"])
def test_shipped_network_computes_the_same_at_rate_zero(name: str) -> None:
    model = randomise_norms(models.create(name, num_classes=4))
    net = convert(model)
    x = torch.randn(1, 3, SHIPPED[name][1], SHIPPED[name][1])
    expected = run(model, x)
    torch.testing.assert_close(
        run(net, x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )
    net.set(0.5)
    assert not torch.allclose(run(net, x), expected)


def test_caffenet_gets_the_papers_flavours() -> None:
    net = convert(models.create("caffenet_cifar"))
    assert [report.fill for report in net.report] == ["zero", "zero", "rescale", "rescale", "zero"]


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "googlenet"),
        ("torchvision", "densenet121"),
        ("timm", "resnet10t"),
        ("timm", "mobilenetv3_small_050"),
        ("timm", "efficientnet_lite0"),
    ],
)
def test_third_party_network_converts(package: str, name: str) -> None:
    library = pytest.importorskip(package)
    model = (
        library.create_model(name, pretrained=False)
        if package == "timm"
        else library.models.get_model(name, weights=None)
    )
    model = randomise_norms(model)
    net = convert(model)
    x = torch.randn(1, 3, 64, 64)
    expected = run(model, x)
    torch.testing.assert_close(
        run(net, x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


# --- the knob ------------------------------------------------------------------------------------


def rates(net: DrowsyNet) -> list[Fraction]:
    return [layer.rate for layer in net.layers.values()]


def test_one_rate_sets_every_layer(net: DrowsyNet) -> None:
    for rate in (0.5, Fraction(3, 8), 0):
        net.set(rate)
        assert rates(net) == [Fraction(rate)] * 3
    net.set(0.5)
    assert net.control.scales.tolist() == [1, 2, 2]


def test_mapping_sets_the_layers_it_names(net: DrowsyNet) -> None:
    net.set(0.5)
    net.set({"4": 0.25, "0": Fraction(7, 8)})
    assert rates(net) == [Fraction(7, 8), Fraction(1, 4), Fraction(1, 2)]


def test_schedule_sets_the_layers_it_names_and_wakes_the_others(net: DrowsyNet) -> None:
    net.set(0.5)
    net.set(Schedule(8, {"4": LayerSetting(Fraction(1, 4), "channel", "zero")}))
    assert rates(net) == [0, Fraction(1, 4), 0]
    assert str(net.layers["4"].sleep.grain) == "channel"
    assert net.layers["4"].fill == "zero"


def test_operating_point_is_set_by_its_schedule(net: DrowsyNet) -> None:
    class Point:
        schedule = Schedule(8, {"6": LayerSetting(Fraction(5, 8), "neuron", "rescale")})

    net.set(Point())
    assert rates(net) == [0, 0, Fraction(5, 8)]


def test_schedule_in_force_sets_the_network_as_it_is(net: DrowsyNet) -> None:
    net.set({"0": 0.5, "4": 0.25})
    net.set_grain("position:2")
    kept = net.schedule
    net.set(0.875, fill="zero")
    net.set_grain("channel")
    net.set(kept)
    assert net.schedule == kept
    assert kept.layers["0"] == LayerSetting(Fraction(1, 2), "position:2", "zero")


def test_fill_is_changed_and_auto_brings_back_the_rules(net: DrowsyNet) -> None:
    net.set(0.5, fill="rescale")
    assert net.control.scales.tolist() == [2, 2, 2]
    net.set(0.5, fill="zero")
    assert net.control.scales.tolist() == [1, 1, 1]
    net.set(0.5, fill="interpolate")
    assert net.control.scales.tolist() == [1, 1, 1]
    assert {setting.fill for setting in net.schedule.layers.values()} == {"interpolate"}
    net.set(0.5, fill="auto")
    assert net.control.scales.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        (0.3, {}),
        (1.0, {"fill": "rescale"}),
        (0.5, {"fill": "doze"}),
        ({"4": 0.5, "nine": 0.5}, {}),
        ({"0": 0.5, "4": 0.3}, {"fill": "zero"}),
        (Schedule(8, {"0": LayerSetting(Fraction(1, 2), "channel"), "nine": LayerSetting()}), {}),
        (Schedule(4, {"0": LayerSetting(Fraction(1, 2), "channel")}), {}),
        (Schedule(8, {"4": LayerSetting(Fraction(1, 2), "channel")}), {"fill": "nearest"}),
        ({"0": 0.5, "4": "half"}, {}),
        (None, {"fill": "zero"}),
    ],
    ids=str,
)
def test_failed_set_changes_nothing(net: DrowsyNet, setting: Any, options: dict[str, str]) -> None:
    net.set({"0": 0.25, "4": 0.75})
    net.set_grain("position:2")
    before, scales = net.schedule, net.control.scales.tolist()
    with pytest.raises((ValueError, TypeError), match=r"rate|layer|fill|schedule"):
        net.set(setting, **options)
    assert net.schedule == before
    assert net.control.scales.tolist() == scales


def test_set_takes_effect_in_place(net: DrowsyNet) -> None:
    buffers = {name: buffer.data_ptr() for name, buffer in net.control.named_buffers()}
    layers = dict(net.layers)
    net.set(0.5, fill="rescale")
    net.reseed(5)
    assert {name: buffer.data_ptr() for name, buffer in net.control.named_buffers()} == buffers
    assert all(net.layers[name] is layer for name, layer in layers.items())


def test_every_inference_draws_new_maps_and_reseeding_repeats_them(net: DrowsyNet) -> None:
    net.set(0.5)
    x = torch.randn(X)
    outputs = [run(net, x) for _ in range(3)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    assert net.control.clock.tolist() == [0, 6]
    net.reseed(0)
    assert torch.equal(run(net, x), outputs[0])
    net.reseed(0, image=4)
    assert torch.equal(run(net, x), outputs[2])
    net.reseed(1)
    assert not torch.equal(run(net, x), outputs[0])


def test_layers_of_a_network_sleep_independently() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    for conv in model:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    net = convert(model, fill="zero")
    x = torch.ones(4, 3, 32, 32)
    net.set({"0": 0.5})
    net.set({"1": 0.5})
    asleep = (run(net, x) == 0).float().mean().item()
    # 3/4 where the two layers' maps are independent, 1/2 where they are the same.
    assert asleep == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / x.numel()) ** 0.5)


# --- copies, compilation, loading ----------------------------------------------------------------


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("network", ["sequential", "residual x + y", "fire"], indirect=True)
def test_copy_computes_alike_and_is_independent(
    network: nn.Module, copy_of: Callable[[DrowsyNet], DrowsyNet]
) -> None:
    net = convert(network)
    net.set(0.5)
    net.reseed(4, 10)
    copied = copy_of(net)
    x = torch.randn(X)
    assert torch.equal(run(copied, x), run(net, x))
    assert copied.schedule == net.schedule
    assert copied.control.clock.tolist() == net.control.clock.tolist() == [4, 12]

    before = net.schedule
    copied.set(0.25)
    assert net.schedule == before
    assert not torch.equal(run(copied, x), run(net, x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.refresh()
    net.set(0)
    torch.testing.assert_close(run(net, x), run(network, x))


def test_compiled_network_follows_the_knob_without_recompiling(net: DrowsyNet) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(X)
    net.settle(x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate, seed in ((0, 0), (0.5, 0), (0.5, 1), (0.875, 1)):
            net.set(rate)
            net.reseed(seed)
            first, second = run(compiled, x), run(compiled, x)
            net.reseed(seed)
            torch.testing.assert_close([first, second], [run(net, x), run(net, x)])
            assert torch.equal(first, second) == (rate == 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_network_is_compared_before_its_first_compiled_call() -> None:
    torch._dynamo.reset()
    network, x = randomise_norms(sequential()), torch.randn(X)
    net = convert(network)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call it once before it is compiled"):
        run(torch.compile(net, fullgraph=True, backend="eager"), x)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(run(compiled, x), run(network, x))
    net.set(0.5)
    net.reseed(1)
    first = run(compiled, x)
    net.reseed(1)
    torch.testing.assert_close(run(net, x), first)


def test_exported_network_sleeps_as_it_did(net: DrowsyNet) -> None:
    net.set(0.5)
    x = torch.randn(X)
    net.settle(x)
    with torch.no_grad():
        exported = torch.export.export(net, (x,)).module()
        net.reseed(0)
        expected = [net(x) for _ in range(2)]
        # The exported program reads the network's own knob and clock.
        net.reseed(0)
        torch.testing.assert_close([exported(x) for _ in range(2)], expected)


def test_a_network_that_was_exported_is_as_it_was(net: DrowsyNet) -> None:
    x = torch.randn(X)
    net.settle(x)
    net.set(0.5)
    with torch.no_grad():
        torch.export.export(net, (x,))
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            for network in (net, other):
                network.reseed(0)
            assert torch.equal(other(x), net(x))
        # Weights that are given for a call are those that it computes with.
        net.set(0)
        given = {name: value * 1.5 for name, value in net.named_parameters()}
        expected = torch.func.functional_call(net.original, given, (x,))
        torch.testing.assert_close(torch.func.functional_call(net, given, (x,)), expected)


def test_loading_weights_folds_the_norms_again() -> None:
    net = convert(randomise_norms(sequential()))
    other = randomise_norms(sequential())
    net.load_state_dict(other.state_dict())
    x = torch.randn(X)
    torch.testing.assert_close(run(net, x), run(other, x))


def test_refresh_follows_weights_changed_by_hand() -> None:
    model = randomise_norms(sequential())
    net = convert(model)
    x = torch.randn(X)
    before = run(net, x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    net.refresh()
    torch.testing.assert_close(run(net, x), run(model, x))
    assert not torch.allclose(run(net, x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_network_follows_a_change_of_dtype(dtype: torch.dtype) -> None:
    net = convert(randomise_norms(sequential()))
    net.set(0.375)
    scales = net.control.scales.clone()
    net.to(dtype)
    assert net.control.scales.dtype == torch.float32
    assert torch.equal(net.control.scales, scales)
    assert run(net, torch.randn(X, dtype=dtype)).dtype == dtype


def test_layers_are_found_in_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x)).mean((2, 3))

    net = convert(Backwards().eval())
    assert list(net.layers) == ["first", "last"]
    assert all(isinstance(layer, DrowsyConv2d) for layer in net.layers.values())
