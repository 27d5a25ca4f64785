"""Searches: what they choose, that they resume, and that killing them loses nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import drowsy
from drowsy.evaluate import Evaluator
from drowsy.search import (
    Measurer,
    additive_settings,
    all_settings,
    search_points,
    single_settings,
    uniform_settings,
)


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
    expected = (costs["0"] * 1 / 4 + costs["5"] * 3 / 4) / sum(costs.values())
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
    chosen = additive_settings(damage, shares)
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
        "0": ["lattice, revision 2", "neuron", "rescale"],
        "2": ["lattice, revision 2", "neuron", "zero"],
        "5": ["lattice, revision 2", "neuron", "rescale", 0, 1],
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


_VICTIM = """
import sys
sys.path.insert(0, {tests!r})
import drowsy, torch
from test_search import small_data, small_net
torch.set_num_threads(1)
images, labels = small_data()
store = drowsy.Store({store!r})
print("ready", flush=True)
drowsy.search(small_net(5), images, labels, store=store, method="exhaustive")
"""


def test_killed_searches_resume_to_the_same_frontier(tmp_path: Path) -> None:
    """SIGKILL at random moments; every run goes on from what is stored."""
    path = str(tmp_path / "points.sqlite")
    script = _VICTIM.format(tests=str(Path(__file__).parent), store=path)
    stored, moments = [0], random.Random(0)
    for _ in range(4):
        victim = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ.copy()
        )
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.25 * moments.random())
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        net, (images, labels) = small_net(5), small_data()
        with drowsy.Store(path) as store:
            stored.append(len(store.results(Measurer(net, images, labels).context(0))))
    assert stored == sorted(stored)
    assert stored[-1] > 0
    with drowsy.Store(path) as store:
        resumed = drowsy.search(net, images, labels, store=store, method="exhaustive")
        assert len(store.results(Measurer(net, images, labels).context(0))) == 5**3
    assert key(resumed) == key(drowsy.search(net, images, labels, method="exhaustive"))
