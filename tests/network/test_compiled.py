"""``net.compile()``, and parts of a network or of its model that are compiled by themselves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.fx.experimental.proxy_tensor import make_fx

from drowsy.graph.convert import convert, revert
from drowsy.network.net import DrowsyNet

X = (2, 3, 9, 8)


def run(module: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(x)


def model() -> nn.Module:
    """Of activations that are others where they are applied twice."""
    torch._dynamo.reset()
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    first = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.LeakyReLU(0.3))
    return nn.Sequential(first, nn.Conv2d(6, 4, 3), nn.LeakyReLU(-0.5)).eval()


def assert_the_same(net: DrowsyNet, other: DrowsyNet, x: Tensor) -> None:
    """At rates and seeds in turn, twice each."""
    for rate, seed in ((0, 0), (0.5, 0), (0.5, 1), (0.25, 1)):
        for each in (net, other):
            each.set(rate)
            each.reseed(seed)
        for _ in range(2):
            torch.testing.assert_close(run(net, x), run(other, x))


@pytest.mark.parametrize("compared", [False, True])
def test_a_network_is_compiled_in_place(compared: bool) -> None:
    network, x = model(), torch.randn(X)
    net, plain = (convert(network, x if compared else None) for _ in range(2))
    net.compile(backend="eager")
    torch.testing.assert_close(run(net, x), run(network, x))
    assert_the_same(net, plain, x)
    # The call is compiled, and neither the code that runs in it nor the model.
    assert net._compiled_call_impl is not None
    for other in (net.model, net.original, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other._compiled_call_impl is None
    assert_the_same(copy.deepcopy(net), plain, x)
    assert torch.equal(run(revert(net), x), run(network, x))


def test_a_whole_graph_needs_a_comparison_before() -> None:
    net, x = convert(model()), torch.randn(X)
    net.compile(backend="eager", fullgraph=True)
    with pytest.raises(Unsupported, match="call it once before it is compiled"):
        run(net, x)
    net.settle(x)
    torch.testing.assert_close(run(net, x), run(net.original, x))


@pytest.mark.parametrize("name", ["", "0", "0.0", "0.2"])
def test_what_was_compiled_before_conversion_is_the_models(name: str) -> None:
    network, x = model(), torch.randn(X)
    plain, expected = convert(network, x), run(network, x)
    network.get_submodule(name).compile(backend="eager")
    assert_the_same(convert(network), plain, x)
    torch.testing.assert_close(run(network, x), expected)


def test_an_activation_may_be_compiled() -> None:
    network, x = model(), torch.randn(X)
    net, plain = convert(network, x), convert(network, x)
    net[0][2].compile(backend="eager")
    assert_the_same(net, plain, x)


PARTS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "compile": lambda part, x: torch.compile(part, backend="eager")(x),
    "export": lambda part, x: torch.export.export(part, (x,)),
    "trace": lambda part, x: torch.jit.trace(part, x),
    "symbols": lambda part, x: torch.fx.symbolic_trace(part),
    "make_fx": lambda part, x: make_fx(part)(x),
    "make_fx, fake": lambda part, x: make_fx(part, tracing_mode="fake")(x),
}


@torch.no_grad()
@pytest.mark.parametrize("way", PARTS)
def test_a_part_alone_is_refused(way: str) -> None:
    x = torch.randn(X)
    net = convert(model(), x)
    for part in (net[0], net[0][0], net.model):
        with pytest.raises(RuntimeError, match="net: a part of it is compiled, exported or traced"):
            PARTS[way](part, x)


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("name", ["0", "0.0"])
def test_a_compiled_part_is_refused_within_its_network(name: str, compared: bool) -> None:
    x = torch.randn(X)
    net = convert(model(), x if compared else None)
    net.get_submodule(name).compile(backend="eager")
    with pytest.raises(RuntimeError, match="net: a part of it is compiled, exported or traced"):
        run(net, x)
