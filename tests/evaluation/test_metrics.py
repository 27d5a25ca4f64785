"""Metrics by name: a new one is an entry in two tables, and the rest knows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.evaluation.anything import OUTPUTS
from drowsy.evaluation.classification import CLASSIFICATION, Answers
from drowsy.evaluation.detection import detection
from drowsy.evaluation.identity import Context
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.metrics import Counts
from drowsy.evaluation.restoration import restoration
from drowsy.evaluation.segmentation import segmentation
from drowsy.knob.metrics import METRICS, Metric, judged_by, objectives


def margin(answers: Answers) -> Tensor:
    """How far the first choice lies before the second, of each image."""
    best = answers.logits.topk(2).values
    return best[:, 0] - best[:, 1]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "margin", Metric("margin", "margin of the first choice", "logits"))
    monkeypatch.setitem(CLASSIFICATION.counting, "margin", margin)


@pytest.fixture
def net() -> drowsy.DrowsyNet:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.ReLU()
    )
    return drowsy.convert(model.eval(), k=4)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 3, 5, 5)


def logits_at(net: drowsy.DrowsyNet, images: Tensor, setting: tuple[int, ...]) -> Tensor:
    net.set(dict(zip(net.layers, [j / net.k for j in setting], strict=True)))
    net.reseed(0)
    with torch.inference_mode():
        return net(images)


def test_every_metric_is_counted_by_a_task_and_no_other() -> None:
    tasks = [CLASSIFICATION, segmentation(), restoration(1.0), detection(), OUTPUTS]
    assert list(dict.fromkeys(name for task in tasks for name in task.counting)) == [
        *("top1", "top5", "agreement", "divergence"),
        *("miou", "psnr", "ssim", "error", "f1", "score"),
    ]
    assert {name for task in tasks for name in task.counting} == METRICS.keys()
    for task in tasks:
        assert not METRICS[task.damage].higher_is_better
        assert not METRICS[task.damage].needs_labels
        assert task.quality(True) in task.objectives(True)
        assert task.quality(False) in task.objectives(False)
    assert {name: metric.name for name, metric in METRICS.items()} == {
        name: name for name in METRICS
    }


def test_what_is_said_of_each_metric() -> None:
    assert {name: (m.axis, m.higher_is_better, m.needs_labels) for name, m in METRICS.items()} == {
        "top1": ("top-1 accuracy (%)", True, True),
        "top5": ("top-5 accuracy (%)", True, True),
        "agreement": ("agreement (%)", True, False),
        "divergence": ("divergence (nats)", False, False),
        "miou": ("mean intersection over union (%)", True, False),
        "psnr": ("PSNR (dB)", True, False),
        "ssim": ("SSIM", True, False),
        "f1": ("F1 of boxes (%)", True, False),
        "score": ("score", True, False),
        "error": ("relative squared error", False, False),
    }
    others = ["miou", "psnr", "ssim", "f1", "score"]
    assert objectives() == ["top1", "top5", "agreement", *others]
    assert objectives(labelled=False) == ["agreement", *others]
    assert CLASSIFICATION.objectives(labelled=True) == ["top1", "top5", "agreement"]
    assert CLASSIFICATION.objectives(labelled=False) == ["agreement"]


def test_labels_decide_what_a_network_is_judged_by() -> None:
    assert judged_by(["divergence", "agreement", "top5", "top1"]) == ["top1", "top5"]
    assert judged_by(["saving", "divergence", "agreement"]) == ["agreement"]
    assert judged_by(["saving", "divergence"]) == []


def test_sums_of_two_sets_of_images_add_up() -> None:
    one = Counts(3, 1, None, 3, 0.5, {"margin": 2.0, "other": 1.0})
    two = Counts(4, 2, 3, 4, 0.25, {"margin": 3.0})
    # What was not measured on both is not known of both.
    assert one + two == Counts(7, 3, None, 7, 0.75, {"margin": 5.0, "other": None})
    assert two + one == one + two
    assert Counts.of(7, (one + two).sums) == one + two
    assert list((one + two).rates()) == [
        "top1",
        "top5",
        "agreement",
        "divergence",
        "margin",
        "other",
    ]


@pytest.mark.usefixtures("registered")
def test_a_new_metric_is_measured(net: drowsy.DrowsyNet, images: Tensor) -> None:
    labels = torch.arange(7) % 6
    for setting, counts in drowsy.Evaluator(net, images, labels, batch=3).walk([(0, 0), (1, 3)]):
        logits = logits_at(net, images, setting)
        best, second = logits.sort(descending=True).values.T[:2]
        assert counts.rates()["margin"] == pytest.approx(float((best - second).mean()), abs=1e-5)
        assert counts.top1 == int((logits.argmax(1) == labels).sum())


@pytest.mark.usefixtures("registered")
def test_a_point_has_it_and_a_frontier_can_be_optimal_in_it(
    net: drowsy.DrowsyNet, images: Tensor, tmp_path: Path
) -> None:
    measurer = Measurer(net, images, seeds=(0, 1))
    points = [
        measurer.point(setting, [Counts(7, None, None, 7, 0.0, {"margin": sum_}) for sum_ in sums])
        for setting, sums in {
            (0, 0): (28.0, 28.0),
            (1, 1): (14.0, 21.0),
            (2, 2): (35.0, 7.0),
        }.items()
    ]
    assert [point.figure("margin") for point in points] == [4.0, 2.5, 3.0]
    assert points[1].figures == {"agreement": 1.0, "divergence": 0.0, "margin": 2.5}
    assert points[1].spread is not None
    assert points[1].spread["margin"] == pytest.approx(0.5**0.5)
    frontier = drowsy.Frontier(points, "margin")
    assert frontier.points == [points[0], points[2]]
    assert frontier.at(max_loss=1.0) == points[2]
    assert frontier.rows()[1]["margin"] == "3.0000"
    frontier.save(tmp_path / "frontier.json")
    assert drowsy.Frontier.load(tmp_path / "frontier.json").points == frontier.points


def test_a_metric_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    schedule = drowsy.Schedule(8, {})
    for others in ({"margin": 1.0}, {"top1": 1.0}, {"seeds": 1.0}):
        with pytest.raises(ValueError, match=f"others: got {next(iter(others))}, allowed: metrics"):
            drowsy.OperatingPoint(schedule, 0.0, others=others)
    stored = drowsy.OperatingPoint(schedule, 0.0, 0.5).to_dict()
    with pytest.raises(ValueError, match="point: unknown margin; allowed: agreement, divergence"):
        drowsy.OperatingPoint.from_dict({**stored, "margin": 1.0})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("margin", [None, "1", True])
def test_a_file_whose_figure_is_no_number_is_refused(margin: object) -> None:
    stored = drowsy.OperatingPoint(drowsy.Schedule(8, {}), 0.0, 0.5).to_dict()
    with pytest.raises(ValueError, match=f"point: margin: got {margin!r}, allowed: a number"):
        drowsy.OperatingPoint.from_dict({**stored, "margin": margin})
    with pytest.raises(ValueError, match="point: got NoneType, allowed: an object"):
        drowsy.OperatingPoint.from_dict(None)


@pytest.mark.usefixtures("registered")
def test_a_figure_that_is_none_is_refused() -> None:
    schedule = drowsy.Schedule(8, {})
    with pytest.raises(ValueError, match="margin: got inf, allowed: a finite number"):
        drowsy.OperatingPoint(schedule, 0.0, others={"margin": float("inf")})
    with pytest.raises(ValueError, match=r"top5: got 1\.5, allowed: 0 to 1"):
        drowsy.OperatingPoint(schedule, 0.0, top5=1.5)


def test_a_store_refuses_a_metric_that_nobody_knows() -> None:
    with drowsy.Store(":memory:") as store:
        context = Context("weights", "data", {"k": 8}, 0)
        counts = Counts(7, 1, 2, 3, 0.5, {"margin": 2.0})
        with pytest.raises(ValueError, match="got margin, allowed: top1, top5, agreement, diverg"):
            store.put(context, (1,), counts)
        assert store.results(context) == {}
