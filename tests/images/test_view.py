"""Views: what a network is shown of a picture, and outputs as large as for all of it."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from drowsy.images.view import View


def test_the_whole_is_the_picture_itself() -> None:
    images = torch.rand(2, 3, 20, 24)
    view = View.whole((20, 24))
    assert view(images) is images
    assert view.is_whole
    assert view.covers
    assert view.restored(images, (20, 24), images) is images


def test_a_view_is_the_middle_scaled_down() -> None:
    images = torch.rand(2, 3, 40, 40)
    view = View.of((40, 40), (20, 20), 0.8)
    assert (view.middle, str(view)) == ((32, 32), "20 px of the middle 0.80")
    expected = F.interpolate(images[..., 4:36, 4:36], (20, 20), mode="bicubic", antialias=True)
    assert torch.equal(view(images), expected)
    # Never enlarged: as much is taken as is shown.
    assert View.of((40, 40), (36, 36), 0.8).middle == (36, 36)


def test_of_other_pictures_it_takes_the_same_parts() -> None:
    view = View.of((40, 20), (20, 10), 0.8)
    assert view(torch.rand(1, 1, 80, 60)).shape == (1, 1, 40, 30)


@pytest.mark.parametrize("kind", [tuple, list, dict, namedtuple("Out", "a b")])
def test_maps_are_scaled_to_what_all_pixels_would_give(kind: type) -> None:
    view = View((40, 40), (40, 40), (20, 20), "bilinear")
    maps, logits = torch.rand(2, 5, 40, 40), torch.rand(2, 7)  # twice as large as its input
    outputs = {"a": maps, "b": logits} if kind is dict else (maps, logits)
    if hasattr(kind, "_fields"):
        outputs = kind(*outputs)
    elif kind is list:
        outputs = list(outputs)
    whole = tree_map_only(Tensor, lambda y: y.new_empty(9, 5, 80, 80) if y is maps else y, outputs)
    found = view.restored(outputs, (40, 40), whole)
    assert type(found) is kind
    one, other = found.values() if kind is dict else found
    assert torch.equal(one, F.interpolate(maps, (80, 80), mode="bilinear"))
    assert other is logits


def test_boxes_are_in_pixels_of_the_picture() -> None:
    view = View((40, 60), (40, 60), (20, 30))
    (found,) = view.restored([{"boxes": torch.tensor([[1.0, 2, 3, 4]])}], (40, 60), [])
    assert found["boxes"].tolist() == [[2, 4, 6, 8]]


def test_masks_and_keypoints_lie_where_the_boxes_do() -> None:
    view = View((40, 60), (40, 60), (20, 30))
    masks = torch.rand(2, 1, 20, 30)
    entry = {
        "boxes": torch.ones(2, 4),
        "masks": masks,
        "keypoints": torch.tensor([[[1.0, 2, 1]], [[3, 4, 0]]]),
    }
    none = {"boxes": torch.ones(0, 4), "masks": masks[:0]}
    found, empty = view.restored([entry, none], (40, 60), [])
    assert torch.equal(found["masks"], F.interpolate(masks, (40, 60), mode="bilinear"))
    assert found["keypoints"].tolist() == [[[2, 4, 1]], [[6, 8, 0]]]
    assert empty["masks"].shape == (0, 1, 40, 60)


@dataclass(frozen=True)
class Out:
    logits: Tensor
    depth: Tensor
    sequence: Tensor
    loss: None = None


def test_maps_get_the_size_that_the_network_gives_them() -> None:
    """Strides round sizes: 20 of 24 pixels at a stride of 8 are 3 cells, as 24 are."""
    view = View((24, 24), (24, 24), (20, 20), "bilinear")
    outputs = Out(torch.rand(2, 5, 2, 2), torch.rand(2, 20, 20), torch.rand(2, 9, 16))
    whole = Out(torch.empty(1, 5, 3, 3), torch.empty(1, 24, 24), torch.empty(1, 12, 16))
    found = view.restored(outputs, (24, 24), whole)
    assert torch.equal(found.logits, F.interpolate(outputs.logits, (3, 3), mode="bilinear"))
    assert found.depth.shape == (2, 24, 24)
    assert found.sequence is outputs.sequence
    same = torch.rand(2, 5, 3, 3)
    assert view.restored(same, (24, 24), whole.logits) is same


def test_it_is_read_back_from_json() -> None:
    view = View.of((40, 60), (20, 30), 0.9)
    assert View.from_dict(json.loads(json.dumps(view.to_dict()))) == view
    for broken in ({"size": [50, 50]}, {"middle": [0, 1]}, {"interpolation": "area"}, {"x": 1}):
        with pytest.raises(ValueError, match=r"^file: "):
            View.from_dict({**view.to_dict(), **broken}, "file")
