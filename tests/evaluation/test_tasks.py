"""Tasks: every metric by small examples that one can follow, and which task is found for what."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.evaluation.anything import OUTPUTS, custom
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.detection import Boxes, detection, overlaps, thinned
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.outputs import Named, described, joined, main, part, taken
from drowsy.evaluation.restoration import MOST_DB, find_peak, restoration
from drowsy.evaluation.segmentation import segmentation
from drowsy.evaluation.tasks import find_task


def values(task: Task, outputs: Any, awake: Any, targets: Any = None) -> dict[str, list[float]]:
    """Every metric's values; their sums are those of the counts."""
    counts = task.count(outputs, awake, targets)
    assert all(each.dtype == np.float32 for each in counts.values.values())
    for name, each in counts.values.items():
        assert len(each) == counts.images
        assert counts.sums[name] == pytest.approx(float(each.sum(dtype=np.float64)), rel=1e-6)
    return {name: each.tolist() for name, each in counts.values.items()}


# --- classification ------------------------------------------------------------------------------


def test_a_classifiers_images_one_by_one() -> None:
    awake = torch.tensor([[2.0, 0, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    logits = torch.tensor([[0.0, 2, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1]])
    found = values(CLASSIFICATION, logits, awake, torch.tensor([0, 1, 5]))
    assert found["top1"] == [0, 1, 0]
    assert found["top5"] == [1, 1, 0]
    assert found["agreement"] == [0, 1, 0]
    # Logits 2 and 0 x 5: the first class has e^2 / (e^2 + 5), the exchange costs twice the gap.
    first, rest = (math.exp(x) / (math.exp(2) + 5) for x in (2, 0))
    assert found["divergence"][:2] == pytest.approx([2 * (first - rest), 0], abs=1e-6)


# --- segmentation --------------------------------------------------------------------------------


def one_hot(classes: list[list[int]], count: int = 3) -> Tensor:
    """Logits ``[1, count, H, W]`` of these choices."""
    return F.one_hot(torch.tensor(classes), count).permute(2, 0, 1)[None].float()


def test_overlap_of_classes() -> None:
    logits = one_hot([[0, 0, 1], [1, 1, 1]])
    awake = one_hot([[0, 0, 0], [1, 1, 1]])
    labels = torch.tensor([[[0, 1, 1], [1, 255, 2]]])
    # With labels, one pixel aside: class 0: 1 of 2; class 1: 2 of 4; class 2, missed: 0 of 1.
    found = values(segmentation(), logits, awake, labels)
    assert found["miou"] == pytest.approx([(1 / 2 + 2 / 4 + 0) / 3])
    assert found["agreement"] == pytest.approx([5 / 6])
    # Without: class 0: 2 of 3, class 1: 3 of 4; class 2 does not occur.
    assert values(segmentation(), logits, awake)["miou"] == pytest.approx([(2 / 3 + 3 / 4) / 2])


def test_another_label_is_left_out() -> None:
    logits, labels = one_hot([[0, 1]]), torch.tensor([[[0, 2]]])
    assert values(segmentation(2), logits, logits, labels)["miou"] == [1]
    nothing = values(segmentation(2), logits, logits, torch.full((1, 1, 2), 2))
    assert nothing["miou"] == [1]
    # Put out, it misses the class that is right: of class 0 a half, of class 1 all.
    put_out = one_hot([[0, 2, 1]])
    wrong = values(segmentation(2), put_out, put_out, torch.tensor([[[0, 0, 1]]]))
    assert wrong["miou"] == [(1 / 2 + 1) / 2]


def test_divergence_is_the_mean_of_pixels() -> None:
    awake = torch.zeros(2, 2, 1, 2)
    logits = awake.clone()
    logits[0, 0, 0, 0] = math.log(3)  # 3/4 and 1/4, awake a half each
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    found = values(segmentation(), logits, awake)
    assert found["divergence"] == pytest.approx([kl / 2, 0], abs=1e-7)


def test_small_maps_are_brought_to_the_labels_size() -> None:
    logits = one_hot([[0, 1]])
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1]]])
    assert values(segmentation(), logits, logits, labels)["miou"] == [1]


def test_pixels_that_are_nan_are_wrong() -> None:
    logits, awake = one_hot([[0, 1]]), one_hot([[0, 1]])
    logits[0, :, 0, 1] = math.nan
    read = segmentation().read(logits, awake, None)
    # Class 0 is whole; class 1 has none of one.
    assert segmentation().counting["miou"](read).tolist() == [0.5]
    assert segmentation().counting["agreement"](read).tolist() == [0.5]


