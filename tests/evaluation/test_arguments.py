"""Images, labels, seeds and stores are taken as users hold them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import drowsy

IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([4, 2, 0, 1, 1, 3, 2])


@pytest.fixture
def net() -> drowsy.DrowsyNet:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return drowsy.convert(made.eval(), k=4)


def points(frontier: drowsy.Frontier) -> list[drowsy.OperatingPoint]:
    return frontier.points


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3, **options)


GIVEN: dict[str, Callable[[], tuple[Any, ...]]] = {
    "a list of labels": lambda: (IMAGES, LABELS.tolist()),
    "a tuple of labels": lambda: (IMAGES, tuple(LABELS.tolist())),
    "an array of labels": lambda: (IMAGES, LABELS.numpy()),
    "labels of 8 bits": lambda: (IMAGES, LABELS.to(torch.uint8)),
    "an array of 32 bits": lambda: (IMAGES, LABELS.numpy().astype(np.int32)),
    "a loader": lambda: (loader(),),
    "a loader and a list": lambda: (DataLoader(IMAGES, batch_size=3), LABELS.tolist()),
    "batches": lambda: ([(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:].tolist())],),
    "a data set": lambda: (TensorDataset(IMAGES, LABELS),),
    "a generator": lambda: (iter(loader()),),
}


@pytest.mark.parametrize("given", GIVEN)
def test_every_form_of_images_and_labels_finds_the_same(given: str, net: drowsy.DrowsyNet) -> None:
    expected = drowsy.search(net, IMAGES, LABELS)
    assert expected.objective == "top1"
    assert points(drowsy.search(net, *GIVEN[given]())) == points(expected)


def test_without_labels_a_search_goes_by_agreement(net: drowsy.DrowsyNet) -> None:
    frontier = drowsy.search(net, IMAGES)
    assert frontier.objective == "agreement"
    assert points(frontier) == points(drowsy.search(net, IMAGES, objective="agreement"))
    assert points(drowsy.search(net, DataLoader(IMAGES, batch_size=3))) == points(frontier)
    assert points(drowsy.search(net, IMAGES, racing=True)) == points(frontier)


def test_a_loader_that_shuffles_is_told(net: drowsy.DrowsyNet) -> None:
    with pytest.warns(UserWarning, match="images: the loader shuffles them") as told:
        drowsy.search(net, loader(shuffle=True))
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drowsy.search(net, loader())


@pytest.mark.parametrize(
    "seeds", [np.arange(2), range(2), torch.arange(2), [np.int64(0), np.int64(1)]]
)
def test_seeds_are_integers_of_any_kind(seeds: Any, net: drowsy.DrowsyNet, tmp_path: Path) -> None:
    measurer = drowsy.Measurer(net, IMAGES, seeds=seeds, store=tmp_path / "s.sqlite")
    assert measurer.seeds == (0, 1)
    assert all(type(seed) is int for seed in measurer.seeds)
    point = measurer.measure([(2,)])[(2,)]
    assert drowsy.OperatingPoint.from_dict(point.to_dict()) == point


def test_a_search_takes_a_path_for_a_store(net: drowsy.DrowsyNet, tmp_path: Path) -> None:
    class Never:
        def evaluate(self, *_: object) -> Any:
            raise AssertionError("something was evaluated again")

    path = tmp_path / "points.sqlite"
    first = drowsy.search(net, IMAGES, LABELS, store=path)
    again = drowsy.search(net, IMAGES, LABELS, store=str(path), engine=Never())  # type: ignore[arg-type]
    assert points(again) == points(first)
    # Closed with the search: nothing but the file is left of its journal.
    assert list(tmp_path.iterdir()) == [path]


def test_images_of_a_loader_go_where_the_network_is(cuda_device: torch.device) -> None:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    net = drowsy.convert(made.eval(), k=4).to(cuda_device)
    measurer = drowsy.Measurer(net, loader())
    assert measurer.images.device == net.layers["0"].weight.device


def test_a_loader_is_read_in_its_order(net: drowsy.DrowsyNet) -> None:
    measurer = drowsy.Measurer(net, loader())
    assert torch.equal(measurer.images, IMAGES)
    labels: Tensor | None = measurer.work.labels
    assert labels is not None
    assert torch.equal(labels, LABELS)
