"""The executor: what a network computes node by node, and what it forgets when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from drowsy.graph.convert import convert
from drowsy.graph.running import Executor, shapes
from drowsy.network.net import DrowsyNet


class Every(nn.Module):
    """Nodes of every kind, a result that nobody reads, and a second input with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor, factor: float = 0.5) -> tuple[Tensor, Tensor]:
        y = self.conv1(x).relu() * self.gain
        y.neg()
        return torch.add(self.conv2(input=y), y, alpha=2), y * factor


class Controlled(nn.Module):
    """An input that bears the name of a network's control."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, control: Tensor) -> Tensor:
        return self.conv(control)


class Two(Controlled):
    """Another input, without a default."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.conv(x) + y


@pytest.fixture
def net() -> DrowsyNet:
    net = convert(Every().eval())
    net.reseed(3, 14)
    return net


@torch.inference_mode()
def test_what_runs_is_the_network_awake_with_its_clock_standing_still(net: DrowsyNet) -> None:
    x = torch.randn(2, 3, 5, 5)
    net.set(0.5)
    *_, (node, result) = Executor(net).run(x)
    assert node.op == "output"
    assert net.control.clock.tolist() == [3, 14]
    net.set(0)
    for mine, expected in zip(result, net(x), strict=True):
        assert torch.equal(mine, expected)
    assert net.control.clock.tolist() == [3, 16]


@torch.inference_mode()
def test_a_value_is_held_for_its_last_reader_and_no_longer(net: DrowsyNet) -> None:
    executor = Executor(net)
    values = executor.start(torch.randn(2, 3, 5, 5))
    for place, node in enumerate(executor.nodes):
        values[node] = executor.compute(node, values)
        executor.drop(node, values)
        later = {used for user in executor.nodes[place + 1 :] for used in user.all_input_nodes}
        # Inputs are given before their nodes run.
        inputs = {node for node in executor.nodes[place + 1 :] if node.op == "placeholder"}
        assert values.keys() == (later & set(executor.nodes[: place + 1])) | inputs
    assert not values


def test_a_child_called_control_is_the_models_own() -> None:
    controlled = convert(Controlled().eval())
    x = torch.randn(2, 3, 5, 5)
    with torch.inference_mode():
        *_, (_, result) = Executor(controlled).run(x)
        assert torch.equal(result, controlled(x))


def test_an_input_without_a_value_is_named() -> None:
    net = convert(Two().eval())
    with pytest.raises(ValueError, match="net: its input y has no default, allowed: one input"):
        Executor(net).start(torch.randn(2, 3, 5, 5))


def test_shapes_are_those_of_tensors_alone(net: DrowsyNet) -> None:
    found = {
        node.name: tuple(shape) for node, shape in shapes(net, torch.randn(2, 3, 6, 5)).items()
    }
    assert found["x"] == (2, 3, 6, 5)
    assert found["conv1"] == found["conv2"] == found["mul"] == (2, 4, 6, 5)
    assert found["gain"] == (4, 1, 1)
    assert not found.keys() & {"control", "output", "factor"}
    assert net.control.clock.tolist() == [3, 14]
