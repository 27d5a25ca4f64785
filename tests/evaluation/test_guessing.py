"""Labels by which a network does no better than guessing are refused, as nothing can be lost."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.detection import detection
from drowsy.evaluation.guessing import check_targets, looked_at
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.restoration import restoration
from drowsy.evaluation.segmentation import segmentation


def check(outputs: Any, targets: Any, task: Task = CLASSIFICATION) -> None:
    counts = task.count(outputs, outputs, targets)
    check_targets(task, counts, looked_at(task, outputs), targets)


def answers(count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits, and what they choose."""
    first = torch.arange(count) % classes
    return torch.nn.functional.one_hot(first, classes).float(), first


def test_labels_one_off_are_told_of() -> None:
    logits, first = answers(200, 11)
    within = first < 10
    with pytest.raises(ValueError, match=r"right in 0 of 182 .* labels -1 it is in 182: do they"):
        check(logits[within], first[within] + 1)
    within = first > 0
    with pytest.raises(ValueError, match=r"labels \+1 it is in 181: does the network"):
        check(logits[within], first[within] - 1)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_labels_by_chance_are_refused(classes: int) -> None:
    logits, first = answers(1000, classes)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=f"as who guesses among {classes} classes"):
        check(logits, first[order])


@pytest.mark.parametrize(("classes", "share"), [(2, 0.6), (10, 0.15), (1000, 0.01)])
def test_a_weak_network_is_none_that_guesses(classes: int, share: float) -> None:
    logits, first = answers(1000, classes)
    wrong = (first + classes // 2) % classes
    right = torch.arange(1000) % 100 < 100 * share
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(logits, torch.where(right, first, wrong))
        check(logits[:1], first[:1])


def test_of_few_images_it_is_a_warning() -> None:
    logits, first = answers(6, 10)
    with pytest.warns(UserWarning, match="right in 0 of 6 images"):
        check(logits, (first + 3) % 10)


@pytest.mark.parametrize(("common", "count"), [(0.7, 240), (0.5, 1000), (0.3, 200)])
def test_shuffled_labels_of_unlike_classes_are_refused(common: float, count: int) -> None:
    """One class is common, so that who guesses is right more often than in one of ten."""
    generator = torch.Generator().manual_seed(1)
    rare = torch.rand(count, generator=generator) > common
    first = torch.where(rare, torch.randint(10, (count,), generator=generator), 0)
    logits = torch.nn.functional.one_hot(first, 10).float()
    order = torch.randperm(count, generator=generator)
    with pytest.raises(ValueError, match=f"of {count} images, as who .*by chance"):
        check(logits, first[order])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = torch.rand(count, generator=generator) < 0.8
        check(logits, torch.where(kept, first, first[order]))


def test_a_network_that_finds_few_of_a_rare_class_does_not_guess() -> None:
    """As who always says no is right in 990 of 1,000, and finds none."""
    labels = torch.zeros(1000, dtype=torch.long)
    labels[:10] = 1
    first = torch.zeros(1000, dtype=torch.long)
    first[7:12] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(torch.nn.functional.one_hot(first, 2).float(), labels)
    with pytest.warns(UserWarning, match="right in 990 of 1000 images"):
        check(torch.eye(2)[torch.zeros(1000, dtype=torch.long)], labels)


def test_guesses_pass_in_one_case_of_a_thousand() -> None:
    logits, first = answers(200, 20)
    refused = 0
    for seed in range(100):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        try:
            check(logits, first[order])
        except ValueError:
            refused += 1
    assert refused >= 99


def test_labels_of_one_class_are_compared_with_any() -> None:
    logits, _ = answers(200, 10)
    same = torch.zeros(200, dtype=torch.long)
    with pytest.raises(ValueError, match="right in 20 of 200 images"):
        check(logits, same)
    logits[:150] = logits[0]
    check(logits, same)


def maps_of(count: int) -> Tensor:
    """int64 ``[count, 24, 24]``: much ground, and a piece of three classes somewhere."""
    generator = torch.Generator().manual_seed(2)
    maps = torch.zeros(count, 24, 24, dtype=torch.long)
    for n, (y, x) in enumerate(torch.randint(0, 16, (count, 2), generator=generator).tolist()):
        maps[n, y : y + 8, x : x + 8] = n % 3 + 1
    return maps


def test_maps_of_other_images_are_refused() -> None:
    maps = maps_of(40)
    logits = torch.nn.functional.one_hot(maps, 4).permute(0, 3, 1, 2).float()
    generator = torch.Generator().manual_seed(3)
    one_off = (maps + 1) % 4
    one_off[:, 0, 0] = maps[:, 0, 0]
    for wrong in (
        torch.randint(0, 4, maps.shape, generator=generator),
        maps[torch.randperm(40, generator=generator)],
        maps.roll(1, 0),
        one_off,
    ):
        with pytest.raises(ValueError, match="with the maps of other images in"):
            check(logits, wrong, segmentation())
    with pytest.warns(UserWarning, match="of the pixels of 8 images"):
        check(logits[:8], one_off[:8], segmentation())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weak = torch.where(torch.rand(maps.shape, generator=generator) < 0.3, maps, 0)
        void = maps.clone()
        void[:, :20], void[3] = 255, 255
        for right in (weak, void, maps.repeat_interleave(2, 1).repeat_interleave(2, 2)):
            check(logits, right, segmentation())
        # A camera that does not move may see the same in all of them.
        check(logits[:1].repeat(20, 1, 1, 1), weak[:1].repeat(20, 1, 1), segmentation())


def test_boxes_and_maps_of_which_none_is_right() -> None:
    box = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}
    found = [{**box, "scores": torch.tensor([0.9])} for _ in range(16)]
    check(found, [box] * 16, detection())
    # As of corner, width and height taken for two corners.
    far = {**box, "boxes": torch.tensor([[8.0, 8, 9, 9]])}
    with pytest.raises(ValueError, match="F1 of boxes 0 on each of 16 images"):
        check(found, [far] * 16, detection())
    maps = torch.zeros(16, 3, 4, 4)
    maps[:, 1] = 1
    check(maps, torch.ones(16, 4, 4, dtype=torch.long), segmentation())
    with pytest.raises(ValueError, match="intersection over union 0 on each of 16"):
        check(maps, torch.zeros(16, 4, 4, dtype=torch.long), segmentation())


def test_pictures_and_what_has_no_targets_are_not_looked_at() -> None:
    logits, _ = answers(50, 10)
    check_targets(CLASSIFICATION, CLASSIFICATION.count(logits, logits, None), logits, None)
    check(torch.rand(20, 3, 8, 8), torch.rand(20, 3, 8, 8), restoration(1.0))
