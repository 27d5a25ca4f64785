"""Labels by which a network does no better than guessing are refused, as nothing can be lost."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.detection import detection
from drowsy.evaluation.guessing import check_targets
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.restoration import restoration
from drowsy.evaluation.segmentation import segmentation


def check(outputs: Any, targets: Any, task: Task = CLASSIFICATION) -> None:
    check_targets(task, task.count(outputs, outputs, targets), outputs, targets)


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