# --- restoration ---------------------------------------------------------------------------------


def test_decibels() -> None:
    right, awake = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    outputs = torch.full((2, 1, 4, 4), 0.1)
    outputs[1] = 0.01
    found = values(restoration(1.0), outputs, awake, right)
    assert found["psnr"] == pytest.approx([20, 40], rel=1e-5)
    # To the images awake, with targets too: (1 - .1)^2 of 1.
    assert found["error"] == pytest.approx([0.81, 0.99**2], rel=1e-5)
    assert values(restoration(255.0), 255 * outputs, awake, right)["psnr"] == pytest.approx(
        [20, 40]
    )
    same = values(restoration(1.0), awake, awake)
    assert same == {"psnr": [MOST_DB] * 2, "ssim": [1] * 2, "error": [0] * 2}


def test_decibels_of_the_luma_within_a_border() -> None:
    right, outputs = torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6, 6)
    outputs[:, :, 0] = 1  # at the edge alone
    outputs[:, 0, 2, 2] = 0.5  # red, of one of 4 pixels that count
    found = values(restoration(1.0, luma=True, border=2), outputs, right, right)
    assert found["psnr"] == pytest.approx([-10 * math.log10((0.5 * 65.481 / 255) ** 2 / 4)])


def test_similarity_of_constant_images_is_that_of_their_levels() -> None:
    one, other = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    c1 = 0.01**2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert values(restoration(1.0), one, other)["ssim"] == pytest.approx([expected])


def test_similarity_is_that_of_the_formula_window_by_window() -> None:
    one, other = torch.rand(1, 1, 12, 11), torch.rand(1, 1, 12, 11)
    places = torch.arange(11.0, dtype=torch.float64) - 5
    line = (-(places**2) / 4.5).exp()
    weights = line[:, None] * line / line.sum() ** 2
    each = []
    for top in (0, 1):
        x, y = (image[0, 0, top : top + 11].double() for image in (one, other))
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        vxy = (weights * (x - mx) * (y - my)).sum()
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        each.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    expected = float(torch.stack(each).mean())
    assert values(restoration(2.0), one, other)["ssim"] == pytest.approx([expected])


def test_similarity_of_images_smaller_than_a_window() -> None:
    image = torch.rand(1, 3, 4, 20)
    assert values(restoration(1.0), image, image)["ssim"] == [1]


@pytest.mark.parametrize(
    ("low", "high", "peak"), [(0, 1, 1), (-0.1, 1.2, 1), (-1, 1, 2), (0, 255, 255), (-9, 260, 255)]
)
def test_the_range_of_images(low: float, high: float, peak: float) -> None:
    assert find_peak(torch.tensor([[low, high]])) == peak


# --- detection -----------------------------------------------------------------------------------


def entry(boxes: list[list[float]], scores: list[float], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def take(task: Task, output: Any) -> Any:
    return task.take(output, torch.zeros(len(output), 3, 8, 8))


def test_overlap_of_boxes() -> None:
    one = torch.tensor([[0.0, 0, 2, 2], [5, 5, 5, 5]])
    other = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [4, 4, 6, 6]])
    torch.testing.assert_close(overlaps(one, other), torch.tensor([[1 / 7, 1, 0], [0, 0, 0.0]]))


def test_f1_counts_each_box_once() -> None:
    square, far, near = [0.0, 0, 4, 4], [10.0, 10, 14, 14], [0.0, 0, 4, 3]
    awake = [
        entry([square, far], [0.9, 0.8], [1, 1]),
        entry([square], [0.9], [1]),
        entry([], [], []),
        entry([], [], []),
    ]
    outputs = [
        entry([near, square], [0.9, 0.6], [1, 1]),  # both want the first: one found, one too many
        entry([square], [0.9], [2]),  # of another class
        entry([square], [0.4], [1]),  # scores too little
        entry([square], [0.6], [1]),  # of nothing
    ]
    task = detection()
    found = values(task, take(task, outputs), take(task, awake))
    assert found["f1"] == [2 * 1 / 4, 0, 1, 0]


