"""The walk over settings: what whole-network inference measures, computed once where shared."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.correction.stencils import calibrate_stencils
from drowsy.evaluation import tree
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.metrics import Counts
from drowsy.graph.convert import convert
from drowsy.knob.schedule import Setting
from drowsy.models.cifar_resnet import CifarResNet
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.sleep import NEIGHBOUR_FILLS, SOURCES, Grain

IMAGES = 7


class Branches(nn.Module):
    """Two users of one tensor, in-place operations whose result nobody takes, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.merge = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu_(self.left(x))
        y += x
        z = self.right(x).add_(y)
        x.mul_(0.5)
        z = F.relu(z, inplace=True)
        F.hardswish(z, True)
        w = self.merge(torch.cat([y, z + x], dim=1))
        return self.fc(F.relu6(w, inplace=True).mean((2, 3)))


class Unread(nn.Module):
    """A layer whose outputs nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unread = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.last, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.unread(x)
        return self.fc(self.last(x).mean((2, 3)))


class Shared(nn.Module):
    """A layer that runs twice, once on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.fc(F.relu(self.twice(F.relu(self.twice(x)))).mean((2, 3)))


class Keyworded(nn.Module):
    """Input and tensors passed by name, an attribute read in the graph, several outputs used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.1) * self.gain
        first, second = torch.chunk(x, chunks=2, dim=1)
        y = self.conv2(input=first + second)
        return self.fc(torch.amax(y, dim=(2, 3)))


class Views(nn.Module):
    """Tensors overwritten while others view their memory, and written through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        flat = x.flatten(2)
        x.relu_()
        first, _ = x.chunk(2, dim=1)
        first.mul_(2)
        x = self.conv2(x)
        rows = x[:, :, 1:]
        F.relu_(input=x)
        return self.fc(flat.mean(2) + rows.mean((2, 3)))


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3),
        nn.SiLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "branches": Branches,
    "unread": Unread,
    "shared": Shared,
    "keyworded": Keyworded,
    "views": Views,
    "residual": lambda: CifarResNet(1),
}


@pytest.fixture(params=TOPOLOGIES)
def net(request: pytest.FixtureRequest) -> DrowsyNet:
    return convert(TOPOLOGIES[request.param]().eval())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(IMAGES, 3, 8, 8)


def some_settings(net: DrowsyNet, count: int = 6) -> list[Setting]:
    """Random settings that share prefixes of all lengths, and the network awake."""
    rng = random.Random(0)
    drawn = [tuple(rng.choice((0, 0, 1, 5)) for _ in net.layers) for _ in range(count)]
    changed_late = [(*drawn[0][:-1], j) for j in range(4)]
    return [*drawn, *changed_late, (0,) * len(net.layers), (7,) * len(net.layers)]


def whole_network(net: DrowsyNet, images: Tensor, setting: Setting, seed: int = 0) -> Tensor:
    """Logits at a setting, by an ordinary inference."""
    rates = [j / net.k for j in setting]
    net.set(dict(zip(net.layers, rates, strict=True)))
    net.reseed(seed)
    with torch.inference_mode():
        return net(images)


def logits_of_walk(evaluator: Evaluator, settings: list[Setting]) -> dict[Setting, Tensor]:
    """The logits behind each setting's counts."""
    seen: dict[Setting, Tensor] = {}
    count = evaluator._count

    def recording(setting: Setting, logits: Tensor) -> Counts:
        seen[setting] = logits.clone()
        return count(setting, logits)

    evaluator._count = recording  # type: ignore[method-assign]
    assert [setting for setting, _ in evaluator.walk(settings)] == list(seen)
    return seen


@pytest.mark.parametrize("batch", [3, 50])
def test_walk_is_whole_network_inference(net: DrowsyNet, images: Tensor, batch: int) -> None:
    settings = some_settings(net)
    walked = logits_of_walk(Evaluator(net, images, batch=batch, seed=5), settings)
    assert walked.keys() == set(settings)
    for setting, logits in walked.items():
        expected = whole_network(net, images, setting, seed=5)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "source", ["stratified", "lattice", "fovea", "bluenoise", "detail", "lfsr"]
)
@pytest.mark.parametrize("grain", ["neuron", "position:4", "channel", "tile:4x4"])
def test_walk_draws_any_source_and_grain(source: str, grain: str, images: Tensor) -> None:
    if SOURCES[source].single_positions and not Grain.parse(grain).of_single_positions:
        pytest.skip("not a grain of single positions")
    net = convert(chain().eval(), source=source, grain=grain, seed=1)
    walked = logits_of_walk(Evaluator(net, images, batch=4, seed=9), some_settings(net, 4))
    for setting, logits in walked.items():
        expected = whole_network(net, images, setting, seed=9)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
