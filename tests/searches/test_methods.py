"""The searches for many layers: on models of damage whose best settings are known or countable."""

from __future__ import annotations

import doctest
import itertools
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import drowsy
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.measurer import Measurer
from drowsy.knob.costs import multiplication_gains
from drowsy.knob.frontier import Frontier
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule, Setting
from drowsy.searches import exchanges, settings
from drowsy.searches.methods import EXHAUSTIVE_LIMIT, search_at, search_points
from drowsy.searches.settings import all_settings, single_settings
from drowsy.searches.tradeoff import additive_settings
from drowsy.searches.tradeoff import gain as _gain
from drowsy.searches.trials import Trials, sensitivity
from drowsy.sleep.detail import Detail
from drowsy.sleep.independent import Bernoulli
from drowsy.sleep.source import Source

SEARCHES = ("additive", "greedy", "nsga2", "tpe")


class Model:
    """Stands in for a ``Measurer``: damages of layers, and of pairs where ``mixed`` is not 0."""

    def __init__(
        self,
        layers: int = 4,
        k: int = 6,
        mixed: float = 0.0,
        seed: int = 0,
        ties: Sequence[Sequence[int]] = (),
        source: Source | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.names = [f"conv{i}" for i in range(layers)]
        self.damage = "divergence"
        sleep = SimpleNamespace(source=source or Bernoulli())
        self.net = SimpleNamespace(
            k=k, layers={n: SimpleNamespace(sleep=sleep) for n in self.names}
        )
        self.shares = dict(zip(self.names, rng.dirichlet(np.ones(layers) * 2), strict=True))
        self.gains = multiplication_gains(self.shares, k)
        self.ties = ties or [[i] for i in range(layers)]
        self.free = sorted(itertools.chain(*self.ties))
        self._size, self._power = np.exp(rng.normal(1, 1.2, layers)), rng.uniform(1, 2.5, layers)
        self._mixed = np.triu(rng.uniform(-0.3, 1, (layers, layers)), 1) * mixed
        self.asked: list[Setting] = []

    def measure(
        self, settings: Iterable[Setting], label: str = "", values: bool = True
    ) -> dict[Setting, OperatingPoint]:
        points = {}
        for setting in settings:
            self.asked.append(setting)
            rates = np.array(setting) / self.net.k
            alone = self._size * rates**self._power
            harm = max(alone.sum() + np.sqrt(alone) @ self._mixed @ np.sqrt(alone), 0.0)
            points[setting] = OperatingPoint(
                Schedule(8),
                saving=float(rates @ np.array(list(self.shares.values()))),
                agreement=math.exp(-harm),
                divergence=harm,
            )
        return points


def volume(points: dict[Setting, OperatingPoint]) -> float:
    return Frontier(points.values(), "agreement").hypervolume()


def test_knapsack_finds_every_optimal_setting_of_the_additive_model() -> None:
    """Against brute force; points inside the convex hull, which no price chooses, are there."""
    rng = np.random.default_rng(3)
    damage = np.sort(rng.random((4, 5)), axis=1)
    damage[:, 0] = 0
    shares = rng.dirichlet(np.ones(4))
    every = np.array(all_settings(4, 5))
    harm = damage[np.arange(4), every].sum(axis=1)
    saved = (every / 5 * shares).sum(axis=1)
    better = (saved[:, None] >= saved) & (harm[:, None] <= harm)
    better &= (saved[:, None] > saved) | (harm[:, None] < harm)
    optimal = {tuple(map(int, s)) for s in every[~better.any(axis=0)]}
    found = additive_settings(damage, np.outer(shares, np.arange(5) / 5))
    assert set(found) == optimal
    convex = {
        tuple((damage - price * np.arange(5) / 5 * shares[:, None]).argmin(axis=1).tolist())
        for price in np.geomspace(1e-3, 1e3, 5000)
    }
    assert convex < optimal
    # Few labels find nearly the same: at each saving, hardly more damage.
    index = {setting: i for i, setting in enumerate(map(tuple, every.tolist()))}
    coarse = np.array(
        [index[s] for s in additive_settings(damage, np.outer(shares, np.arange(5) / 5), labels=40)]
    )
    for setting in found:
        i = index[setting]
        assert harm[coarse][saved[coarse] >= saved[i] - 4 / 40].min() <= harm[i] + 1e-12


def test_candidates_are_at_most_as_many_as_asked_and_reach_both_ends() -> None:
    model = Model(6, 8)
    damage = model._size[:, None] * (np.arange(8) / 8) ** model._power[:, None]
    chosen = additive_settings(damage, model.gains, 20)
    assert len(chosen) <= 20
    assert chosen[0] == (0,) * 6
    assert chosen[-1] == (7,) * 6


def test_gain_is_the_hypervolume_that_a_point_adds() -> None:
    def point(saving: float, quality: float) -> OperatingPoint:
        return OperatingPoint(Schedule(8), saving=float(saving), agreement=float(quality))

    rng = np.random.default_rng(5)
    saved, quality = np.sort(rng.random(6)), np.sort(rng.random(6))[::-1]
    saved[0] = 0.0
    base = [point(s, q) for s, q in zip(saved, quality, strict=True)]
    area = Frontier(base, "agreement").hypervolume()
    new_saved, new_quality = rng.random(200), rng.random(200)
    gains = _gain(saved, quality, new_saved, new_quality)
    assert (gains > 0).sum() > 20
    for s, q, gain in zip(new_saved, new_quality, gains, strict=True):
        grown = Frontier([*base, point(s, q)], "agreement").hypervolume() - area
        assert max(gain, 0.0) == pytest.approx(grown, abs=1e-12)


@pytest.mark.parametrize("mixed", [0.0, 1.0], ids=["additive", "mixed"])
@pytest.mark.parametrize(("method", "share"), [("additive", 0.98), ("greedy", 0.98), ("tpe", 0.96)])
def test_a_tenth_of_the_settings_holds_nearly_the_whole_frontier(
    method: str, share: float, mixed: float
) -> None:
    model = Model(mixed=mixed)
    whole = volume(model.measure(all_settings(4, 6)))
    assert volume(search_points(model, method, 6**4 // 10)) >= share * whole


def test_exchanges_mend_what_the_additive_model_gets_wrong() -> None:
    """With the knapsack's candidates alone the mixed model's frontier is worse."""
    model = Model(mixed=3.0)
    singles = model.measure(single_settings(4, 6))
    damage = np.zeros((4, 6))
    for setting, point in singles.items():
        for layer, j in enumerate(setting):
            damage[layer, j] = max(damage[layer, j], point.divergence if j else 0.0)
    candidates = singles | model.measure(additive_settings(damage, model.gains))
    found = search_points(model, "additive", len(candidates) + 100)
    assert volume(found) > volume(candidates)


@pytest.mark.parametrize(("module", "examples"), [(exchanges, 5), (settings, 1)])
def test_worked_examples_hold(module: ModuleType, examples: int) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted >= examples
    assert outcome.failed == 0


MOVES = ([1], [-1], [-1, 1])


def test_exchanges_change_one_layer_up_and_another_down() -> None:
    """Every neighbour of every setting, against the damages of the settings themselves."""
    rng = np.random.default_rng(2)
    damage, origins = rng.random((3, 4)), all_settings(3, 4)
    before = damage.copy()
    found, allowed = exchanges.changes(damage, origins), exchanges.possible(origins, 4)

    def total(setting: Setting) -> float:
        return sum(damage[layer, j] for layer, j in enumerate(setting))

    for origin, change, there in zip(origins, found, allowed, strict=True):
        score = np.where(there, -change, -np.inf)[None]
        kept = score.copy()
        reached = exchanges.best_exchanges([origin], score, 100)
        np.testing.assert_array_equal(score, kept)
        steps = {s: np.subtract(s, origin) for s in origins}
        neighbours = {s for s, step in steps.items() if sorted(step[step != 0]) in MOVES}
        assert set(reached) == neighbours
        assert len(reached) == there.sum()
        order = [total(setting) for setting in reached]
        assert order == pytest.approx(sorted(order))
        assert change[there].min() == pytest.approx(order[0] - total(origin))
    np.testing.assert_array_equal(damage, before)


def least_harm(points: dict[Setting, OperatingPoint], saving: float) -> float:
    return min(p.divergence for p in points.values() if p.saving >= saving - 1e-9)


@pytest.mark.parametrize("goals", [(0.5,), (0.25, 0.5, 0.75)])
def test_at_given_savings_the_best_settings_are_found(goals: tuple[float, ...]) -> None:
    """Exactly where damages add up; better than along the whole frontier where they do not."""
    model = Model()
    every = model.measure(all_settings(4, 6))
    found = search_at(model, goals, 6**4 // 10)
    for goal in goals:
        assert least_harm(found, goal) == pytest.approx(least_harm(every, goal))
    for seed in range(3):
        deep, same = (Model(12, 8, mixed=1.0, seed=seed) for _ in range(2))
        found, along = search_at(deep, goals, 200), search_points(same, "additive", 200)
        assert len(deep.asked) == len(set(deep.asked)) == len(found) == 200
        for goal in goals:
            assert least_harm(found, goal) < least_harm(along, goal)


@pytest.mark.filterwarnings("ignore:budget")
@pytest.mark.parametrize("budget", [1, 3, 20, 1000])
def test_a_search_at_given_savings_keeps_its_budget_and_ends(budget: int) -> None:
    model = Model(3, 4)
    points = search_at(model, (0.3, 0.9), budget)
    assert len(model.asked) == len(set(model.asked)) == len(points) == min(budget, len(points))
    assert budget < 1000 or len(points) <= 64


@pytest.mark.filterwarnings("ignore:budget")
@pytest.mark.parametrize("budget", [1, 3, 20, 101])
@pytest.mark.parametrize("method", SEARCHES)
def test_budget_is_kept_and_no_setting_measured_twice(method: str, budget: int) -> None:
    model = Model(7, 8, mixed=0.5)
    points = search_points(model, method, budget)
    assert len(model.asked) == len(set(model.asked)) == len(points) == budget


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("budget", [1, 3, 5, 27])
def test_too_small_a_budget_is_told_and_spent_on_uniform_rates_first(
    method: str, budget: int
) -> None:
    model, rates = Model(20, 8), {1: {0}, 3: {0, 4, 7}, 5: {0, 2, 4, 6, 7}, 27: set(range(8))}
    with pytest.warns(UserWarning, match=rf"budget: got {budget}, .* 28 settings or more try"):
        points = search_points(model, method, budget)
    assert len(points) == budget
    first = model.asked[: len(rates[budget])]
    assert set(first) == {(j,) * 20 for j in rates[budget]}
    # A frontier over the whole range, where single layers save next to nothing.
    if budget > 1:
        assert max(point.saving for point in points.values()) > 0.8
    with pytest.warns(UserWarning, match="budget: got"):
        assert set(first) <= set(search_at(Model(20, 8), (0.5,), budget))


@pytest.mark.parametrize(("source", "power"), [(Bernoulli(), 1), (Detail(), 3)])
def test_where_the_flattest_sleep_first_low_rates_harm_little(source: Source, power: int) -> None:
    # 9 settings: every layer alone at 1/2, of which the other rates are told.
    trials = Trials(Model(4, 8, source=source), 9)
    damage = sensitivity(trials)
    assert len(trials.points) == 5
    alone = [trials.damage(tuple(4 * (i == layer) for i in range(4))) for layer in range(4)]
    assert damage[:, 4] == pytest.approx(alone)
    assert damage[:, 2] == pytest.approx(np.array(alone) / 2**power)
    assert damage[:, 6] == pytest.approx(np.array(alone) * 1.5**4)


@pytest.mark.parametrize("method", SEARCHES)
def test_a_budget_that_suffices_is_no_cause_for_a_warning(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search_points(Model(7, 8), method, 15)
        search_points(Model(2, 3), method, 9)
        search_points(Model(1, 8), method, 8)


def test_exhaustive_is_refused_where_it_would_not_end() -> None:
    model = Model(20, 8)
    with pytest.raises(ValueError, match=r"method: got exhaustive for 1,152,921,504,606,846,976 s"):
        search_points(model, "exhaustive")
    assert not model.asked
    assert len(search_points(Model(3, 8), "exhaustive")) == 512


@pytest.mark.parametrize("method", SEARCHES)
def test_tied_layers_get_one_rate_and_cost_one_layers_measurements(method: str) -> None:
    ties = [[0], [1, 3], [2], [4, 5, 6]]
    model = Model(7, 6, ties=ties)
    found = search_points(model, method, 6**4 // 10)
    assert all(len({setting[i] for i in tie}) == 1 for setting in model.asked for tie in ties)
    whole = volume(model.measure(_tied_settings(ties, 6)))
    assert volume(found) >= 0.95 * whole


def _tied_settings(ties: Sequence[Sequence[int]], k: int) -> list[Setting]:
    tied = [
        {i: j for tie, j in zip(ties, each, strict=True) for i in tie}
        for each in all_settings(len(ties), k)
    ]
    return [tuple(rates[i] for i in range(len(rates))) for rates in tied]


@pytest.mark.parametrize("method", SEARCHES)
def test_a_budget_beyond_the_settings_ends(method: str) -> None:
    model = Model(2, 3)
    assert len(search_points(model, method, 1000)) <= 9
    assert len(model.asked) == len(set(model.asked))


@pytest.mark.parametrize("method", SEARCHES)
def test_the_same_seed_takes_the_same_steps(method: str) -> None:
    first, second, other = Model(mixed=0.5), Model(mixed=0.5), Model(mixed=0.5)
    search_points(first, method, 90, seed=4)
    search_points(second, method, 90, seed=4)
    search_points(other, method, 90, seed=5)
    assert first.asked == second.asked
    assert (first.asked != other.asked) == (method in ("nsga2", "tpe"))


def test_auto_is_exhaustive_within_the_budget_and_additive_beyond() -> None:
    assert len(search_points(Model(2, 4))) == 16
    assert len(search_points(Model(2, 4), budget=16)) == 16
    assert len(search_points(Model(2, 4), budget=15)) <= 15
    assert EXHAUSTIVE_LIMIT < 8**12
    deep, same = Model(12, 8), Model(12, 8)
    search_points(deep, budget=150)
    search_points(same, "additive", 150)
    assert deep.asked == same.asked


@pytest.mark.parametrize("seed", [0, 1])
def test_on_many_layers_additive_is_the_best_use_of_a_small_budget(seed: int) -> None:
    found = {
        method: volume(search_points(Model(20, 8, mixed=0.5, seed=seed), method, 400))
        for method in ("additive", "greedy", "nsga2")
    }
    assert max(found, key=found.__getitem__) == "additive"


@pytest.mark.parametrize("method", SEARCHES)
def test_an_interrupted_search_goes_on_to_the_same_frontier(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 30 settings; both runs together evaluate each setting once."""
    from test_search import key, small_data, small_net

    net, (images, labels) = small_net(5), small_data()
    straight = drowsy.search(net, images, labels, method=method, budget=60)
    evaluated: list[Setting] = []
    walk, stop = Evaluator.walk, 30

    def counted(self: Evaluator, settings: list[Setting]) -> Iterable:
        for setting, counts in walk(self, settings):
            if len(evaluated) == stop:
                raise KeyboardInterrupt
            evaluated.append(setting)
            yield setting, counts

    monkeypatch.setattr(Evaluator, "walk", counted)
    path = tmp_path / "points.sqlite"
    with drowsy.Store(path) as store, pytest.raises(KeyboardInterrupt):
        drowsy.search(net, images, labels, method=method, budget=60, store=store)
    stop = -1
    with drowsy.Store(path) as store:
        resumed = drowsy.search(net, images, labels, method=method, budget=60, store=store)
        assert len(store.results(Measurer(net, images, labels).context(0))) == 60
    assert key(resumed) == key(straight)
    assert len(evaluated) == len(set(evaluated)) == 60


def test_without_optuna_its_methods_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for method in ("nsga2", "tpe"):
        with pytest.raises(ImportError, match=r'pip install -e "\.\[search\]"'):
            search_points(Model(), method, 50)
    assert len(search_points(Model(), "greedy", 50)) == 50