def test_f1_to_targets_and_not_to_what_it_is_awake() -> None:
    square, task = [0.0, 0, 4, 4], detection()
    outputs = take(task, [entry([square], [0.9], [3])])
    right = [{"boxes": torch.tensor([square]), "labels": torch.tensor([3])}]
    awake = take(task, [entry([], [], [])])
    targets = task.check(right, torch.zeros(1, 3, 8, 8))
    assert values(task, outputs, awake, targets)["f1"] == [1]
    assert values(task, outputs, awake)["f1"] == [0]


def test_error_of_boxes_is_of_what_they_score_and_overlap() -> None:
    square, half, far = [0.0, 0, 4, 4], [0.0, 0, 4, 2], [9.0, 9, 10, 10]
    awake = [entry([square, far], [0.8, 0.6], [1, 1])]
    outputs = [entry([half, [20.0, 20, 21, 21]], [0.8, 0.3], [1, 1])]
    task = detection()
    # Half of the first is left (.8 - .8 / 2), the second is gone (.6), a new one there (.3).
    expected = (0.4**2 + 0.6**2 + 0.3**2) / (0.8**2 + 0.6**2)
    found = values(task, take(task, outputs), take(task, awake))
    assert found["error"] == pytest.approx([expected])
    nothing = take(task, [entry([], [], [])])
    assert values(task, nothing, nothing)["error"] == [0]
    assert values(task, take(task, outputs), nothing)["error"] == [1]


def test_boxes_are_thinned_within_their_class() -> None:
    corners = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 3], [8, 8, 9, 9]]).double()
    found = Boxes(corners, torch.tensor([1, 1, 2, 1]), torch.tensor([0.9, 0.8, 0.7, 0.6]).double())
    kept = thinned(found, 0.3)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    # What was dropped drops nobody: a chain of three, each over the next.
    chain = torch.tensor([[0.0, 0, 4, 1], [2, 0, 6, 1], [4, 0, 8, 1]]).double()
    three = Boxes(chain, torch.ones(3), torch.tensor([0.9, 0.8, 0.7]).double())
    assert thinned(three, 0.3).scores.tolist() == pytest.approx([0.9, 0.7])


