"""What the evaluator computes is what the network computes, bit for bit, whatever its habits.

Networks are drawn at random from the habits of real ones: layers that run twice, at one size or at
two, on other batches than the network's, on one image without a batch, or for nobody; tensors that
view each other and are overwritten.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.correction.calibrate import calibrate
from drowsy.correction.stencils import calibrate_stencils
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.evaluator import Evaluator
from drowsy.graph.convert import convert
from drowsy.knob.control import Control
from drowsy.knob.schedule import Setting
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.sleep import FILLS, NEIGHBOUR_FILLS, SOURCES, Grain

IMAGES, BATCH, SEED, FIRST = 5, 3, 5, 11
CHANNELS = 4


@fx.wrap
def halves(x: Tensor) -> Tensor:
    """An operation of one's own that overwrites, and whose name does not tell."""
    x.mul_(0.5)
    return x + 1


# A step takes the network, a layer and two tensors ``[N, CHANNELS, H, W]``, and gives another.
STEPS: dict[str, Callable[[Any, nn.Module, Tensor, Tensor], Tensor]] = {
    "layer": lambda n, conv, x, y: conv(x),
    "layer and activation": lambda n, conv, x, y: F.relu(conv(x)),
    "layer and slopes": lambda n, conv, x, y: n.slopes(conv(x)),
    "layer twice": lambda n, conv, x, y: conv(conv(x)),
    "layer at two sizes": lambda n, conv, x, y: (
        conv(x) + F.interpolate(conv(F.avg_pool2d(x, 2)), scale_factor=2)
    ),
    "layer by keyword": lambda n, conv, x, y: conv(input=x),
    "layer for nobody": lambda n, conv, x, y: (conv(x), x)[1],
    "layer and activation for nobody": lambda n, conv, x, y: (F.relu(conv(x)), x)[1],
    "layer on crops": lambda n, conv, x, y: (lambda crops: crops[0] + crops[1])(
        conv(torch.cat([x, x.flip(3)])).chunk(2)
    ),
    "layer on one image": lambda n, conv, x, y: y + conv(x[:1].expand(4, -1, -1, -1))[1:2],
    "layer without a batch": lambda n, conv, x, y: y + conv(x[0]),
    "sum": lambda n, conv, x, y: x + y,
    "in place": lambda n, conv, x, y: x.mul_(0.5),
    "in place for nobody": lambda n, conv, x, y: (x.mul_(0.5), y)[1],
    "in place by argument": lambda n, conv, x, y: F.hardswish(x, True),
    "in place by module": lambda n, conv, x, y: n.relu(x),
    "in place sum": lambda n, conv, x, y: x.add_(y),
    "out": lambda n, conv, x, y: (torch.add(x, y, out=x), y)[1],
    "out of a layer": lambda n, conv, x, y: (lambda z: torch.sub(x, y, out=z) + z)(conv(x)),
    "through a view": lambda n, conv, x, y: (x[:, :2].mul_(0.5), x)[1],
    "through a chunk": lambda n, conv, x, y: (x.chunk(2, 1)[1].relu_(), x + y)[1],
    "a view": lambda n, conv, x, y: x.view(x.shape),
    "the same": lambda n, conv, x, y: n.same(x),
    "each of two": lambda n, conv, x, y: (torch._foreach_mul_([x, y], 0.5), x)[1],
    "one's own": lambda n, conv, x, y: halves(x),
}


