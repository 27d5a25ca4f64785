"""Searches: what they choose, that they resume, and that killing them loses nothing."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_nvml import FakeClock, FakeRapl
from recording import images_and_labels, inferences, recording_net, search_on
from torch import nn

import drowsy
from drowsy.correction.corrected import Corrected
from drowsy.energy import NoMeter
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.identity import Context
from drowsy.evaluation.measurer import Measurer, Reference
from drowsy.searches.methods import search_at, search_points
from drowsy.searches.settings import all_settings, single_settings, uniform_settings
from drowsy.searches.tradeoff import additive_settings
from drowsy.searches.trials import Trials


def small_net(k: int = 4) -> drowsy.DrowsyNet:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6),
    )  # fmt: skip
    return drowsy.convert(model.eval(), k=k)


def small_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 3, 14, 14, generator=generator)
    return images, torch.randint(0, 6, (40,), generator=generator)


def key(frontier: drowsy.Frontier) -> list[tuple]:
    return [(p.saving, p.top1, p.schedule) for p in frontier.points]


def test_settings_are_what_they_say() -> None:
    assert uniform_settings(2, 3) == [(0, 0), (1, 1), (2, 2)]
    assert single_settings(2, 3) == [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)]
    assert len(set(all_settings(5, 8))) == 32_768


def test_exhaustive_measures_every_setting_and_keeps_the_optimal() -> None:
    net, (images, labels) = small_net(), small_data()
    measurer = Measurer(net, images, labels)
    points = search_points(measurer, "exhaustive")
    assert len(points) == 4**3
    frontier = drowsy.search(net, images, labels, method="exhaustive")
    for point in points.values():
        assert any(
            best.saving >= point.saving - 1e-12 and best.top1 >= point.top1
            for best in frontier.points
        )


def test_saving_is_the_share_of_multiplications_asleep() -> None:
    net, (images, _) = small_net(), small_data()
    measurer = Measurer(net, images)
    costs = {cost.name: cost.multiplies for cost in drowsy.layer_costs(net, (3, 14, 14))}
    # Of the whole network: its linear layer multiplies too.
    expected = (costs["0"] * 1 / 4 + costs["5"] * 3 / 4) / (sum(costs.values()) + 12 * 6)
    assert measurer.saving((1, 0, 3)) == pytest.approx(expected)


def test_additive_settings_are_optimal_in_their_model() -> None:
    """Against brute force: no setting of the additive model saves more at less damage."""
    rng = np.random.default_rng(0)
    damage = np.sort(rng.random((4, 5)), axis=1)
    damage[:, 0] = 0
    shares = rng.dirichlet(np.ones(4))
    every = np.array(all_settings(4, 5))
    total_damage = damage[np.arange(4), every].sum(axis=1)
    total_saving = (every / 5 * shares).sum(axis=1)
    chosen = additive_settings(damage, np.outer(shares, np.arange(5) / 5))
    assert len(chosen) > 5
    for setting in chosen:
        harm = damage[np.arange(4), setting].sum()
        saved = (np.array(setting) / 5 * shares).sum()
        better = (total_damage < harm - 1e-9) & (total_saving > saved + 1e-9)
        assert not better.any()


def test_additive_beats_or_matches_uniform_where_layers_differ() -> None:
    net, (images, labels) = small_net(8), small_data()
    points = search_points(Measurer(net, images, labels), "additive")
    measured = drowsy.Frontier(points.values(), "agreement")
    for j in range(8):
        uniform = points[(j, j, j)]
        assert measured.at(saving=uniform.saving).agreement >= uniform.agreement


def test_a_second_search_evaluates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, (images, labels) = small_net(), small_data()
    with drowsy.Store(tmp_path / "points.sqlite") as store:
        first = drowsy.search(net, images, labels, store=store, seeds=(0, 1))
    monkeypatch.setattr(Evaluator, "walk", lambda *_: pytest.fail("evaluated again"))
    with drowsy.Store(tmp_path / "points.sqlite") as store:
        assert key(drowsy.search(net, images, labels, store=store, seeds=(0, 1))) == key(first)


@pytest.mark.parametrize(
    "change", ["weights", "images", "labels", "fill", "grain", "seed", "streams", "phase", "source"]
)
def test_what_a_result_depends_on_is_in_its_key(change: str) -> None:
    net, (images, labels) = small_net(), small_data()
    seeds = (0,)
    before = Measurer(net, images, labels, seeds=seeds).context(0)
    if change == "streams":
        net.layers["2"].stage(stream=0)
    elif change == "phase":
        net.layers["2"].stage(phase=1)
    elif change == "source":
        net.layers["2"].sleep = replace(net.layers["2"].sleep, source="bluenoise")
    if change == "weights":
        with torch.no_grad():
            net.layers["0"].weight[0, 0, 0, 0] += 1
    elif change == "images":
        images[3, 0, 0, 0] += 1
    elif change == "labels":
        labels[5] = (labels[5] + 1) % 6
    elif change == "fill":
        net.set(0, fill="zero")
    elif change == "grain":
        net.set_grain("channel")
    after = Measurer(net, images, labels, seeds=seeds).context(1 if change == "seed" else 0)
    assert after != before


def test_streams_as_converted_go_without_saying() -> None:
    """Stores that knew no streams stay valid; those of a lattice's earlier maps do not."""
    images, labels = small_data()
    configuration = Measurer(small_net(), images, labels).context(0).configuration
    assert configuration == {
        "k": 4,
        "layers": {
            "0": ["bernoulli", "neuron", "rescale"],
            "2": ["bernoulli", "neuron", "zero"],
            "5": ["bernoulli", "neuron", "rescale"],
        },
    }
    net = drowsy.convert(small_net().original, k=4, source="lattice")
    net.layers["5"].stage(stream=0, phase=1)
    measurer = Measurer(net, images, labels)
    assert measurer.context(0).configuration["layers"] == {
        "0": ["lattice, revision 2", "neuron", "interpolate"],
        "2": ["lattice, revision 2", "neuron", "interpolate"],
        "5": ["lattice, revision 2", "neuron", "interpolate", 0, 1],
    }
    point = measurer.measure([(1, 2, 3)])[(1, 2, 3)]
    assert [layer.phase for layer in point.schedule.layers.values()] == [0, 0, 1]


