"""What modules that layers stand for compute by beside tensors is asked for as it is now."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.network.net import DrowsyNet
from drowsy.network.norms import activation_at_heart


class NormAct(nn.BatchNorm2d):
    """A norm that applies an activation itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Net(nn.Module):
    """Of one neuron with a norm and one without, each with an activation."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(2, 4, 3), norm, act
        self.second, self.last = nn.Conv2d(4, 3, 1), copy.deepcopy(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.act(self.norm(self.first(x)))))


CHANGES: dict[str, tuple[type[nn.Module], nn.Module, str, str, Any]] = {
    "slope": (nn.BatchNorm2d, nn.LeakyReLU(0.1), "act", "negative_slope", -2.0),
    "slope of the last": (nn.BatchNorm2d, nn.LeakyReLU(0.1), "last", "negative_slope", 0.7),
    "approximation": (nn.BatchNorm2d, nn.GELU(), "last", "approximate", "tanh"),
    "eps": (nn.BatchNorm2d, nn.ReLU(), "norm", "eps", 3.0),
    "eps of a norm with an activation": (NormAct, nn.Identity(), "norm", "eps", 3.0),
    "slope in a norm": (NormAct, nn.Identity(), "norm.act", "negative_slope", -2.0),
    "activation in a norm": (NormAct, nn.Identity(), "norm", "act", nn.Sigmoid().eval()),
}
# Which of a neuron's activations have.
CLASSES = {
    "bound": (nn.BatchNorm2d, nn.ReLU6(), "act", "max_val", 0.3),
    "slope without end": (nn.BatchNorm2d, nn.LeakyReLU(0.1), "act", "negative_slope", float("inf")),
    "unknown activation in a norm": (NormAct, nn.Identity(), "norm", "act", nn.Softsign().eval()),
}


def made(name: str, **options: Any) -> tuple[DrowsyNet, Tensor]:
    norm, act, *_ = (CHANGES | CLASSES)[name]
    torch.manual_seed(0)
    x = torch.randn(2, 2, 9, 8)
    return drowsy.convert(Net(norm(4), copy.deepcopy(act)).eval(), x, **options), x


def change(model: nn.Module, name: str) -> None:
    *_, where, attribute, value = (CHANGES | CLASSES)[name]
    setattr(model.get_submodule(where), attribute, copy.deepcopy(value))


def converted_after(net: DrowsyNet, x: Tensor, **options: Any) -> DrowsyNet:
    """Of a model of the same weights, that was changed before."""
    return drowsy.convert(copy.deepcopy(net.original), x, **options)


WAYS: dict[str, dict[str, Any]] = {
    "eager": {"backend": "torch"},
    "a way of the CPU": {"backend": "torch", "source": "stratified", "grain": "position"},
    "folded at every call": {"fold_bn": False},
}


@torch.no_grad()
@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_followed(name: str, way: str, rate: float) -> None:
    net, x = made(name, **WAYS[way])
    net.set(rate)
    before, _ = net(x), net(x)
    copied = copy.deepcopy(net)
    change(net.model, name)
    fresh = converted_after(net, x, **WAYS[way])
    fresh.set(rate)
    for each in (net, fresh):
        each.reseed(0)
    expected = fresh(x)
    assert (expected - before).abs().max() > 2e-5
    torch.testing.assert_close(net(x), expected)
    net.refresh()
    net.reseed(0)
    torch.testing.assert_close(net(x), expected)
    # A copy made before asks modules of its own.
    copied.reseed(0)
    torch.testing.assert_close(copied(x), before)


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_layers_called_by_themselves_follow(name: str) -> None:
    net, x = made(name)
    before = net(x)
    change(net.original, name)
    first, second = net.layers.values()
    y = second.compute(first.compute(x))
    assert (y - before).abs().max() > 2e-5
    torch.testing.assert_close(y, net.original(x))


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_compiled_networks_follow(name: str) -> None:
    net, x = made(name)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    net.set(0.5)
    compiled(x)
    change(net.model, name)
    net.reseed(0)
    expected = net(x)
    net.reseed(0)
    torch.testing.assert_close(compiled(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_streams_follow(name: str) -> None:
    net, x = made(name)
    stream = drowsy.Stream(net, cut=None, backend="torch")
    for _ in range(2):
        before = stream(x[:1])
    change(net.model, name)
    got = stream(x[:1])
    assert (got - before).abs().max() > 2e-5
    torch.testing.assert_close(got, net(x[:1]))


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_what_has_become_none_of_a_neurons_leaves_the_neuron(name: str) -> None:
    net, x = made(name)
    net.set(0.5)
    net(x)
    change(net.model, name)
    with pytest.warns(UserWarning, match="allowed: none, relu, .*; convert the network anew"):
        net(x)
    net.set(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(net(x), net.original(x), equal_nan=True)
    stream = drowsy.Stream(net, cut=None)
    with pytest.raises(ValueError, match="a stream needs the network's graph"):
        stream(x[:1])


@torch.no_grad()
def test_a_correction_is_of_the_norm_that_it_was_made_over() -> None:
    net, x = made("eps")
    layer = net.layers["first"]
    layer.correct(torch.full((4,), 2.0), torch.zeros(4))
    net(x)
    change(net.model, "eps")
    with pytest.raises(RuntimeError, match="of a norm's eps call"):
        net(x)
    layer.uncorrect()
    torch.testing.assert_close(net(x), net.original(x))


@torch.no_grad()
def test_bounds_that_are_none_of_relu6_are_none_of_a_neurons() -> None:
    act = nn.ReLU6()
    act.max_val = 0.3
    assert activation_at_heart(act) is None
    layer = drowsy.convert(nn.Sequential(nn.Conv2d(2, 4, 3), act).eval()).layers["0"]
    assert layer.activation == "none"


def test_a_layer_of_its_own_asks_its_module() -> None:
    act, x = nn.LeakyReLU(0.1), torch.randn(1, 2, 5, 5)
    layer = drowsy.DrowsyConv2d(2, 3, 3, activation=act)
    with torch.no_grad():
        for slope in (0.1, -2.0):
            act.negative_slope = slope
            expected = F.leaky_relu(F.conv2d(x, layer.weight, layer.bias), slope)
            torch.testing.assert_close(layer(x), expected)
    layer = drowsy.DrowsyConv2d.from_conv(nn.Conv2d(2, 4, 3), norm=NormAct(4).eval())
    with pytest.raises(ValueError, match="got 'relu' after a norm that applies leaky_relu"):
        layer.activation = "relu"