class Habits(nn.Module):
    """Steps on tensors, chosen by a seed; every layer is called by one step at least."""

    def __init__(self, seed: int, steps: int = 7) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.stem, self.fc = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, 10)
        self.convs = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2) for kernel in (3, 1, 3)
        )
        self.relu, self.same = nn.ReLU(inplace=True), nn.Dropout()
        self.slopes = nn.PReLU(CHANNELS)
        nn.init.normal_(self.slopes.weight)
        calling = [name for name in STEPS if name.startswith("layer")]
        first = [(rng.choice(calling), layer) for layer in range(len(self.convs))]
        others = [(rng.choice([*STEPS]), rng.randrange(len(self.convs))) for _ in range(steps)]
        self.steps = [
            (name, layer, rng.randrange(3), rng.randrange(3))
            for name, layer in rng.sample([*first, *others], len(first) + steps)
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        # The last few are there to be taken; they may be one another, or views of one another.
        kept = [x, x, x.flatten(0, 1).view(x.shape)]
        for name, layer, one, other in self.steps:
            kept = [*kept[1:], STEPS[name](self, self.convs[layer], kept[one], kept[other])]
        return self.fc(sum(y.mean((2, 3)) for y in kept))


def by_the_network(net: DrowsyNet, images: Tensor, setting: Setting) -> Tensor:
    """Logits of ordinary inferences, chunk by chunk."""
    net.set({name: j / net.k for name, j in zip(net.layers, setting, strict=True)})
    logits = []
    for start in range(0, len(images), BATCH):
        net.reseed(SEED, FIRST + start)
        with torch.inference_mode():
            logits.append(net(images[start : start + BATCH].clone()))
    net.set(0)
    return torch.cat(logits)


def some_settings(net: DrowsyNet, seed: int) -> list[Setting]:
    """Settings that share prefixes of all lengths; each layer's rate is its own."""
    rng = random.Random(seed)
    whole = tuple(rng.randrange(net.k) for _ in net.layers)
    cuts = [(*whole[:i], *(rng.randrange(net.k) for _ in whole[i:])) for i in range(len(whole))]
    return [(0,) * len(whole), *dict.fromkeys((whole, *cuts))]


def logits_of(evaluator: Evaluator, settings: list[Setting]) -> dict[Setting, Tensor]:
    with torch.no_grad():
        return dict(evaluator._way.walk(sorted(settings)))


def check(net: DrowsyNet, images: Tensor, seed: int) -> None:
    settings, before = some_settings(net, seed), images.clone()
    walked = logits_of(Evaluator(net, images, seed=SEED, batch=BATCH, first=FIRST), settings)
    assert torch.equal(images, before)
    for setting in settings:
        assert torch.equal(walked[setting], by_the_network(net, images, setting)), setting
    # Not all: some layers run for nobody.
    assert len({str(logits.tolist()) for logits in walked.values()}) > 1


@pytest.fixture
def images() -> Tensor:
    return torch.randn(IMAGES, 3, 8, 8)


def test_every_habit_is_drawn() -> None:
    drawn = {name for seed in range(60) for name, *_ in Habits(seed).steps}
    assert drawn == STEPS.keys()


@pytest.mark.parametrize("seed", range(60))
def test_the_evaluator_computes_what_the_network_computes(seed: int, images: Tensor) -> None:
    torch.manual_seed(seed)
    check(convert(Habits(seed).eval(), fill="zero"), images, seed)


@pytest.mark.parametrize("grain", ["neuron", "position", "channel:2", "tile:4x2"])
@pytest.mark.parametrize("source", SOURCES)
def test_so_it_does_with_every_source_grain_and_fill(
    source: str, grain: str, images: Tensor
) -> None:
    kinds = SOURCES[source]
    single = Grain.parse(grain).of_single_positions
    if kinds.single_positions and not single:
        pytest.skip("not a grain of single positions")
    if kinds.sees:
        pytest.skip("refuses what most of these networks do: layers on other batches than theirs")
    for seed, fill in enumerate(FILLS):
        if single or fill not in NEIGHBOUR_FILLS:
            net = convert(Habits(seed).eval(), source=source, grain=grain, fill="zero")
            if fill == "stencil":
                calibrate_stencils(net, images)
            net.set(0, fill=fill)
            check(net, images, seed)


@pytest.mark.parametrize("seed", range(6))
def test_so_it_does_whatever_the_order_of_the_layers(seed: int, images: Tensor) -> None:
    """Last first, and with one among them that does not run."""
    net = convert(Habits(seed).eval(), fill="zero")
    layers = dict(reversed(net.layers.items()))
    layers = {"idle": DrowsyConv2d(3, 3, 1), **layers}
    net.control = Control(len(layers))
    for index, layer in enumerate(layers.values()):
        layer.control, layer.index, layer.owns_control = net.control, index, False
    net._layers = layers
    check(net, images, seed)
    settings = [(j, 0, 4, 0, 4) for j in range(3)]
    walked = logits_of(Evaluator(net, images, seed=SEED, batch=BATCH), settings)
    assert all(torch.equal(walked[setting], walked[settings[0]]) for setting in settings)


# --- without a graph -----------------------------------------------------------------------------


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on networks have no graph; they run as ever."""
    return lambda: monkeypatch.setattr(DrowsyNet, "graph", None)


@pytest.mark.parametrize("seed", range(12))
def test_a_network_without_a_graph_counts_what_one_with_a_graph_counts(
    seed: int, images: Tensor, without_graphs: Callable[[], None]
) -> None:
    torch.manual_seed(seed)
    net, labels = convert(Habits(seed).eval(), fill=FILLS[seed % 4]), torch.arange(IMAGES)
    settings, options = some_settings(net, seed), {"seed": SEED, "batch": BATCH, "first": FIRST}
    with_graph = Evaluator(net, images, labels, **options)
    without_graphs()
    without = Evaluator(net, images, labels, **options)
    assert type(with_graph._way) is not type(without._way)
    assert torch.equal(without.logits(), with_graph.logits())
    expected, found = dict(with_graph.walk(settings)), dict(without.walk(settings))
    assert found == expected
    assert found.keys() == set(settings)
    assert len(set(found.values())) > 1
    assert without.evaluate(settings[-1]) == expected[settings[-1]]


def test_a_network_without_a_graph_is_as_it_was(
    images: Tensor, without_graphs: Callable[[], None]
) -> None:
    net = convert(Habits(1).eval(), backend="triton")
    without_graphs()
    net.set(dict.fromkeys(list(net.layers)[::2], 0.25))
    net.reseed(3, 14)

    def state() -> tuple[Any, ...]:
        control = net.control
        knob = control.thresholds.tolist(), control.scales.tolist(), control.clock.tolist()
        return net.schedule, knob, [layer.backend for layer in net.layers.values()]

    before = state()
    assert before[2] == ["triton"] * len(net.layers)
    kept = images.clone()
    evaluator = Evaluator(net, images, torch.full((IMAGES,), 9), batch=BATCH)
    for _ in evaluator.walk(some_settings(net, 0)):
        # Between results too: whoever takes them may look at the network.
        assert state() == before
    assert torch.equal(images, kept)
    net.layers["stem"].forward = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluator.evaluate(some_settings(net, 0)[1])
    assert state() == before


@pytest.mark.parametrize("graph", [True, False])
def test_corrections_in_force_hold_but_at_rate_0(
    graph: bool, images: Tensor, without_graphs: Callable[[], None], recwarn: Any
) -> None:
    net = convert(Habits(2).eval())
    awake, setting, other = (0,) * 4, (4,) * 4, (2,) * 4
    plain = Evaluator(net, images).evaluate(awake)
    calibrate(net, images, [net.schedule_of(setting)])
    net.set(0.5)
    buffers = [layer.corrected_weight for layer in net.layers.values()]
    weights = [layer.parameters_in_effect()[0].clone() for layer in net.layers.values()]
    corrected = net.corrected
    if not graph:
        without_graphs()
    walked = dict(Evaluator(net, images, seed=SEED).walk([awake, setting, other]))
    assert walked[awake] == plain
    assert net.corrected is corrected
    assert not recwarn.list
    for layer, buffer, weight in zip(net.layers.values(), buffers, weights, strict=True):
        assert layer.corrected_weight is buffer
        assert torch.equal(layer.parameters_in_effect()[0], weight)
    net.reseed(SEED)
    with torch.inference_mode():
        logits = net(images.clone())
    baseline = Evaluator(net, images).logits()
    assert walked[setting] == CLASSIFICATION.count(logits, baseline, None)


# --- what is refused -----------------------------------------------------------------------------


class Double(nn.Module):
    """Two rows of logits for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x, x])).mean((2, 3))


