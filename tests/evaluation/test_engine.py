"""Engines: the same results wherever settings are evaluated, whatever is killed meanwhile."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import (
    Counting,
    Deadly,
    Named,
    closeness,
    images_and_labels,
    inferences,
    recording_net,
)

import drowsy
from drowsy.cli.main import main
from drowsy.evaluation import ray_engine
from drowsy.evaluation.engine import InProcess
from drowsy.evaluation.measurer import Measurer, Reference
from drowsy.evaluation.ray_engine import RayEngine, _pack, _Todo, _unpack
from drowsy.knob.schedule import Setting
from drowsy.searches.settings import all_settings

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the workers: sums of floats round alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(measurer: Measurer) -> dict[int, dict]:
    return {seed: measurer.store.results(measurer.context(seed)) for seed in measurer.seeds}


# --- handing out ----------------------------------------------------------------------------------


def test_runs_are_stretches_of_the_tree_that_shrink() -> None:
    settings = all_settings(3, 4)
    todo = _Todo({0: settings[::-1], 5: settings[:10]})
    runs = []
    while todo:
        runs.append(todo.take(4, None))
    assert [s for run in runs if run.seed == 0 for s in run.left] == settings
    assert [s for run in runs if run.seed == 5 for s in run.left] == settings[:10]
    sizes = [len(run.left) for run in runs]
    assert sizes[0] == 19
    assert sizes[-1] == 1


def test_what_a_worker_left_is_handed_out_again() -> None:
    todo = _Todo({0: all_settings(2, 4)})
    run = todo.take(1, None)
    run.begun = True
    for setting in list(run.left)[:5]:
        del run.left[setting]
    todo.take_back(run, RuntimeError())
    assert list(todo.take(1, None).left) == all_settings(2, 4)[5:]
    assert not todo


def test_halving_finds_the_setting_that_ends_workers() -> None:
    deadly, deaths = (2, 1), 0
    todo = _Todo({7: all_settings(2, 4)})
    done: list[Setting] = []

    def hand_out() -> None:
        nonlocal deaths
        while todo:
            run = todo.take(1, None)
            if deadly in run.left:
                deaths += 1
                todo.take_back(run, RuntimeError("out of memory"))
            else:
                done.extend(run.left)

    with pytest.raises(
        RuntimeError, match=r"setting \(2, 1\) \(seed 7\) ended 4 workers; .* out of memory"
    ):
        hand_out()
    assert len(done) == len(set(done))
    assert deaths == 4 + 4  # 16 settings halved to one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_travel_with_their_order_in_memory(dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(5, 3, 6, 7).to(dtype).contiguous(memory_format=layout)
        for tensor in (images, images[1:3], images[:, :, 1:, ::2]):
            there = _unpack(*_pack(tensor))
            assert torch.equal(there, tensor)
            assert there.dtype == dtype
        there = _unpack(*_pack(images))
        assert there.stride() == images.stride()


# --- on a cluster ---------------------------------------------------------------------------------


class TwoNodes:
    """A Ray cluster of two nodes of one core each, on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.args = {"num_cpus": 1, "object_store_memory": 80 << 20}
        head = {**self.args, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second: Any = None

    def complete(self) -> str:
        """Start the second node where it was killed; returns the cluster's address."""
        if self.second is None:
            self.second = self.cluster.add_node(**self.args)
        return self.cluster.address

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    ray = pytest.importorskip("ray", reason='needs Ray: pip install -e ".[ray]"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        there = TwoNodes()
        yield there
        ray.shutdown()
        there.cluster.shutdown()


@pytest.fixture(scope="module")
def engine(nodes: TwoNodes) -> Iterator[RayEngine]:
    """One for all tests: a worker takes seconds to come up."""
    with RayEngine(nodes.complete()) as made:
        yield made


@pytest.fixture
def straight(tmp_path: Path) -> Measurer:
    """Every setting, measured in this process."""
    net, (images, labels) = recording_net(tmp_path / "straight", 0.0), images_and_labels()
    measurer = Measurer(net, images, labels)
    measurer.measure(all_settings(3, 6))
    return measurer


# Before ``engine``, to which this process stays connected and whose workers take all cores.


def test_the_command_line_finds_the_cluster(nodes: TwoNodes, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    command = ["uniform", "--model", "caffenet_cifar", "--data", str(tmp_path / "data")]
    ray = ["--engine", "ray", "--address", nodes.complete()]
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    assert main([*command, "--out", str(tmp_path / "there"), *ray]) == 0
    here, there = (tmp_path / name / "uniform.csv" for name in ("here", "there"))
    assert there.read_bytes() == here.read_bytes()


def test_without_a_cluster_or_without_ray_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason='needs Ray: pip install -e ".[ray]"')
    with pytest.raises(ConnectionError, match=r"^address: no cluster at 127.0.0.1:1 "):
        RayEngine("127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[ray\]"'):
        RayEngine()


def test_ray_counts_what_this_process_counts(engine: RayEngine, tmp_path: Path) -> None:
    """Bit for bit; also after the fills were changed, by workers that stayed."""
    net, (images, labels) = recording_net(tmp_path / "log", 0.001), images_and_labels()
    images = images.contiguous(memory_format=torch.channels_last)
    settings = all_settings(3, 6)[::5]
    for fill in ("zero", "rescale"):
        net.set(0, fill=fill)
        mine, theirs = (
            Measurer(net, images, labels, seeds=(0, 3), batch=16, engine=each)
            for each in (InProcess(), engine)
        )
        assert mine.measure(settings) == theirs.measure(settings)
        assert rows(mine) == rows(theirs)
    assert len(inferences(tmp_path / "log")) == 2


@pytest.mark.parametrize("task", ["outputs", closeness])
def test_ray_counts_any_outputs_and_values_travel(engine: RayEngine, task: Any) -> None:
    torch.manual_seed(3)
    net, images = drowsy.convert(Named().eval(), k=4), images_and_labels()[0]
    targets = None if task == "outputs" else torch.randn(len(images), 4)
    settings = all_settings(2, 4)
    mine, theirs = (
        Measurer(net, images, targets, task=task, batch=16, engine=each)
        for each in (InProcess(), engine)
    )
    here, there = mine.values(settings), theirs.values(settings)
    assert rows(mine) == rows(theirs)
    for setting in settings:
        (one,), (other,) = here[setting], there[setting]
        assert one.keys() == other.keys() == {"score", "error"}
        for name, values in one.items():
            np.testing.assert_array_equal(other[name], values)
    assert here[3, 3][0]["error"].mean() > 0.01
    # A reference travels in the form of the outputs.
    evaluator = drowsy.Evaluator(net, images, task="outputs")
    reference = Reference("other", "other", evaluator.outputs)
    again = Measurer(net, images, task="outputs", engine=engine, reference=reference)
    assert again.counts([(0, 0)])[0, 0][0].rates()["error"] == pytest.approx(0, abs=1e-9)


def test_what_an_evaluation_raises_is_raised_here(engine: RayEngine, tmp_path: Path) -> None:
    net, (images, labels) = recording_net(tmp_path / "log"), images_and_labels()
    labels[3] = 6
    with pytest.raises(ValueError, match=r"^labels: got \d to 6, allowed: 0 to 5"):
        Measurer(net, images, labels, engine=engine).measure([(0, 1, 2)])


def test_a_setting_that_ends_its_workers_is_named(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "MAX_DEATHS", 2)
    net = drowsy.convert(Deadly().eval(), source="stratified", k=4, fill="zero")
    measurer = Measurer(net, images_and_labels()[0], engine=engine)
    with pytest.raises(RuntimeError, match=r"ray: setting \(2,\) \(seed 0\) ended 2 workers"):
        measurer.measure([(0,), (1,), (2,), (3,)])


def test_workers_killed_at_ten_random_moments(
    engine: RayEngine, straight: Measurer, tmp_path: Path
) -> None:
    log, moments = tmp_path / "log", random.Random(0)
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        """SIGKILL workers, each some time after its first inference."""
        while len(killed) < 10 and not over.wait(0.01):
            working = [pid for pid in inferences(log) if pid not in killed]
            if working:
                over.wait(moments.uniform(0.0, 0.6))
                killed.append(moments.choice(working))
                os.kill(killed[-1], signal.SIGKILL)

    net, (images, labels) = recording_net(log, 0.04), images_and_labels()
    counting = Counting(engine)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        measurer = Measurer(net, images, labels, engine=counting)
        points = measurer.measure(all_settings(3, 6))
    finally:
        over.set()
        killer.join()
    assert len(killed) == 10
    assert set(counting.seen.values()) == {1}
    assert rows(measurer) == rows(straight)
    assert points == straight.measure(points)
    # Every worker evaluates rate 0 for comparison; a dead one's last results may have been lost.
    evaluated = inferences(log).total() - len(inferences(log))
    assert 6**3 - 12 <= evaluated <= 6**3 + 5 * 10  # how many, goes by the machine's load


def test_a_node_killed_in_mid_search(
    nodes: TwoNodes, engine: RayEngine, straight: Measurer, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def at(results: int) -> None:
        if results == 60:
            nodes.kill_second()

    net, (images, labels) = recording_net(log, 0.02), images_and_labels()
    counting = Counting(engine, at)
    with drowsy.Store(tmp_path / "points.sqlite") as store:
        frontier = drowsy.search(
            net, images, labels, method="exhaustive", store=store, engine=counting
        )
        slow = Measurer(net, images, labels)
        assert store.results(slow.context(0)) == rows(straight)[0]
    assert set(counting.seen.values()) == {1}
    assert counting.seen.total() == 6**3
    expected = drowsy.Frontier(straight.measure(all_settings(3, 6)).values())
    assert frontier.points == expected.points
    assert len(inferences(log)) >= 2
