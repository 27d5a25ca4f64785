"""Racing: what it drops cannot be optimal, what it keeps is measured as without it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recording import Counting
from test_search import key, small_net

import drowsy
from bench import racing
from drowsy.evaluation.engine import InProcess
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.metrics import Counts
from drowsy.images.folders import ImageSet
from drowsy.knob.frontier import Frontier
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule, Setting
from drowsy.searches.methods import search_points
from drowsy.searches.race import Race, _kl, _stops
from drowsy.searches.settings import all_settings


class Table:
    """Stands in for a ``Measurer``: ``right[setting, image]`` is known for every setting."""

    def __init__(self, saving: np.ndarray, right: np.ndarray) -> None:
        self.saving, self.right = saving, right
        self.images = range(right.shape[1])
        self.work = SimpleNamespace(labels=None, batch=1)
        self.objectives, self.damage = ["agreement"], "divergence"
        self.net, self.names = SimpleNamespace(k=len(saving)), ["conv"]
        self.gains, self.free, self.ties = saving[None], [0], [[0]]

    steady = staticmethod(contextlib.nullcontext)

    def known(self, images: range | None = None) -> set[Setting]:
        return set()

    def keep(self, setting: Setting, counts: list[Counts]) -> None:
        assert counts[0].images == len(self.images)

    def counts(
        self,
        settings: Iterable[Setting],
        label: str = "",
        images: range | None = None,
        values: bool = True,
    ) -> dict[Setting, list[Counts]]:
        shown = images or self.images
        return {
            s: [Counts(len(shown), None, None, int(self.right[s[0], shown].sum()), 0.0)]
            for s in settings
        }

    def point(self, setting: Setting, counts: list[Counts]) -> OperatingPoint:
        (each,) = counts
        return OperatingPoint(
            Schedule(8),
            saving=float(self.saving[setting[0]]),
            agreement=each.agree / each.images,
            images=each.images,
        )


def drawn(rng: np.random.Generator, settings: int = 60, images: int = 800) -> Table:
    """Settings by increasing saving, whose accuracies fall, some far below the best."""
    saving = np.sort(rng.random(settings))
    share = (1 - saving**2) * 0.9 * np.where(rng.random(settings) < 0.5, 1, rng.random(settings))
    difficulty = rng.random(images)
    noise = rng.random((settings, images))
    return Table(saving, 0.7 * difficulty + 0.3 * noise < share[:, None])


def test_a_setting_of_the_frontier_is_dropped_once_in_a_hundred_at_most() -> None:
    rng = np.random.default_rng(0)
    members = dropped = spent = whole = 0
    for _ in range(60):
        table = drawn(rng)
        everything = [(i,) for i in range(len(table.saving))]
        race = Race(table, ["agreement"])  # type: ignore[arg-type]
        points = race.measure(everything)
        every = [table.point(s, c) for s, c in table.counts(everything).items()]
        best = {point.saving for point in Frontier(every, "agreement").points}
        missed = [p for p in points.values() if p.saving in best and p.images < 800]
        members, dropped = members + len(best), dropped + len(missed)
        spent, whole = spent + race.image_evaluations, whole + 800 * len(everything)
        assert spent <= whole
    assert members > 300
    assert dropped <= 0.01 * members
    assert spent < 0.7 * whole


def test_the_bound_holds_for_draws_without_replacement() -> None:
    """Against the exact hypergeometric probability of so few."""
    images, right, m = 60, 42, 20
    for few in range(14):
        exact = sum(math.comb(right, i) * math.comb(images - right, m - i) for i in range(few + 1))
        bound = math.exp(-m * float(_kl(np.array(few / m), np.array(right / images))))
        assert exact / math.comb(images, m) <= bound
    assert _kl(np.array([0.0, 0.5, 1.0]), np.array([1.0, 1.0, 1.0])).tolist() == [
        math.inf,
        math.inf,
        0.0,
    ]


@pytest.mark.parametrize(
    ("images", "batch", "stops"),
    [
        (1000, 50, (150, 250, 500, 1000)),
        (2500, 100, (200, 400, 700, 1300, 2500)),
        (199, 50, (199,)),
        (300, 400, (300,)),
    ],
)
def test_rungs_double_in_whole_batches(images: int, batch: int, stops: tuple[int, ...]) -> None:
    assert _stops(images, batch) == stops


# --- on a network ---------------------------------------------------------------------------------


def tiny_data(images: int = 450) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(images, 3, 12, 12, generator=generator)
    return drawn, torch.randint(0, 6, (images,), generator=generator)


@pytest.mark.parametrize("source", ["bernoulli", "lattice", "lfsr"])
def test_counts_of_stretches_add_up_to_those_of_all_images(source: str) -> None:
    net = drowsy.convert(small_net().original, source=source)
    images, labels = tiny_data(70)
    measurer = Measurer(net, images, labels, seeds=(0, 4), batch=20)
    settings = [(0, 0, 0), (3, 1, 0), (2, 2, 6)]
    parts = [
        measurer.counts(settings, images=range(a, b)) for a, b in ((0, 20), (20, 60), (60, 70))
    ]
    for setting, whole in measurer.counts(settings).items():
        for seed, counts in enumerate(whole):
            total = parts[0][setting][seed] + parts[1][setting][seed] + parts[2][setting][seed]
            assert total.divergence == pytest.approx(counts.divergence, abs=1e-4)
            for name in ("images", "top1", "top5", "agree"):
                assert getattr(total, name) == getattr(counts, name)


def raced(store: drowsy.Store | None, engine: Any) -> tuple[Race, dict[Setting, OperatingPoint]]:
    images, labels = tiny_data()
    measurer = Measurer(small_net(5), images, labels, store=store, engine=engine)
    race = Race(measurer, ["agreement"])
    return race, search_points(race, "exhaustive")


def test_a_race_finds_the_same_frontier_with_fewer_images() -> None:
    images, labels = tiny_data()
    plain = Measurer(small_net(5), images, labels).measure(all_settings(3, 5))
    race, points = raced(None, None)
    assert 0 < len(points) < len(plain)
    assert key(Frontier(points.values(), "agreement")) == key(Frontier(plain.values(), "agreement"))
    assert race.image_evaluations < 0.8 * 450 * len(plain)


def test_an_interrupted_race_goes_on_and_evaluates_no_image_twice(tmp_path: Path) -> None:
    evaluated: dict[tuple[range, Setting], int] = {}

    class Stopping(InProcess):
        left = 10**9

        def evaluate(self, work: Any, settings: Any) -> Any:
            for result in super().evaluate(work, settings):
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
                place = (range(work.first, work.first + len(work.images)), result[1])
                evaluated[place] = evaluated.get(place, 0) + 1
                yield result

    straight, expected = raced(None, None)
    for left in (70, 100, 10**9):
        engine = Stopping()
        engine.left = left
        with drowsy.Store(tmp_path / "points.sqlite") as store:
            if left < 10**9:
                with pytest.raises(KeyboardInterrupt):
                    raced(store, engine)
                continue
            race, points = raced(store, engine)
            assert points == expected
    assert set(evaluated.values()) == {1}
    assert sum(len(images) for images, _ in evaluated) == race.image_evaluations
    assert race.image_evaluations == straight.image_evaluations


def test_races_and_plain_searches_share_a_store(tmp_path: Path) -> None:
    images, labels = tiny_data()
    with drowsy.Store(tmp_path / "points.sqlite") as store:
        _, points = raced(store, None)
        engine = Counting(InProcess())
        plain = Measurer(small_net(5), images, labels, store=store, engine=engine)
        found = plain.measure(all_settings(3, 5))
        assert engine.seen.keys().isdisjoint((0, setting) for setting in points)
        assert len(engine.seen) == 5**3 - len(points)
        assert {setting: found[setting] for setting in points} == points
    with drowsy.Store(tmp_path / "plain.sqlite") as store:
        Measurer(small_net(5), images, labels, store=store).measure(all_settings(3, 5))
        engine = Counting(InProcess())
        raced(store, engine)
        assert not engine.seen


@pytest.mark.parametrize("method", ["additive", "greedy", "nsga2", "tpe"])
def test_every_search_can_race(method: str) -> None:
    images, labels = tiny_data(250)
    frontier = drowsy.search(
        small_net(5), images, labels, method=method, budget=50, objective="agreement", racing=True
    )
    assert {point.images for point in frontier.points} == {250}
    assert frontier.reference is not None


def test_the_benchmark_counts_what_searches_took_with_and_without_racing() -> None:
    images = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    data = ImageSet(images, torch.arange(200) % 10, tuple(map(str, range(200))))
    (plain,), (raced,) = (racing.run(data, "exhaustive", 2, None, each) for each in (False, True))
    assert (plain["settings"], plain["image_evaluations"]) == (2**5, 2**5 * 200)
    assert raced["image_evaluations"] <= plain["image_evaluations"]
    assert 0 < raced["hypervolume"] <= plain["hypervolume"]
    assert "image_evaluations" in racing.table([plain, raced])