@pytest.mark.parametrize("graph", [True, False])
def test_outputs_that_are_not_one_row_for_each_image_are_refused(
    graph: bool, images: Tensor, without_graphs: Callable[[], None]
) -> None:
    net = convert(Double().eval())
    if not graph:
        without_graphs()
    message = r"model: its output has shape \(10, 4\) for 5 images, allowed: one tensor of logits"
    with pytest.raises(ValueError, match=message):
        Evaluator(net, images).evaluate((1,))


def test_what_overwrites_at_some_calls_only_is_refused(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that others hold must not be written to unseen."""
    net = convert(Sometimes().eval(), k=2)
    evaluator = Evaluator(net, images, batch=2)
    monkeypatch.setitem(globals(), "calls", 0)
    with pytest.raises(ValueError, match="net: sometimes overwrites conv, which <function someti"):
        evaluator.logits()


calls = 0


@fx.wrap
def sometimes(x: Tensor) -> Tensor:
    global calls
    calls += 1
    return x.mul_(2) if calls == 2 else x * 2


class Sometimes(nn.Module):
    """An operation that overwrites at its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return sometimes(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize("graph", [True, False])
def test_images_and_walks_in_inference_mode_are_as_any_others(
    graph: bool, images: Tensor, without_graphs: Callable[[], None]
) -> None:
    net = convert(Habits(4).eval())
    if not graph:
        without_graphs()
    settings = some_settings(net, 4)
    expected = dict(Evaluator(net, images).walk(settings))
    with torch.inference_mode():
        there = images.clone()
        assert dict(Evaluator(net, there).walk(settings)) == expected
    assert dict(Evaluator(net, there).walk(settings)) == expected