@pytest.mark.parametrize("grain", ["neuron", "position", "position:4"])
def test_walk_fills_from_neighbours(fill: str, grain: str, images: Tensor) -> None:
    net = convert(chain().eval(), grain=grain)
    calibrate_stencils(net, images)
    net.set(0, fill=fill)
    walked = logits_of_walk(Evaluator(net, images, batch=4, seed=9), some_settings(net, 4))
    for setting, logits in walked.items():
        expected = whole_network(net, images, setting, seed=9)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_walk_does_not_turn_the_networks_own_knob(net: DrowsyNet, images: Tensor) -> None:
    net.set(0.25)
    net.reseed(3, 14)
    before = net.schedule
    list(Evaluator(net, images).walk(some_settings(net, 3)))
    assert net.schedule == before
    assert net.control.clock.tolist() == [3, 14]


def test_walk_leaves_the_images_as_they_were(net: DrowsyNet, images: Tensor) -> None:
    before = images.clone()
    list(Evaluator(net, images).walk(some_settings(net, 3)))
    assert torch.equal(images, before)


def test_split_into_batches_does_not_matter(net: DrowsyNet, images: Tensor) -> None:
    settings = some_settings(net, 4)
    whole = logits_of_walk(Evaluator(net, images, batch=IMAGES), settings)
    for batch in (1, 2, 100):
        split = logits_of_walk(Evaluator(net, images, batch=batch), settings)
        for setting, logits in whole.items():
            torch.testing.assert_close(split[setting], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("map_cache", [0, 2000])
def test_cache_of_maps_does_not_matter(net: DrowsyNet, images: Tensor, map_cache: int) -> None:
    settings = some_settings(net, 4)
    cached = Evaluator(net, images, batch=3)
    limited = Evaluator(net, images, batch=3, map_cache=map_cache)
    expected, results = logits_of_walk(cached, settings), logits_of_walk(limited, settings)
    assert all(torch.equal(results[setting], expected[setting]) for setting in settings)
    held = sum(drawn.numel() for drawn in limited._way.maps.values())
    assert held <= map_cache < sum(drawn.numel() for drawn in cached._way.maps.values())


def test_setting_alone_and_among_others_is_the_same(net: DrowsyNet, images: Tensor) -> None:
    settings, labels = some_settings(net, 4), torch.arange(IMAGES)
    together = dict(Evaluator(net, images, labels).walk(settings))
    for setting in settings:
        assert Evaluator(net, images, labels).evaluate(setting) == together[setting]


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copied", "pickled"]
)
def test_an_evaluator_of_elsewhere_measures_the_same(
    twin: Callable[[Evaluator], Evaluator], net: DrowsyNet, images: Tensor
) -> None:
    evaluator = Evaluator(net, images, torch.arange(len(images)))
    setting = (2,) * len(net.layers)
    assert twin(evaluator).evaluate(setting) == evaluator.evaluate(setting)
    assert twin(evaluator).evaluate(setting) == evaluator.evaluate(setting)


def test_walk_yields_every_setting_once() -> None:
    net = convert(chain().eval(), k=3)
    evaluator = Evaluator(net, torch.randn(2, 3, 8, 8))
    settings = list(itertools.product(range(3), repeat=3))
    walked = [setting for setting, _ in evaluator.walk([*settings, *settings[:5]])]
    assert sorted(walked) == settings
    assert list(evaluator.walk([])) == []


