"""Stages: which layers share a resolution, and one position map once aligned."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.graph.running import shapes
from drowsy.graph.stages import align, explain, find_stages, find_ties
from drowsy.sleep import detail_map, levels


def stages_of(name: str, size: int) -> list[tuple[tuple[int, int], int]]:
    """``(size, number of layers)`` of a registered network's stages."""
    net = drowsy.convert(models.create(name))
    return [(s.size, len(s.layers)) for s in find_stages(net, torch.zeros(1, 3, size, size))]


def test_stages_of_known_networks() -> None:
    assert stages_of("caffenet_cifar", 32) == [((32, 32), 1), ((16, 16), 1), ((8, 8), 3)]
    assert stages_of("cifar_resnet20", 32) == [((32, 32), 7), ((16, 16), 6), ((8, 8), 6)]
    # The first 1x1 of a ResNet-50 stage still runs at the resolution of the stage before.
    assert stages_of("resnet50", 64) == [
        ((32, 32), 1),
        ((16, 16), 11),
        ((8, 8), 13),
        ((4, 4), 19),
        ((2, 2), 9),
    ]
    assert [n for _, n in stages_of("squeezenet1_1", 67)] == [1, 6, 6, 13]


class _Net(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "together"),
    [
        (nn.ReLU(), True),
        (nn.Sequential(nn.ReLU(), nn.Dropout()), True),
        (lambda x: F.dropout(x, training=False), True),
        (lambda x: x + x.relu(), True),
        (lambda x: torch.cat([x, x], 1)[:, :4], False),
        (nn.MaxPool2d(3, 1, 1), False),
        # Not 0 at 0: a sleeper would wake.
        (lambda x: x.relu().sigmoid(), False),
        (lambda x: x + 1, False),
        (nn.BatchNorm2d(4), True),  # folded into the layer
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), False),
        (lambda x: torch.cat([x, x], 2)[:, :, :9], False),
    ],
    ids=[
        "relu",
        "relu-dropout",
        "dropout",
        "sum",
        "channels",
        "pool",
        "sigmoid",
        "constant",
        "norm",
        "relu-norm",
        "rows",
    ],
)
def test_what_may_lie_between_the_layers_of_a_stage(between: Any, together: bool) -> None:
    net = drowsy.convert(_Net(between).eval())
    stages = find_stages(net, torch.zeros(1, 3, 9, 7))
    expected = [("first", "second")] if together else [("first",), ("second",)]
    assert [stage.layers for stage in stages] == expected


def test_a_sum_joins_its_operands_and_a_smaller_operand_does_not() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.gate = (nn.Conv2d(3, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x) + self.gate(x.mean((2, 3), keepdim=True))

    net = drowsy.convert(Gated().eval())
    stages = find_stages(net, torch.zeros(1, 3, 9, 7))
    assert [(s.size, s.layers) for s in stages] == [((9, 7), ("a", "b")), ((1, 1), ("gate",))]


def test_borders_are_named() -> None:
    net = drowsy.convert(models.create("caffenet_cifar"))
    last = find_stages(net, torch.zeros(1, 3, 32, 32))[-1]
    assert (last.inputs, last.ends) == (("norm2",), ("pool5",))
    text = explain(find_stages(net, torch.zeros(1, 3, 32, 32)))
    assert "conv3 .. conv5 (3)" in text
    assert "pool5" in text


def test_finding_stages_computes_and_changes_nothing() -> None:
    net = drowsy.convert(models.create("cifar_resnet20"))
    net.reseed(3, 5)
    example = torch.zeros(2, 3, 32, 32)
    found = shapes(net, example)
    assert found[next(n for n in net.graph.nodes if n.name == "conv1")] == (2, 16, 32, 32)
    assert net.control.clock.tolist() == [3, 5]
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())


def test_aligned_layers_sleep_at_the_same_positions() -> None:
    net = drowsy.convert(_Net(nn.ReLU()).eval())
    net.set(0.5)
    example = torch.zeros(2, 3, 9, 7)
    stages = drowsy.align(net, example)
    assert [stage.layers for stage in stages] == [("first", "second")]
    first, second = net.layers.values()
    assert str(first.sleep) == str(second.sleep)
    assert str(first.sleep.grain) == "position"
    assert net.schedule.layers["first"].rate == Fraction(1, 2)
    clock = net.control.clock
    maps = [levels(layer.sleep, (2, 4, 9, 7), clock) for layer in (first, second)]
    assert torch.equal(*maps)
    # Layers that are not of one stage keep streams of their own.
    other = drowsy.convert(models.create("caffenet_cifar"))
    drowsy.align(other, torch.zeros(1, 3, 32, 32))
    assert [layer.sleep.stream for layer in other.layers.values()] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "source", ["bernoulli", "stratified", "lattice", "fovea", "bluenoise", "detail"]
)
def test_shifted_layers_of_a_stage_sleep_by_turns(source: str) -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(10))).eval()
    net = drowsy.convert(model, source=source, grain="position:2")
    stages = drowsy.align(net, torch.zeros(1, 3, 8, 12), grain=None, step=1)
    assert [len(stage.layers) for stage in stages] == [10]
    specs = [layer.sleep for layer in net.layers.values()]
    assert {str(spec.grain) for spec in specs} == {"position:2"}
    assert {spec.stream for spec in specs} == {0}
    assert [spec.phase for spec in specs] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    seen = detail_map(torch.randn(2, 3, 8, 12))
    maps = [levels(spec, (2, 3, 8, 12), net.control.clock, seen) for spec in specs]
    for one, next_one in itertools.pairwise(maps):
        for j in range(5):
            assert not ((one < j) & (next_one < j)).any()
        assert ((one < 4) ^ (next_one < 4)).all()
    drowsy.align(net, torch.zeros(1, 3, 8, 12))
    assert {layer.sleep.phase for layer in net.layers.values()} == {0}