def test_points_are_means_over_seeds_with_their_spread() -> None:
    net, (images, labels) = small_net(), small_data()
    setting = (2, 2, 2)
    each = [
        Measurer(net, images, labels, seeds=(s,)).measure([setting])[setting].agreement
        for s in (3, 4, 5)
    ]
    both = Measurer(net, images, labels, seeds=(3, 4, 5)).measure([setting])[setting]
    assert both.agreement == pytest.approx(np.mean(each))
    assert both.spread["agreement"] == pytest.approx(np.std(each, ddof=1))
    assert both.seeds == (3, 4, 5)


def test_a_search_killed_at_ten_random_moments(tmp_path: Path) -> None:
    """SIGKILL, and on from the store: no result is lost, and none evaluated again."""
    path, log, moments = str(tmp_path / "points.sqlite"), tmp_path / "log", random.Random(0)
    # Its processes start within milliseconds: the server that forks them has imported drowsy.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["drowsy"])
    net, (images, labels) = recording_net(log), images_and_labels()
    measurer = Measurer(net, images, labels)
    stored = [0]
    for _ in range(10):
        victim = processes.Process(target=search_on, args=(path, log))
        before = inferences(log).total()
        victim.start()
        while inferences(log).total() == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.2))
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        with drowsy.Store(path) as store:
            stored.append(len(store.results(measurer.context(0))))
    assert stored == sorted(stored)
    assert 0 < stored[-1] < 6**3
    last = processes.Process(target=search_on, args=(path, log))
    last.start()
    last.join()
    with drowsy.Store(path) as store:
        resumed = Measurer(net, images, labels, store=store)
        assert len(store.results(resumed.context(0))) == 6**3
        points = resumed.measure(all_settings(3, 6))
    straight = measurer.measure(all_settings(3, 6))
    assert key(drowsy.Frontier(points.values())) == key(drowsy.Frontier(straight.values()))
    # A run compares the network with its model (three inferences), looks at what it puts out,
    # counts multiplications, compares its graph with its code (twice two), and evaluates rate 0; a
    # kill costs at most what is in flight.
    assert inferences(log).total() - 10 * 11 <= 6**3 + 10


def test_a_result_is_known_by_all_that_decides_it() -> None:
    """Streams, a reference and an engine that corrects; what changes nothing does not count."""
    images, labels = small_data()

    def context(net: drowsy.DrowsyNet | None = None, **options: Any) -> Context:
        return Measurer(net or small_net(), images, labels, **options).context(0)

    plain = context()
    shared = small_net()
    shared.layers["2"].stage(stream=shared.layers["0"].sleep.stream)
    assert context(shared) != plain
    never = lambda: pytest.fail("nothing is evaluated")  # noqa: E731
    assert context(reference=Reference(plain.network, plain.data, never)) == plain
    assert context(reference=Reference(plain.network, "other images", never)) != plain
    corrected = Corrected(images[:4])
    assert context(engine=corrected) != plain
    assert context(engine=Corrected(images[:4], reconstruct=True)) != context(engine=corrected)


