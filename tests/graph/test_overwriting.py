"""Which operations overwrite what they read, and what does the same without overwriting."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.convert import convert
from drowsy.graph.overwriting import (
    Apart,
    check_overwritten,
    overwriting,
    without_overwriting,
)


class Calls(nn.Module):
    """One operation on a tensor."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.relu, self.pure = nn.ReLU(inplace=True), nn.ReLU()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


# By name: the operation, and its twin.
OVERWRITES: dict[str, tuple[Callable[[Any, Tensor], Any], object]] = {
    "module": (lambda m, x: m.relu(x), nn.ReLU),
    "by name": (lambda m, x: F.relu6(x, inplace=True), F.relu6),
    "by position": (lambda m, x: F.hardswish(x, True), F.hardswish),
    "function": (lambda m, x: torch.relu_(x), torch.relu),
    "function of nn.functional": (lambda m, x: F.leaky_relu_(x, 0.2), F.leaky_relu),
    "function of a keyword": (lambda m, x: F.relu_(input=x), torch.relu),
    "method": (lambda m, x: x.mul_(0.5), "mul"),
    "out": (lambda m, x: torch.mul(x, 0.5, out=x), torch.mul),
    "tensor last": (lambda m, x: F.leaky_relu_(negative_slope=0.2, input=x), F.leaky_relu),
}
PURE: dict[str, Callable[[Any, Tensor], Any]] = {
    "module": lambda m, x: m.pure(x),
    "by name": lambda m, x: F.relu(x, inplace=False),
    "by position": lambda m, x: F.relu(x, False),
    "function": lambda m, x: torch.relu(x),
    "method": lambda m, x: x.mul(2),
    "dunder": lambda m, x: x.__getitem__(0),
    "operator": lambda m, x: x + 1,
    "of no tensor": lambda m, x: (torch.relu_(torch.ones(3)), x)[1],
}


def traced(function: Callable[[Any, Tensor], Any]) -> tuple[Calls, fx.Graph, dict[str, Any]]:
    model = Calls(function).eval()
    graph = fx.Tracer().trace(model)
    return model, graph, dict(model.named_modules())


@pytest.mark.parametrize("name", OVERWRITES)
def test_what_overwrites_is_found_with_its_twin(name: str) -> None:
    function, twin = OVERWRITES[name]
    model, graph, modules = traced(function)
    placeholder, node, _ = graph.nodes
    found = overwriting(node, modules)
    assert found is not None
    assert found.overwritten == (placeholder,)
    assert type(found.twin) is twin if isinstance(twin, type) else found.twin == twin
    x = torch.randn(3, 4)
    pure = without_overwriting(graph, modules, {})
    if "relu_pure" in modules:
        model.add_module("relu_pure", modules["relu_pure"])
    kept = x.clone()
    result = fx.GraphModule(model, pure)(x)
    assert torch.equal(x, kept)
    assert torch.equal(model(x), result)
    assert torch.equal(x, result)
    assert not torch.equal(x, kept)


