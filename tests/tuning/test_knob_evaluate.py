"""Whether a knob holds on other images, point by point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.evaluation.intervals import paired
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.evaluate import table
from drowsy.tuning.knob import Knob
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.witness import Witness

RECIPE = Sleep("ours", source="lattice", grain="position", fill="interpolate")
FULL = (24, 24)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu().amax((2, 3)))


class Maps(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(30, 3, *FULL)


def knob_of(model: nn.Module, objective: str = "top1", **more: Any) -> Knob:
    """A knob of three points that were sold with losses of 0 to .1, and of .4 to .6."""
    net, _ = made(model, torch.rand(1, 3, *FULL), RECIPE)
    awake = net.schedule_of((0, 0))
    net.set(0.5)
    small = View.of(FULL, (16, 16), 0.8 if objective == "top1" else 1.0)

    def point(saving: float, ms: float, loss: float, ends: tuple[float, float], **kind: Any) -> Any:
        figures = {objective: 0.9 - loss}
        schedule = kind.pop("schedule", awake)
        sold = OperatingPoint(schedule, saving, latency_ms=ms, loss=loss, interval=ends, **kind)
        return sold.with_figures(figures)

    contents = Contents(
        weights=fingerprint_state(model.state_dict()),
        witness=Witness.of(model, (3, *FULL)),
        image=(3, *FULL),
        recipe=RECIPE,
        points=(
            point(0, 10, 0, (0, 0)),
            point(0.4, 5, 0.05, (0.0, 0.1), schedule=net.schedule),
            point(0.5, 4, 0.5, (0.4, 0.6), view=small),
        ),
        objective=objective,
        cost="latency",
        batch=4,
        restores=objective != "top1",
        made={"task": "classification (outputs [N, 5])", "labelled": True, **more},
    )
    return Knob(model, contents)


def test_losses_are_those_of_the_same_images_counted_by_hand(images: Tensor) -> None:
    model = Net().eval()
    knob = knob_of(model)
    with torch.inference_mode():
        labels = model(images).argmax(1).clone()
        labels[::3] = (labels[::3] + 1) % 5
    rows = knob.evaluate(images, labels, batch=8)
    assert [row["setting"] for row in rows] == [knob.describe(point) for point in knob.points]
    right = []
    for point in knob.points:
        knob.set(point)
        found = []
        for start in range(0, len(images), 8):
            knob.reseed(0, start)
            found.append(knob(images[start : start + 8]).argmax(1))
        right.append((torch.cat(found) == labels).double().numpy())
    for row, own in zip(rows, right, strict=True):
        loss = paired(right[0], own)
        assert row["top1"] == pytest.approx(own.mean())
        assert (row["loss"], row["loss_low"], row["loss_high"]) == pytest.approx(tuple(loss))
        assert row["objective"] == "top1"
    assert rows[0]["loss"] == 0
    assert rows[0]["holds"]
    assert rows[0]["surely"]
    assert rows[0]["agreement"] == 1
    # The point in force stays, and the batch does not matter.
    assert knob.point is knob.points[-1]
    again = knob.evaluate(images, labels, batch=30)
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


def test_a_point_holds_while_its_loss_is_within_what_it_was_sold_with(images: Tensor) -> None:
    model = Net().eval()
    with torch.inference_mode():
        labels = model(images).argmax(1)
    rows = knob_of(model).evaluate(images, labels)
    for row in rows[1:]:
        assert row["holds"] == (row["loss"] <= row["sold_high"])
        apart = row["loss_low"] > row["sold_high"] or row["loss_high"] <= row["sold_high"]
        assert row["surely"] == apart
    assert [row["sold_high"] for row in rows] == [0, 0.1, 0.6]
    told = table(rows, "top1").splitlines()
    assert told[0].split("  ")[0] == "setting"
    assert told[2].endswith("yes")
    kinds = {"yes", "yes, as far as this can tell", "no", "no, or by chance"}
    assert {line.rpartition("  ")[2] for line in told[2:]} <= kinds
    # A loss of all cannot hold by chance.
    worst = knob_of(model)
    points = [replace(p, interval=(-1.0, -0.9)) for p in worst.contents.points]
    worst = Knob(model, replace(worst.contents, points=tuple(points)))
    assert all(not row["holds"] and row["surely"] for row in worst.evaluate(images, labels))
    assert table(worst.evaluate(images, labels), "top1").splitlines()[2].endswith("  no")


def test_without_the_labels_that_it_was_tuned_with_nothing_is_said_of_holding(
    images: Tensor,
) -> None:
    model = Net().eval()
    rows = knob_of(model).evaluate(images)
    assert {row["objective"] for row in rows} == {"agreement"}
    assert {row["holds"] for row in rows} == {None}
    assert rows[1]["loss"] == pytest.approx(1 - rows[1]["agreement"])
    assert "agreement" in table(rows, "agreement")


def test_agreement_is_the_same_with_labels_and_without(images: Tensor) -> None:
    model = Net().eval()
    knob = knob_of(model, "agreement", labelled=False)
    alone = knob.evaluate(images)
    beside = knob.evaluate(images, torch.zeros(30, dtype=torch.long))
    assert {row["objective"] for row in (*alone, *beside)} == {"agreement"}
    assert [row["loss"] for row in alone] == [row["loss"] for row in beside]
    assert all(row["holds"] is not None for row in beside)
    assert "top1" in beside[0]
    assert "top1" not in alone[0]


def test_maps_on_fewer_pixels_are_compared_at_full_size(images: Tensor) -> None:
    knob = knob_of(Maps().eval(), "miou", task="segmentation", labelled=False)
    rows = knob.evaluate(images)
    assert rows[0]["miou"] == 1
    small = rows[-1]
    assert small["setting"] == "16 px"
    assert 0 < small["miou"] < 1
    # Against maps that labels tell, it is another thing.
    guesses = torch.randint(0, 8, (30, *FULL))
    with pytest.raises(ValueError, match="of the pixels of 30 images, and with the maps of other"):
        knob.evaluate(images, guesses)
    labels = torch.where(guesses < 4, guesses, knob(images).argmax(1))
    assert {row["holds"] for row in knob.evaluate(images, labels)} == {None}


def test_a_knob_that_a_function_tuned_asks_for_it(images: Tensor) -> None:
    knob = knob_of(Net().eval(), "score", task="custom", labelled=False)
    with pytest.raises(ValueError, match="metric: got none, and the knob was tuned by custom"):
        knob.evaluate(images)

    def nearness(outputs: Any, awake: Any, targets: Any) -> np.ndarray:
        return -(outputs - awake).abs().amax(1).numpy()

    rows = knob.evaluate(images, metric=nearness)
    assert rows[0]["score"] == 0
    assert rows[1]["loss"] > 0
    assert rows[1]["holds"] == (rows[1]["loss"] <= 0.1)


def test_bad_input_is_refused(images: Tensor) -> None:
    knob = knob_of(Net().eval())
    with pytest.raises(ValueError, match="labels"):
        knob.evaluate(images, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="batch: got 0"):
        knob.evaluate(images, batch=0)
    with pytest.raises(ValueError, match="images"):
        knob.evaluate(images[0])