def plain(scores: list[list[float]], boxes: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Scores ``[1, A, 2]`` and boxes of all anchors, the first class the background."""
    found = torch.tensor(scores)
    return torch.stack([1 - found, found], -1), torch.tensor(boxes)[None]


def test_boxes_of_all_anchors() -> None:
    task, boxes = detection(score=0.6), [[0.0, 0, 4, 4], [0, 0, 4, 3.5], [8, 8, 9, 9]]
    awake = plain([[0.9, 0.8, 0.7]], boxes)
    outputs = plain([[0.7, 0.9, 0.5]], boxes)
    # Awake the first and third, now the second alone, which is where the first was.
    mine, theirs = take_pair(task, outputs), take_pair(task, awake)
    found = values(task, mine, theirs)
    assert found["f1"] == pytest.approx([2 / 3])
    scores = (0.2**2 + 0.1**2 + 0.2**2) / (0.9**2 + 0.8**2 + 0.7**2)
    assert found["error"] == pytest.approx([scores / 2], rel=1e-5)
    assert values(task, theirs, theirs) == {"f1": [1], "error": [0]}
    moved = (theirs[0], theirs[1] + torch.tensor([1.0, 0, 1, 0]))
    weights = [0.9, 0.8, 0.7]
    sizes = [sum(x * x for x in box) for box in boxes]
    off = 2 * sum(weights) / sum(w * s for w, s in zip(weights, sizes, strict=True))
    assert values(task, moved, theirs)["error"] == pytest.approx([off / 2], rel=1e-5)


def take_pair(task: Task, output: tuple[Tensor, Tensor]) -> Any:
    return task.take(output, torch.zeros(1, 3, 8, 8))


# --- anything ------------------------------------------------------------------------------------


def test_error_of_outputs_is_the_mean_of_all_tensors() -> None:
    awake = (torch.tensor([[3.0, 4], [1, 0], [0, 0]]), torch.tensor([2.0, 1, 0]))
    outputs = (torch.tensor([[3.0, 3], [1, 3], [0, 0]]), torch.tensor([1.0, 1, 0]))
    found = values(OUTPUTS, outputs, awake)
    # 1 of 25 and 1 of 4; 9 of 1 and 0; nothing of nothing.
    assert found["error"] == pytest.approx([(1 / 25 + 1 / 4) / 2, 9 / 2, 0])
    assert found["score"] == pytest.approx([1 - (1 / 25 + 1 / 4) / 2, 0, 1])
    some = (torch.tensor([[3.0, 4], [1, 0], [0, 1]]), awake[1])
    assert values(OUTPUTS, some, awake)["error"] == pytest.approx([0, 0, 0.5])


def test_a_metric_of_ones_own_sees_outputs_awake_ones_and_targets() -> None:
    def closeness(outputs: Any, awake: Any, targets: Any) -> Any:
        return -((outputs.depth - targets).abs() + awake["depth"]).flatten(1).mean(1)

    task, images = custom(closeness), torch.zeros(2, 3, 4, 4)
    outputs = task.take({"depth": torch.tensor([[1.0, 2], [3, 4]]), "none": None}, images)
    awake = task.take({"depth": torch.tensor([[1.0, 1], [3, 4]])}, images)
    found = values(task, outputs, awake, torch.tensor([[0.0, 0], [1, 1]]))
    assert found["score"] == [-(1 + 2 + 1 + 1) / 2, -(2 + 3 + 3 + 4) / 2]
    assert found["error"] == pytest.approx([1 / 2, 0])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_metric_may_give_numbers_in_any_form(kind: Callable[[Any], Any]) -> None:
    task = custom(lambda outputs, awake, targets: kind([0.25, 0.5]))
    assert values(task, torch.ones(2, 3), torch.ones(2, 3))["score"] == [0.25, 0.5]


def test_a_metric_may_write_into_what_it_is_given() -> None:
    outputs, awake, targets = torch.rand(4, 3), torch.rand(4, 3), torch.rand(4, 3)
    entries = [{"boxes": np.ones(2)} for _ in range(4)]

    def near(outputs: Any, awake: Any, targets: Any) -> Tensor:
        return -(outputs - awake).abs().sum(1)

    def spoiling(outputs: Any, awake: Any, targets: Any) -> Tensor:
        for each in (outputs, awake):
            each.add_(1)
        if isinstance(targets, list):
            targets[0]["boxes"][:] = 7
        else:
            targets.zero_()
        return -outputs.sub_(awake).abs_().sum(1)

    for given in (targets, entries):
        kept = copy.deepcopy((outputs, awake, given))
        found = [values(custom(metric), outputs, awake, given) for metric in (near, spoiling) * 2]
        assert found[0]["error"] == found[1]["error"] == found[3]["error"]
        assert found[1]["score"] == pytest.approx(found[0]["score"], abs=1e-6)
        assert found[1]["score"] == found[3]["score"]
        assert torch.equal(kept[0], outputs)
        assert torch.equal(kept[1], awake)
    assert targets.any()
    assert entries[0]["boxes"].tolist() == [1, 1]


def test_a_metric_that_is_no_number_is_named() -> None:
    outputs = torch.rand(3, 2)

    def gives(*each: float) -> Any:
        return lambda outputs, awake, targets: list(each)

    with pytest.raises(ValueError, match="metric: gave nan for image 1 of 3, whose outputs are"):
        values(custom(gives(1, math.nan, 2)), outputs, outputs)
    with pytest.raises(ValueError, match="metric: gave -inf for image 2"):
        values(custom(gives(1, 1, -math.inf)), outputs, outputs)
    with pytest.raises(ValueError, match="as the network puts out NaN"):
        values(custom(gives(1, 1, math.nan)), outputs * math.nan, outputs)


def test_metrics_are_told_apart_by_what_they_compute() -> None:
    def times(number: float) -> Task:
        return custom(lambda outputs, awake, targets: outputs.mean(1) * number)

    assert times(1.0).told == times(1.0).told
    assert times(1.0).told != times(2.0).told
    told = [segmentation(), segmentation(11), restoration(1), restoration(255), detection()]
    told += [restoration(1, luma=True), restoration(1, border=2)]
    told += [detection(0.6), detection(overlap=0.5), OUTPUTS, times(1.0)]
    assert len({str(task.told) for task in told}) == len(told)


# --- forms of outputs ----------------------------------------------------------------------------


def test_outputs_of_batches_are_joined_and_cut() -> None:
    def output(first: int, last: int) -> Any:
        rows = torch.arange(float(first), last)
        return {"out": rows[:, None], "aux": [rows, (rows[:, None, None],)], "loss": None}

    whole = joined([taken(output(0, 3), 3), taken(output(3, 5), 2)])
    expected = taken(output(0, 5), 5)
    assert isinstance(whole, Named)
    assert whole.keys() == {"out", "aux"}
    assert torch.equal(whole.out, expected.out)
    assert torch.equal(whole["aux"][0], expected["aux"][0])
    assert torch.equal(whole["aux"][1][0], expected["aux"][1][0])
    assert torch.equal(part(whole, slice(3, 5))["aux"][1][0], taken(output(3, 5), 2)["aux"][1][0])
    assert main(whole) is whole["out"]
    assert described(whole) == "out [N, 1], aux ([N], ([N, 1, 1]))"


def test_an_entry_an_image_stays_one() -> None:
    entries = [entry([[0.0, 0, 1, 1]] * i, [0.5] * i, [1] * i) for i in range(5)]
    whole = joined([taken(entries[:3], 3), taken(entries[3:], 2)])
    assert [len(each["boxes"]) for each in whole] == [0, 1, 2, 3, 4]
    assert [len(each["boxes"]) for each in part(whole, slice(1, 3))] == [1, 2]
    entries[1]["boxes"] += 1  # of a network that uses its memory again
    assert whole[1]["boxes"].tolist() == [[0, 0, 1, 1]]
    ragged = taken([torch.zeros(4, 6), torch.zeros(2, 6)], 2)
    assert [len(each) for each in ragged] == [4, 2]


# --- which task it is ----------------------------------------------------------------------------

IMAGES = torch.zeros(2, 3, 8, 8)
BOXES = [entry([[0.0, 0, 1, 1]], [0.5], [1])] * 2
PICTURE = torch.rand(2, 3, 16, 16)
FOUND: dict[str, tuple[Any, Any]] = {
    "classification": (torch.zeros(2, 10), None),
    "classification ": (Named(logits=torch.zeros(2, 10), hidden=torch.zeros(2, 4)), None),
    "segmentation": (torch.zeros(2, 12, 8, 8), None),
    "segmentation ": (Named(out=torch.zeros(2, 4, 8, 8), aux=torch.zeros(2, 4, 8, 8)), None),
    "segmentation  ": (torch.zeros(2, 2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)),
    "segmentation   ": (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)),
    "restoration": (PICTURE, None),
    "restoration ": (PICTURE[:, :1, :8, :8], PICTURE[:, :1, :8, :8]),
    "detection": (BOXES, None),
    "detection ": ((torch.zeros(2, 9, 2), torch.zeros(2, 9, 4)), None),
    "outputs": (torch.zeros(2, 1), None),
    "outputs ": ((torch.zeros(2, 10), torch.zeros(2, 10)), None),
    "outputs  ": (torch.zeros(2, 3, 12, 12), None),
    "outputs   ": (torch.zeros(2, 2, 8, 8), None),
    "outputs    ": (torch.zeros(2, 7, 5), None),
    "outputs     ": (Named(depth=torch.zeros(2, 1, 8, 8)), None),
}


@pytest.mark.parametrize("case", FOUND)
def test_auto_goes_by_the_form_and_says_so(case: str) -> None:
    outputs, targets = FOUND[case]
    task = find_task("auto", IMAGES, targets, lambda: outputs)
    assert task.name == case.strip()
    assert str(task).startswith(f"{case.strip()} (outputs ")
    assert str(task).endswith(", with targets)") == (targets is not None)
    assert task.graded == (task.name != "classification")


def test_the_range_is_that_of_the_targets_or_of_the_images_awake() -> None:
    for pictures, peak in ((PICTURE, 1.0), (PICTURE * 255, 255.0), (PICTURE * 2 - 1, 2.0)):
        for metric in ("auto", "restoration"):
            without = find_task(metric, IMAGES, None, lambda pictures=pictures: pictures)
            assert without.told == ["restoration", peak, False, 0]
            told = find_task(metric, IMAGES, pictures, lambda: PICTURE)
            assert told.told == ["restoration", peak, False, 0]


def test_a_task_is_taken_as_it_is_and_a_name_needs_no_outputs() -> None:
    def never() -> Any:
        raise AssertionError("the network ran")

    task = segmentation(11)
    assert find_task(task, IMAGES, None, never) is task
    assert find_task("classification", IMAGES, None, never) is CLASSIFICATION
    for name in ("segmentation", "detection", "outputs"):
        assert find_task(name, IMAGES, None, never).name == name
