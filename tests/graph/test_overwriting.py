"""Which operations overwrite what they read, and what does the same without overwriting."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.overwriting import overwriting, without_overwriting


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
    assert (found.twin, found.args, found.kwargs) == (twin, node.args, {})
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
