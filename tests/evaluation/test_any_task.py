"""Networks of any task are evaluated, stored, raced, corrected and searched as classifiers are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.correction.corrected import Corrected
from drowsy.evaluation.engine import InProcess, Result, Workload
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.metrics import Counts
from drowsy.evaluation.outputs import Named
from drowsy.evaluation.restoration import restoration
from drowsy.evaluation.segmentation import segmentation
from drowsy.knob.schedule import Setting
from drowsy.searches.race import Race

IMAGES = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Features(nn.Module):
    """Two layers of which the others make their outputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, channels, 3, padding=1),
        )

    def features(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class Segmenting(Features):
    """torchvision's form: several maps by name."""

    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.features(x)
        return {"out": y, "aux": F.relu(y)}


class Restoring(Features):
    def __init__(self) -> None:
        super().__init__(12)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.sigmoid(self.features(x)), 2)


class Pairing(Features):
    """Scores and boxes of all positions."""

    def __init__(self) -> None:
        super().__init__(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.features(x).flatten(2).transpose(1, 2)
        corner = y[..., 2:4]
        boxes = torch.cat([corner, corner + F.softplus(y[..., 4:])], 2)
        return (8 * y[..., :2]).softmax(2), boxes


class Listing(Pairing):
    """torchvision's form: as many boxes as an image happens to have."""

    def forward(self, x: Tensor) -> Any:
        scores, boxes = super().forward(x)
        found = []
        for score, each in zip(scores[..., 1], boxes, strict=True):
            chosen = (score > 0.3).nonzero()[:, 0]
            labels = torch.ones_like(chosen)
            found.append({"boxes": each[chosen], "scores": score[chosen], "labels": labels})
        return found


class Several(Features):
    """Outputs of no known form."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.features(x)
        return y[:, :2], {"depth": y[:, 2:].mean((2, 3))}


# Of each task a network, its targets, and what it puts out that is a tensor.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "segmentation": Segmenting,
    "restoration": Restoring,
    "detection": Pairing,
    "detection of lists": Listing,
    "outputs": Several,
}
SETTINGS = [(0, 0), (2, 0), (2, 3), (3, 3)]


def net_of(name: str, without_graph: bool = False) -> drowsy.DrowsyNet:
    torch.manual_seed(1)
    net = drowsy.convert(MODELS[name]().eval(), k=4)
    if without_graph:
        net.settle(IMAGES[:1])
        net.known.graph = None
    return net


def targets_of(name: str, net: drowsy.DrowsyNet) -> Any:
    """Other than what the network puts out."""
    if name == "segmentation":
        return torch.arange(7 * 64).view(7, 8, 8) % 5
    if name == "restoration":
        return F.interpolate(IMAGES, scale_factor=2)
    if name.startswith("detection"):
        boxes = torch.tensor([[0.0, 0, 1, 1]])
        return [{"boxes": boxes, "labels": torch.tensor([1])}] * 7
    return None


def outputs_at(net: drowsy.DrowsyNet, setting: Setting, seed: int = 0) -> Any:
    """Of an ordinary inference."""
    net.set(dict(zip(net.layers, [j / net.k for j in setting], strict=True)))
    net.reseed(seed)
    with torch.inference_mode():
        return net(IMAGES.clone())


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["as it is", "without a graph"])
def net(request: pytest.FixtureRequest, name: str) -> drowsy.DrowsyNet:
    return net_of(name, request.param)


# --- the evaluator -------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
def test_counts_are_those_of_whole_network_inference(
    name: str, net: drowsy.DrowsyNet, targeted: bool
) -> None:
    targets = targets_of(name, net) if targeted else None
    evaluator = Evaluator(net, IMAGES, targets, batch=3, task="auto")
    assert evaluator.task.name == name.split()[0]
    found = dict(evaluator.walk(SETTINGS))
    task = evaluator.task
    awake = task.take(outputs_at(net, (0, 0)), IMAGES)
    for setting in SETTINGS:
        outputs = task.take(outputs_at(net, setting), IMAGES)
        expected = task.count(outputs, awake, evaluator.labels)
        counts = found[setting]
        assert counts.images == 7
        assert counts.values.keys() == task.counting.keys()
        for metric, each in expected.values.items():
            np.testing.assert_allclose(counts.values[metric], each, rtol=1e-3, atol=1e-4)
            assert counts.sums[metric] == pytest.approx(float(each.sum()), rel=1e-3, abs=1e-3)
    damage = [found[setting].rates()[task.damage] or 0.0 for setting in SETTINGS]
    assert damage[0] == pytest.approx(0, abs=1e-6)
    assert min(damage[1:]) > 1e-3
    if not targeted:
        best = {"psnr": 100.0}
        quality = task.quality(labelled=False)
        assert found[0, 0].rates()[quality] == pytest.approx(best.get(quality, 1.0), abs=1e-5)


def test_the_networks_without_a_graph_of_their_own_have_none() -> None:
    graphs = {}
    for name in MODELS:
        net = net_of(name)
        net.settle(IMAGES[:1])
        graphs[name] = net.graph is not None
    assert graphs.pop("detection of lists") is False
    assert all(graphs.values())


def test_outputs_awake_are_the_models_in_one_form(name: str, net: drowsy.DrowsyNet) -> None:
    outputs = Evaluator(net, IMAGES, batch=2, task="outputs").outputs()
    with torch.inference_mode():
        expected = net.original(IMAGES)
    flat, others = (list(_tensors(each)) for each in (outputs, expected))
    assert len(flat) == len(others)
    for one, other in zip(flat, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for each in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(each)


def test_a_classifier_that_names_its_logits_counts_as_one_that_does_not() -> None:
    class Logits(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    class Naming(Logits):
        def forward(self, x: Tensor) -> Any:
            return Named(loss=None, logits=super().forward(x))

    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 6), nn.Flatten())
    labels = torch.arange(7) % 5
    plain, naming = (
        dict(Evaluator(drowsy.convert(kind(*layers).eval(), k=4), IMAGES, labels).walk(SETTINGS))
        for kind in (Logits, Naming)
    )
    assert plain == naming
    assert plain[3, 3].divergence > 0


# --- the store -----------------------------------------------------------------------------------


class Nothing:
    """An engine for stores that know every result."""

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        raise AssertionError(f"was asked for {settings}")


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for metric in one:
        assert one[metric].dtype == other[metric].dtype == np.float32
        np.testing.assert_array_equal(one[metric], other[metric])


@pytest.mark.parametrize("targeted", [False, True])
def test_a_resumed_measurer_has_every_value(name: str, targeted: bool, tmp_path: Path) -> None:
    net = net_of(name)
    targets = targets_of(name, net) if targeted else None
    path, seeds = tmp_path / "s.sqlite", (0, 5)
    first = Measurer(net, IMAGES, targets, task="auto", seeds=seeds, store=path)
    counts = first.counts(SETTINGS)
    again = Measurer(net, IMAGES, targets, task="auto", seeds=seeds, store=path, engine=Nothing())
    assert again.counts(SETTINGS) == counts
    assert again.measure(SETTINGS) == first.measure(SETTINGS)
    values = again.values(SETTINGS)
    for setting in SETTINGS:
        for one, other in zip(counts[setting], values[setting], strict=True):
            assert one.values.keys() == first.task.counting.keys()
            assert_same(one.values, other)


def test_tasks_do_not_share_results(tmp_path: Path) -> None:
    net, path = net_of("segmentation"), tmp_path / "s.sqlite"
    tasks: list[Any] = [
        segmentation(),
        segmentation(0),
        "outputs",
        lambda outputs, awake, targets: outputs["out"].flatten(1).mean(1).abs(),
        lambda outputs, awake, targets: outputs["out"].flatten(1).amax(1).abs(),
    ]
    found = [Measurer(net, IMAGES, task=task, store=path).counts([(2, 2)]) for task in tasks]
    again = [
        Measurer(net, IMAGES, task=task, store=path, engine=Nothing()).counts([(2, 2)])
        for task in tasks
    ]
    assert found == again
    assert len({str(each) for each in found}) == len(tasks)


def classifier() -> drowsy.DrowsyNet:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 6), nn.Flatten())
    return drowsy.convert(nn.Sequential(*layers).eval(), k=4)


def without_values(path: Path) -> None:
    """The file as one of before."""
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE figures")
    database.close()


def test_a_file_from_before_is_known_and_gets_values_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    net, labels, path = classifier(), torch.arange(7) % 5, tmp_path / "s.sqlite"
    first = Measurer(net, IMAGES, labels, store=path)
    counts = first.counts(SETTINGS)
    first.store.close()
    without_values(path)
    known = Measurer(net, IMAGES, labels, store=path, engine=Nothing())
    assert known.counts(SETTINGS) == counts
    assert not known.counts([(2, 3)])[2, 3][0].values
    # One of them is asked for, and is then there.
    again = Measurer(net, IMAGES, labels, store=path).values([(2, 3)])
    assert_same(again[2, 3][0], counts[2, 3][0].values)
    assert_same(known.counts([(2, 3)])[2, 3][0].values, counts[2, 3][0].values)
    assert not known.counts([(3, 3)])[3, 3][0].values


def test_values_are_kept_small_and_only_where_they_are_wanted(tmp_path: Path) -> None:
    net, labels, path = classifier(), torch.arange(7) % 5, tmp_path / "s.sqlite"
    measurer = Measurer(net, IMAGES, labels, store=path)
    measurer.measure([(1, 1)], values=False)
    measurer.measure([(2, 2)])
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT setting, metric, total, length(single) FROM figures")
        held = {(setting, metric): (total, size) for setting, metric, total, size in rows}
    database.close()
    assert held == {
        ("2,2", "top1"): (None, 7),
        ("2,2", "top5"): (None, 7),
        ("2,2", "agreement"): (None, 7),
        ("2,2", "divergence"): (None, 28),
    }


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metric", "margin"), ("images", 8), ("images", -1), ("images", "many"),
        ("total", "much"), ("total", float("inf")), ("single", b"12345"), ("single", "text"),
        ("setting", "1,,2"),
    ],
)  # fmt: skip
def test_a_row_that_holds_something_else_is_named(column: str, value: Any, tmp_path: Path) -> None:
    net, path = net_of("restoration"), tmp_path / "s.sqlite"
    measurer = Measurer(net, IMAGES, task=restoration(1), store=path)
    measurer.measure([(1, 1)])
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE figures SET {column} = ? WHERE metric = 'ssim'", (value,))
    database.close()
    with pytest.raises(ValueError, match=r"s\.sqlite: setting .*: got .*, allowed: "):
        measurer.counts([(1, 1)])


# --- halves, races, engines ----------------------------------------------------------------------


def test_values_of_stretches_are_those_of_all_images(name: str) -> None:
    net = net_of(name)
    targets = targets_of(name, net)
    measurer = Measurer(net, IMAGES, targets, task="auto", batch=2)
    ((whole,),) = measurer.counts([(2, 3)]).values()
    parts: list[Counts] = []
    for stretch in (range(3), range(3, 7)):
        ((counts,),) = measurer.counts([(2, 3)], images=stretch).values()
        parts.append(counts)
    both = parts[0] + parts[1]
    assert both.images == 7
    for metric, each in whole.values.items():
        np.testing.assert_allclose(both.values[metric], each, rtol=1e-4, atol=1e-5)


def test_a_race_is_of_fractions() -> None:
    net = net_of("segmentation")
    targets = targets_of("segmentation", net)
    measurer = Measurer(net, IMAGES, targets, task="segmentation")
    assert Race(measurer, ["miou"]).measure(SETTINGS) == measurer.measure(SETTINGS)
    other = Measurer(net_of("restoration"), IMAGES, task="restoration")
    with pytest.raises(ValueError, match="objective: got 'ssim', allowed: "):
        Race(other, ["ssim"])


@pytest.mark.parametrize("name", ["segmentation", "restoration", "detection", "outputs"])
def test_a_search_finds_what_is_best_for_the_task(name: str, tmp_path: Path) -> None:
    net = net_of(name)
    frontier = drowsy.search(net, IMAGES, store=tmp_path / "s.sqlite")
    measurer = Measurer(net, IMAGES, task="auto", store=tmp_path / "s.sqlite", engine=Nothing())
    settings = [(i, j) for i in range(4) for j in range(4)]
    points = measurer.measure(settings)
    objective = measurer.task.quality(labelled=False)
    assert frontier.objective == objective
    assert frontier.points == drowsy.Frontier(points.values(), objective).points
    frontier.save(tmp_path / "f.json")
    assert drowsy.Frontier.load(tmp_path / "f.json").points == frontier.points


def test_an_additive_search_goes_by_the_damage_of_the_task() -> None:
    net = net_of("restoration")
    frontier = drowsy.search(net, IMAGES, method="additive", budget=14)
    assert len(frontier) > 3
    settings = [tuple(p.schedule.thresholds().values()) for p in frontier.points]
    best = drowsy.search(net, IMAGES, objective="ssim")
    # Of 16 settings it measures 14, so that it finds almost what there is.
    assert frontier.hypervolume() > 0.95 * best.hypervolume()
    assert len(set(settings)) == len(settings)


def test_a_search_by_a_metric_of_ones_own() -> None:
    def dark(outputs: Any, awake: Any, targets: Any) -> Tensor:
        return 1 - (outputs - targets).abs().flatten(1).mean(1)

    net = net_of("restoration")
    targets = targets_of("restoration", net)
    frontier = drowsy.search(net, IMAGES, targets, metric=dark)
    assert frontier.objective == "score"
    for point in frontier.points:
        setting = tuple(point.schedule.thresholds().values())
        expected = float(dark(outputs_at(net, setting), None, targets).mean())
        assert point.figure("score") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["segmentation", "restoration", "outputs"])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_corrections_are_measured_in_every_task(name: str, reconstruct: bool) -> None:
    net = net_of(name)
    engine = Corrected(IMAGES, reconstruct=reconstruct)
    plain, corrected = (
        Measurer(net, IMAGES, task="auto", engine=each).values([(2, 2), (0, 0)])
        for each in (InProcess(), engine)
    )
    damage = Measurer(net, IMAGES, task="auto").damage
    assert corrected[0, 0][0][damage].max() == pytest.approx(0, abs=1e-6)
    assert corrected[2, 2][0][damage].mean() < plain[2, 2][0][damage].mean()


def test_classifications_are_keyed_as_ever_and_others_apart() -> None:
    net = net_of("segmentation")
    configuration = Measurer(net, IMAGES, task=segmentation(7)).context(0).configuration
    assert configuration["task"] == ["segmentation", 7]
    assert "task" not in Measurer(classifier(), IMAGES, task="auto").context(0).configuration