def test_seeds_differ_and_repeat(images: Tensor) -> None:
    net = convert(chain().eval())
    setting = (4, 4, 4)
    logits = [
        logits_of_walk(Evaluator(net, images, seed=seed), [setting])[setting] for seed in (0, 0, 1)
    ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


# --- work ----------------------------------------------------------------------------------------


@pytest.fixture
def convolved(monkeypatch: pytest.MonkeyPatch) -> list[DrowsyConv2d]:
    """The layers whose convolution was run, in order."""
    calls: list[DrowsyConv2d] = []
    awake = DrowsyConv2d.awake

    def counting(layer: DrowsyConv2d, x: Tensor) -> Tensor:
        calls.append(layer)
        return awake(layer, x)

    monkeypatch.setattr(DrowsyConv2d, "awake", counting)
    return calls


def test_layer_is_convolved_once_for_every_setting_of_the_layers_before_it(
    convolved: list[DrowsyConv2d],
) -> None:
    k = 4
    net = convert(chain().eval(), k=k)
    evaluator = Evaluator(net, torch.randn(4, 3, 8, 8))
    evaluator.evaluate((0, 0, 0))  # the baseline, which the walk would compute first
    convolved.clear()
    results = dict(evaluator.walk(list(itertools.product(range(k), repeat=3))))
    assert len(results) == k**3
    counts = [convolved.count(layer) for layer in net.layers.values()]
    assert counts == [k**i for i in range(3)]
    assert len(convolved) == sum(k**i for i in range(3))


def test_settings_that_differ_late_share_what_comes_before(convolved: list[DrowsyConv2d]) -> None:
    net = convert(chain().eval())
    evaluator = Evaluator(net, torch.randn(4, 3, 8, 8), batch=2)
    evaluator.evaluate((0, 0, 0))
    convolved.clear()
    list(evaluator.walk([(3, 5, j) for j in range(8)]))
    chunks = 2
    assert [convolved.count(layer) for layer in net.layers.values()] == [chunks] * 3


def test_map_is_drawn_once_for_all_rates(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    levels = tree.levels
    monkeypatch.setattr(tree, "levels", lambda *args: drawn.append(args) or levels(*args))
    net = convert(chain().eval(), k=4)
    list(Evaluator(net, images).walk(list(itertools.product(range(4), repeat=3))))
    assert len(drawn) == 3


# --- counts --------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Logits are the network's input, if its one convolution is awake."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def counts_of(logits: Tensor, labels: Tensor, baseline: Tensor | None = None) -> Counts:
    """Counts of given logits; against themselves, or against another network's."""
    net = convert(Fixed(logits.shape[1]).eval())
    images = torch.zeros(len(logits), 1, 1, logits.shape[1])
    evaluator = Evaluator(net, images, labels, baseline=baseline)
    return evaluator._count((0,), logits)


def test_counts_are_those_of_the_logits() -> None:
    net = convert(Fixed(8).eval(), fill="zero")
    images = torch.rand(200, 1, 1, 8) + 0.1
    labels = torch.randint(0, 8, (200,))
    results = dict(Evaluator(net, images, labels, seed=2, batch=64).walk([(0,), (3,)]))
    awake = whole_network(net, images, (0,), seed=2)
    for setting, counts in results.items():
        logits = whole_network(net, images, setting, seed=2)
        divergence = (awake.softmax(1) * (awake.log_softmax(1) - logits.log_softmax(1))).sum()
        assert counts.images == 200
        assert counts.top1 == int((logits.argmax(1) == labels).sum())
        in_five = logits.topk(5).indices == labels[:, None]
        assert counts.top5 >= int((in_five & (logits > 0).gather(1, logits.topk(5).indices)).sum())
        assert counts.agree == int((logits.argmax(1) == awake.argmax(1)).sum())
        assert counts.divergence == pytest.approx(float(divergence), rel=1e-4, abs=1e-4)
    assert results[0,].agree == 200
    assert 0 < results[3,].agree < 200
    assert results[3,].divergence > 1


def test_a_baseline_of_elsewhere_is_what_agreement_and_divergence_compare_with(
    net: DrowsyNet, images: Tensor
) -> None:
    awake = (0,) * len(net.layers)
    logits = Evaluator(net, images, batch=4).logits()
    torch.testing.assert_close(logits, whole_network(net, images, awake))
    baseline = torch.randn(logits.shape)
    counts = Evaluator(net, images, baseline=baseline).evaluate(awake)
    expected = counts_of(logits, torch.zeros(len(images), dtype=torch.int64), baseline)
    assert counts.agree == expected.agree == int((logits.argmax(1) == baseline.argmax(1)).sum())
    assert counts.divergence == pytest.approx(expected.divergence, rel=1e-4)
    assert counts.divergence > 1


def test_without_labels_only_agreement_is_counted() -> None:
    net = convert(chain().eval())
    counts = Evaluator(net, torch.randn(3, 3, 8, 8)).evaluate((0, 0, 0))
    assert counts == Counts(3, None, None, 3, pytest.approx(0, abs=1e-5))


def test_label_of_rank_five_counts_and_of_rank_six_does_not() -> None:
    logits = torch.arange(8.0).flip(0).repeat(8, 1)
    counts = counts_of(logits, torch.arange(8))
    assert (counts.top1, counts.top5) == (1, 5)


def test_tie_goes_to_the_lower_class_as_argmax_does() -> None:
    tied = torch.zeros(3, 8)
    counts = counts_of(tied, torch.tensor([0, 4, 5]))
    assert (counts.top1, counts.top5) == (1, 2)
    assert tied.argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("places", [[0], [3], list(range(8))])
def test_image_with_nan_logits_counts_as_wrong(places: list[int]) -> None:
    logits = torch.arange(8.0).repeat(2, 1)
    logits[1, places] = math.nan
    counts = counts_of(logits, torch.tensor([7, 7]), baseline=torch.arange(8.0).repeat(2, 1))
    assert (counts.top1, counts.top5, counts.agree) == (1, 1, 1)


def test_infinite_logit_is_a_first_choice() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 6] = math.inf
    counts = counts_of(logits, torch.tensor([6]))
    assert (counts.top1, counts.top5) == (1, 1)


def test_rates_are_fractions_of_the_images() -> None:
    assert Counts(8, 4, 6, 2, 12.0).rates() == {
        "top1": 0.5,
        "top5": 0.75,
        "agreement": 0.25,
        "divergence": 1.5,
    }
    assert Counts(8, None, None, 2, 12.0).rates()["top1"] is None