def test_what_the_store_knows_is_known_for_every_seed() -> None:
    images, labels = small_data()
    store = drowsy.Store(":memory:")
    Measurer(small_net(), images, labels, seeds=[0], store=store).measure([(1, 0, 2)])
    assert Measurer(small_net(), images, labels, seeds=[0], store=store).known() == {(1, 0, 2)}
    assert not Measurer(small_net(), images, labels, seeds=[0, 1], store=store).known()


# --- by latency and joules ------------------------------------------------------------------------


class Machine:
    """Runs a network in no time, and moves a clock by what each layer's rate is said to take."""

    # Milliseconds by rate in 1/4: a layer that saves, one that sleeps in vain, one with a step.
    TABLE = np.array([[4.0, 3.0, 2.0, 1.0], [2.0, 2.2, 2.4, 2.6], [5.0, 5.5, 2.5, 2.0]])

    def __init__(self, clock: FakeClock, net: drowsy.DrowsyNet) -> None:
        self.clock, self.net = clock, net

    def __call__(self, _: torch.Tensor) -> None:
        self.clock.advance(self.latency(self.net.control.settings) / 1e3)

    def latency(self, setting: Iterable[int]) -> float:
        return float(self.TABLE[range(3), list(setting)].sum())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    clock = FakeClock()
    clock.install(monkeypatch)
    return Machine(clock, small_net())


def test_gains_are_what_each_layer_alone_saves(machine: Machine) -> None:
    images, _ = small_data()
    machine.net.set(0.25)
    table = drowsy.energy.measured_gains(machine.net, images, "latency", forward=machine)
    expected = (machine.TABLE[:, :1] - machine.TABLE) / 11
    np.testing.assert_allclose(table, expected, atol=1e-9)
    assert machine.net.control.settings == [1, 1, 1]


@pytest.mark.parametrize(
    ("method", "budget", "share"),
    [("exhaustive", None, 1.0), ("additive", 30, 0.98), ("greedy", 30, 0.98), ("tpe", 40, 0.95)],
)
def test_a_search_by_latency_finds_what_is_optimal_in_latency(
    method: str, budget: int | None, share: float, machine: Machine
) -> None:
    images, labels = small_data()
    options = {"objective": "agreement", "cost": "latency", "forward": machine}
    found = drowsy.search(machine.net, images, labels, method=method, budget=budget, **options)
    plain = Measurer(machine.net, images, labels).measure(all_settings(3, 4))
    every = [replace(p, latency_ms=machine.latency(s)) for s, p in plain.items()]
    best = drowsy.Frontier(every, "agreement", "latency")
    assert found.hypervolume() >= share * best.hypervolume() - 1e-9
    for point in found.points:
        assert point.latency_ms == pytest.approx(
            machine.latency(point.schedule.thresholds().values()), abs=1e-6
        )
    assert found.reference.latency_ms == pytest.approx(11)


def test_a_frontier_by_latency_is_kept_on_file(machine: Machine, tmp_path: Path) -> None:
    images, labels = small_data()
    frontier = drowsy.search(
        machine.net, images, labels, objective="agreement", cost="latency", forward=machine
    )
    frontier.save(tmp_path / "frontier.json")
    loaded = drowsy.Frontier.load(tmp_path / "frontier.json")
    assert (loaded.cost, loaded.points) == ("latency", frontier.points)
    assert [p.latency_ms for p in loaded.points] == sorted(
        (p.latency_ms for p in loaded.points), reverse=True
    )
    area, left = 0.0, 0.0
    for point in loaded.points:
        saved = 1 - point.latency_ms / 11
        area, left = area + (saved - left) * point.agreement, saved
    assert loaded.hypervolume() == pytest.approx(area)


def test_a_search_by_joules_measures_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = FakeRapl(tmp_path, machine.clock).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 20.0)
    images, labels = small_data()
    frontier = drowsy.search(
        machine.net, images, labels, objective="agreement", cost="joules", forward=machine
    )
    # At constant power joules follow time, per image.
    for point in frontier.points:
        assert point.joules == pytest.approx(20.0 * point.latency_ms / 1e3 / 40, rel=0.01)
    assert frontier.points[0].joules > frontier.points[-1].joules


def test_a_search_by_joules_that_the_meter_does_not_tell_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = FakeRapl(tmp_path, machine.clock).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 0.0)
    with pytest.raises(NoMeter, match="counter did not advance"):
        drowsy.search(machine.net, *small_data(), cost="joules", forward=machine)


