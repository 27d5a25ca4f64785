"""``net.compile()``, and parts of a network or of its model that are compiled by themselves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import drowsy
from drowsy.correction.by_forward import corrections_by_forward
from drowsy.evaluation.evaluator import Evaluator
from drowsy.graph.convert import convert, revert
from drowsy.knob.costs import network_cost
from drowsy.network.expected import expected_times
from drowsy.network.net import DrowsyNet
from drowsy.tuning.maps import sleep_map

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


def watched() -> tuple[DrowsyNet, DrowsyNet, Tensor]:
    """A network that is compiled, and has run so, one that is not, and images."""
    network, x = (
        nn.Sequential(model(), nn.Flatten(), nn.Linear(4 * 5 * 4, 3)).eval(),
        torch.randn(X),
    )
    nets = [convert(network, x, source="lattice", grain="position") for _ in range(2)]
    nets[0].compile(backend="eager")
    run(nets[0], x)
    return nets[0], nets[1], x


def evaluated(net: DrowsyNet, x: Tensor) -> Any:
    counts = Evaluator(net, x).evaluate((4, 4))
    return counts.agree, round(counts.divergence, 5)


def slept(net: DrowsyNet, x: Tensor) -> Any:
    net.set(0.5)
    net.reseed(1)
    return sleep_map(net, x).tolist()


WATCHING: dict[str, Callable[[DrowsyNet, Tensor], Any]] = {
    "calibrate": lambda net, x: drowsy.calibrate(net, x, [0.5]) and None,
    "calibrate, by forward": lambda net, x: (
        corrections_by_forward(net, x, False, 0, 2, False) and None
    ),
    "reconstruct": lambda net, x: (
        drowsy.calibrate(net, x.repeat(2, 1, 1, 1), [0.5], reconstruct=True) and None
    ),
    "stencils": drowsy.calibrate_stencils,
    "cost": lambda net, x: network_cost(net, x.shape[1:]),
    "expected times": lambda net, x: list(expected_times(net, x)),
    "evaluate": evaluated,
    "a stream": lambda net, x: drowsy.Stream(net, cut=None).bytes_for(x[:1]),
    "sleep map": slept,
    "a mode": lambda net, x: flops(net, x),
}


def flops(net: DrowsyNet, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(net, x)
    return counter.get_total_flops()


@pytest.mark.parametrize("way", WATCHING)
def test_who_watches_a_compiled_network_sees_its_own_code(way: str) -> None:
    net, plain, x = watched()
    compiled = net._compiled_call_impl
    found, expected = (WATCHING[way](each, x) for each in (net, plain))
    assert found == expected
    # And the process compiles as before: this network, and others.
    assert net._compiled_call_impl is compiled
    assert_the_same(net, plain, x)
    other = model()
    torch.testing.assert_close(run(torch.compile(other, backend="eager"), x), run(other, x))
    other.compile(backend="eager")
    torch.testing.assert_close(run(convert(other, x), x), run(other, x))


def test_a_compiled_models_cost_is_its_own() -> None:
    _, plain, x = watched()
    network = plain.original
    expected = network_cost(network, x.shape[1:])
    network.compile(backend="eager")
    network[0][0].compile(backend="eager")
    run(network, x)
    frames: list[Any] = []
    network[2].register_forward_pre_hook(lambda *_: frames.append(torch.compiler.is_compiling()))
    assert network_cost(network, x.shape[1:]) == expected
    assert frames == [False]
    assert network._compiled_call_impl is not None
    assert network[0][0]._compiled_call_impl is not None


def test_what_was_compiled_is_given_back_after_an_error() -> None:
    net, _, _ = watched()
    compiled = net._compiled_call_impl
    with suppress(KeyError), net.kept():
        assert net._compiled_call_impl is None
        raise KeyError
    assert net._compiled_call_impl is compiled