@pytest.mark.parametrize("source", ["lattice", "fovea", "bluenoise", "detail"])
def test_aligned_layers_of_other_widths_share_the_map_of_a_position_group(source: str) -> None:
    net = drowsy.convert(_Net(nn.ReLU()).eval(), source=source, grain="position:2")
    drowsy.align(net, torch.zeros(1, 3, 9, 7), grain=None)
    seen = detail_map(torch.randn(2, 3, 9, 7))
    first, second = (
        levels(layer.sleep, (2, channels, 9, 7), net.control.clock, seen)
        for layer, channels in zip(net.layers.values(), (4, 8), strict=True)
    )
    assert torch.equal(first, second[:, :, :2])


def test_a_schedule_tells_streams_that_are_not_the_layers_own(tmp_path: Path) -> None:
    net, other = (drowsy.convert(_Net(nn.ReLU()).eval()) for _ in range(2))
    net.set(0.5)
    assert {layer.stream for layer in net.schedule.layers.values()} == {None}
    plain = net.schedule
    drowsy.align(net, torch.zeros(1, 3, 9, 7), step=1)
    net.schedule.save(tmp_path / "aligned.json")
    other.set(drowsy.Schedule.load(tmp_path / "aligned.json"))
    assert other.schedule == net.schedule
    specs = [[layer.sleep for layer in each.layers.values()] for each in (net, other)]
    assert specs[0] == specs[1]
    # One that tells no streams leaves them.
    net.set(plain)
    assert [layer.sleep.phase for layer in net.layers.values()] == [0, 1]


def test_alignment_that_is_refused_changes_nothing() -> None:
    net = drowsy.convert(_Net(nn.ReLU()).eval(), source="bluenoise")
    before = [layer.sleep for layer in net.layers.values()]
    with pytest.raises(ValueError, match="layer first: grain: got channel with source bluenoise"):
        drowsy.align(net, torch.zeros(1, 3, 9, 7), grain="channel", step=1)
    assert [layer.sleep for layer in net.layers.values()] == before


def test_reading_the_knob_reads_no_tensor() -> None:
    net = drowsy.convert(_Net(nn.ReLU()).eval())
    net.set({"first": 0.25})
    net.layers["second"].set(rate=0.5)
    assert net.control.settings == net.control.thresholds.tolist() == [2, 4]
    net.control.thresholds.fill_(7)
    assert [layer.rate for layer in net.layers.values()] == [Fraction(1, 4), Fraction(1, 2)]


# --- ties ----------------------------------------------------------------------------------------


def aligned(name: str, size: int, grain: str = "position", step: int = 0) -> drowsy.DrowsyNet:
    net = drowsy.convert(models.create(name).eval(), source="lattice", grain=grain)
    align(net, torch.zeros(1, 3, size, size), grain=grain, step=step)
    return net


def several(net: drowsy.DrowsyNet, size: int) -> list[tuple[str, ...]]:
    ties = find_ties(net, torch.zeros(1, 3, size, size))
    assert sorted(itertools.chain.from_iterable(ties)) == sorted(net.layers)
    return [tie for tie in ties if len(tie) > 1]


def test_what_only_a_1x1_convolution_of_one_map_reads_is_tied_to_it() -> None:
    # A bottleneck's 3x3 is read by its second 1x1 only; its first 1x1 is read by that 3x3, and the
    # sum after the second one by many.
    ties = several(aligned("resnet50", 64), 64)
    assert len(ties) == 16
    assert ties[4] == ("layer2.1.conv2", "layer2.1.conv3")
    # What a fire module concatenates is read by the next one's squeeze, where no pool lies between.
    ties = several(aligned("squeezenet1_1", 67), 67)
    assert ties[0] == ("features.3.expand1x1", "features.3.expand3x3", "features.4.squeeze")
    assert [tie[-1] for tie in ties] == [
        *(f"features.{i}.squeeze" for i in (4, 7, 10, 11, 12)),
        "classifier.1",
    ]
    assert several(aligned("cifar_resnet20", 32), 32) == []


@pytest.mark.parametrize(("grain", "step"), [("neuron", 0), ("position:64", 0), ("position", 1)])
def test_layers_of_different_maps_are_not_tied(grain: str, step: int) -> None:
    assert several(aligned("squeezenet1_1", 67, grain, step), 67) == []


def test_a_layer_that_runs_twice_is_tied_to_nothing() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(self.first(x)))

    net = drowsy.convert(Twice().eval(), source="lattice", grain="position")
    align(net, torch.zeros(1, 3, 9, 7))
    assert several(net, 9) == []


@pytest.mark.parametrize("name", ["resnet50", "squeezenet1_1"])
@pytest.mark.parametrize("fill", ["zero", "interpolate"])
def test_tied_to_a_sleeper_a_layer_sleeps_for_nothing(name: str, fill: str) -> None:
    """The logits are the same with the rest of a tie awake."""
    torch.manual_seed(2)
    net, images = aligned(name, 67), torch.randn(2, 3, 67, 67)
    for layer in net.layers.values():
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    net.set(0, fill=fill)
    names = list(net.layers)

    def logits(*asleep: str) -> Tensor:
        net.reseed(5)
        setting = tuple(4 if name in asleep else 0 for name in names)
        net.set(net.schedule_of(setting))
        with torch.no_grad():
            return net(images)

    awake = logits()
    for tie in several(net, 67)[:3]:
        together = logits(*tie)
        nothing = (together - logits(tie[-1])).abs().max()
        assert (together - awake).abs().max() > max(1e-4, 100 * nothing)