def test_without_a_meter_a_search_by_joules_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("drowsy.sensors.rapl.RAPL", tmp_path / "none")
    images, labels = small_data()
    monkeypatch.setattr(Evaluator, "walk", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(NoMeter):
        drowsy.search(small_net(), images, labels, cost="joules")


def test_searches_give_tied_layers_one_rate() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    net = drowsy.convert(model, k=4, source="lattice", grain="position")
    images = torch.randn(8, 3, 9, 9)
    assert Measurer(net, images).ties == [[0], [1], [2]]
    drowsy.align(net, images)
    assert Measurer(net, images).ties == [[0], [1, 2]]
    points = search_points(Measurer(net, images), "additive")
    assert set(points) == {(a, b, b) for a in range(4) for b in range(4)}
    # Algorithm 1 walks every setting.
    assert len(search_points(Measurer(net, images), "exhaustive")) == 4**3


# --- who rests ------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Two convolutions, and between them a gate of two more whose outputs are one position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())
        return self.conv2(x * gate.sigmoid()).relu().mean((2, 3))


def gated_net(k: int = 4) -> drowsy.DrowsyNet:
    torch.manual_seed(0)
    return drowsy.convert(Gated().eval(), k=k)


FREE = {(a, 0, 0, b) for a in range(4) for b in range(4)}


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every setting that is evaluated from here on."""
    found: list[tuple[int, ...]] = []
    walk = Evaluator.walk

    def recorded(self: Evaluator, settings: Any) -> Iterable[Any]:
        found.extend(settings)
        yield from walk(self, settings)

    monkeypatch.setattr(Evaluator, "walk", recorded)
    return found


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("method", ["auto", "exhaustive", "additive", "greedy", "nsga2", "tpe"])
def test_a_search_never_lets_a_gate_sleep(
    method: str, racing: bool, walked: list[tuple[int, ...]]
) -> None:
    net, (images, labels) = gated_net(), small_data()
    assert list(net.layers) == ["conv1", "squeeze", "excite", "conv2"]
    budget = None if method in ("auto", "exhaustive") else 12
    found = drowsy.search(net, images, labels, method=method, budget=budget, racing=racing)
    assert net.resting.keys() == {"squeeze", "excite"}
    assert set(walked) <= FREE
    # All 16 settings of two layers, where nothing limits them.
    assert len(set(walked)) == (16 if budget is None else 12)
    assert all(point.schedule.layers["squeeze"].rate == 0 for point in found.points)


def test_a_search_at_savings_never_lets_a_gate_sleep(walked: list[tuple[int, ...]]) -> None:
    net, (images, labels) = gated_net(), small_data()
    points = search_at(Measurer(net, images, labels), [0.3, 0.5])
    assert points.keys() == FREE == set(walked)


def test_budgets_and_limits_count_only_what_is_free(walked: list[tuple[int, ...]]) -> None:
    images, labels = small_data()
    measurer = Measurer(gated_net(), images, labels)
    assert (measurer.free, measurer.ties) == ([0, 3], [[0], [3]])
    # Each of two layers alone, uniform rates, and 256 more.
    assert Trials(measurer, None).budget == (1 + 2 * 3) + 4 + 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search_points(measurer, "additive", 6)
    # Of 32 rates, 1,024 settings of two layers are few; of four layers they were a million.
    walked.clear()
    large = Measurer(gated_net(32), images[:1])
    search_points(large, "auto")
    assert len(set(walked)) == 32**2


def test_a_tie_is_of_those_of_its_layers_that_do_not_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    net = drowsy.convert(model.eval(), k=4, source="lattice", grain="position")
    images = torch.randn(8, 3, 9, 9)
    drowsy.align(net, images)
    net.settle(images)
    assert Measurer(net, images).ties == [[0, 1, 2]]
    net.resting = {"1": "as told"}
    measurer = Measurer(net, images)
    assert measurer.ties == [[0, 2]]
    assert search_points(measurer, "additive").keys() == {(j, 0, j) for j in range(4)}


def test_gains_of_what_rests_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, net = FakeClock(), gated_net()
    clock.install(monkeypatch)
    images, _ = small_data()
    ran = set()

    def forward(_: torch.Tensor) -> None:
        ran.add(tuple(net.control.settings))
        clock.advance(1e-3 * (10 - sum(net.control.settings)))

    table = drowsy.energy.measured_gains(net, images, "latency", forward=forward)
    np.testing.assert_allclose(table, np.outer([1, 0, 0, 1], [0, 0.1, 0.2, 0.3]), atol=1e-9)
    assert ran == {(0, 0, 0, 0)} | {(j, 0, 0, 0) for j in (1, 2, 3)} | {
        (0, 0, 0, j) for j in (1, 2, 3)
    }