@pytest.mark.parametrize(
    ("function", "twin"),
    [
        (operator.iadd, operator.add),
        (operator.isub, operator.sub),
        (operator.imul, operator.mul),
        (operator.itruediv, operator.truediv),
        (operator.ifloordiv, operator.floordiv),
        (operator.imod, operator.mod),
        (operator.ipow, operator.pow),
    ],
)
def test_augmented_assignments_have_operators_as_twins(
    function: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    graph = fx.Graph()
    node = graph.call_function(function, (graph.placeholder("x"), 2))
    graph.output(node)
    found = overwriting(node, {})
    assert found is not None
    assert (found.overwritten, found.twin) == ((node.args[0],), twin)
    assert (found.args, found.kwargs) == (node.args, {})
    x = torch.randn(3, 4)
    kept = x.clone()
    result = fx.GraphModule({}, without_overwriting(graph, {}, {}))(x)
    assert torch.equal(result, twin(kept, 2))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", PURE)
def test_what_does_not_overwrite_has_no_twin(name: str) -> None:
    _, graph, modules = traced(PURE[name])
    assert [overwriting(node, modules) for node in graph.nodes] == [None] * len(graph.nodes)


def test_a_function_without_a_known_twin_stays() -> None:
    def own_(x: Tensor) -> Tensor:
        return x.add_(1)

    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(own_, (x,))
    graph.output((node, x))
    found = overwriting(node, {})
    assert found is not None
    assert found.twin is None
    same = without_overwriting(graph, {}, {})
    assert [node.target for node in same.nodes] == ["x", own_, "output"]
    assert [node.name for node in same.nodes][:2] == [
        used.name for used in reversed(list(same.nodes)[-1].all_input_nodes)
    ]


def test_what_was_overwritten_is_read_from_the_result() -> None:
    def function(_: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        before = x + 1
        F.relu_(input=x)
        return before, x * 2

    model, graph, modules = traced(function)
    pure = fx.GraphModule(model, without_overwriting(graph, modules, {}))
    x = torch.randn(3, 4)
    for mine, expected in zip(pure(x), model(x.clone()), strict=True):
        assert torch.equal(mine, expected)


SEVERAL: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "list": (torch._foreach_mul_, (["x", "y"], 2.0), {}),
    "outs": (torch.max, ("z", 0), {"out": ("x", "y")}),
    "item": (operator.setitem, ("x", 0, "y"), {}),
    "copy": (Tensor.copy_, ("x", "y"), {}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_what_writes_over_several_tensors_or_a_part_has_no_twin(name: str) -> None:
    function, args, kwargs = SEVERAL[name]
    graph = fx.Graph()
    nodes = {each: graph.placeholder(each) for each in "xyz"}

    def given(value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: nodes.get(v, v) if v in list("xyz") else v)

    node = graph.call_function(function, given(args), given(kwargs))
    graph.output(node)
    found = overwriting(node, {})
    assert found is not None
    expected = (nodes["x"],) if name in ("item", "copy") else (nodes["x"], nodes["y"])
    assert (found.overwritten, found.twin) == (expected, None)


def test_a_method_without_a_twin_has_none() -> None:
    for name in ("copy_", "zero_"):
        _, graph, modules = traced(
            lambda m, x, name=name: getattr(x, name)(*[x][: name == "copy_"])
        )
        found = overwriting(list(graph.nodes)[1], modules)
        assert found is not None
        assert found.twin is None


def test_what_was_written_by_out_is_read_from_the_result() -> None:
    def function(_: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        torch.sub(x, 3, out=y)
        return x, y * 2

    model, graph, modules = traced(function)
    pure = fx.GraphModule(model, without_overwriting(graph, modules, {}))
    x = torch.randn(3, 4)
    for mine, expected in zip(pure(x), model(x.clone()), strict=True):
        assert torch.equal(mine, expected)
    assert not any(node.kwargs for node in pure.graph.nodes)


# --- memory that others hold ---------------------------------------------------------------------


@fx.wrap
def doubled(x: Tensor) -> Tensor:
    """Overwrites, whatever its name says, and puts out something else."""
    return x.mul_(2) + 1


@fx.wrap
def halved(x: Tensor) -> Tensor:
    return x / 2


class Convolved(Calls):
    """An operation on what a layer puts out, which is read again."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(function)
        self.conv = nn.Conv2d(3, 4, 1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        y = x.flatten(2)
        return self.function(self, x), x + 1, y * 2


APART: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "in place": (lambda m, x: x.mul_(2), 1),
    "of one's own": (lambda m, x: doubled(x), 1),
    "of one's own, pure": (lambda m, x: halved(x), 0),
    "through a view": (lambda m, x: x[:, :2].mul_(2), 1),
    "through a chunk": (lambda m, x: x.chunk(2, 1)[1].mul_(2), 1),
    "list": (lambda m, x: torch._foreach_mul_([x], 2), 1),
    "out": (lambda m, x: torch.mul(x, 2, out=x), 1),
    "parameter": (lambda m, x: m.gain.mul_(2) + x, 1),
    "operator of a library": (lambda m, x: torch.ops.aten.mul_(x, 2), 1),
}


@pytest.mark.parametrize("name", APART)
def test_a_state_can_be_gone_on_from_twice(name: str) -> None:
    function, writers = APART[name]
    net = convert(Convolved(function).eval())
    images = torch.randn(2, 3, 4, 4)
    gain = net.gain.clone()
    net.settle(images)  # which runs the model, and so may write to its parameter
    with torch.no_grad():
        net.gain.copy_(gain)
        executor = Apart(net)
        nodes = executor.nodes
        at = next(i for i, node in enumerate(nodes) if node.target == "conv") + 1
        state = executor.start(images)
        for node in nodes[:at]:
            state[node] = executor.compute(node, state)
        held = {node: value.clone() for node, value in state.items()}
        results = []
        for _ in range(2):
            values = dict(state)
            for node in nodes[at:]:
                values[node] = executor.compute(node, values)
            results.append(values[nodes[-1]])
            assert all(torch.equal(state[node], value) for node, value in held.items())
            assert torch.equal(net.gain, gain)
        assert sum(map(bool, executor._overwritten.values())) == writers
        expected = net(images)
    for result in results:
        for mine, want in zip(result, expected, strict=True):
            assert all(
                map(torch.equal, *([v] if isinstance(v, Tensor) else v for v in (mine, want)))
            )


class Deployable(nn.Module):
    """An operation on what a layer puts out, between layers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.function(x, self.b(x))


@pytest.mark.parametrize(
    "function",
    [lambda x, y: torch.add(x, y, out=x) + x, lambda x, y: (torch.add(x, y, out=y), x)[1]],
    ids=["read from the result", "not read"],
)
def test_what_is_written_by_out_can_be_deployed(function: Callable[[Tensor, Tensor], Any]) -> None:
    check_overwritten(convert(Deployable(function).eval()), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x, y: doubled(x) + x, "doubled overwrites memory that add reads through a"),
        (
            lambda x, y: (torch._foreach_mul_([x, y], 2), x + y)[1],
            "_foreach_mul_ overwrites .* through a",
        ),
        (lambda x, y: (x.zero_(), x + y)[1], "zero_ overwrites .* add reads through a"),
        (
            lambda x, y: (torch.add(x, y, out=x[:]), x)[1],
            "add overwrites .* output reads through a",
        ),
    ],
    ids=["one's own", "list", "no twin", "out to a view"],
)
def test_what_no_result_stands_for_is_not_deployed(
    function: Callable[[Tensor, Tensor], Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"net: {told}"):
        check_overwritten(convert(Deployable(function).eval()), torch.randn(2, 3, 4, 4))
