"""What stands beside a knob: the same losses as by hand, in the formats that the knob has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.images.view import View
from drowsy.study.knobs import knob_rows, rival_rows, table


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16)


@pytest.fixture
def model(images: Tensor) -> nn.Module:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(8, 4)).eval()
    with torch.no_grad():
        # No class is the answer to everything.
        model[-1].bias -= model(images).mean(0)
    return model


@pytest.fixture
def knob(model: nn.Module, images: Tensor) -> drowsy.Knob:
    return drowsy.tune(model, images, levers="view", batch=4, minutes=0.02, progress=False)


def agreement(awake: Tensor, other: Tensor) -> float:
    return (awake.argmax(1) == other.argmax(1)).float().mean().item()


@pytest.mark.parametrize("number_format", [None, "bfloat16"])
def test_smaller_images_are_also_in_the_format_of_the_fastest_point(
    model: nn.Module, images: Tensor, knob: drowsy.Knob, number_format: str | None
) -> None:
    point = replace(knob.awake, number_format=number_format, latency_ms=1e-6, saving=0.5)
    knob.points = (knob.awake, point)
    rows = rival_rows(knob, model, images, savings=[0.5, 0.75], asleep=[1], seconds=0.2)
    small = "a smaller image"
    formats = {small: torch.float32}
    if number_format is not None:
        formats[f"{small}, bfloat16"] = torch.bfloat16
    kinds = [(kind, f"{size} px") for kind in formats for size in (11, 8)]
    assert [(row["series"], row["setting"]) for row in rows] == [
        *kinds,
        ("the paper's neuron", "1/8 asleep"),
    ]
    with torch.inference_mode():
        awake = model(images)
        for row, (kind, told) in zip(rows, kinds, strict=False):
            size = int(told.split()[0])
            shown = View((16, 16), (16, 16), (size, size))(images).to(formats[kind])
            by_hand = agreement(awake, model.to(formats[kind])(shown).float())
            model.float()
            assert row["agreement"] == pytest.approx(by_hand, abs=1e-6)
            assert row["loss"] == pytest.approx(1 - by_hand, abs=1e-6)
            assert row["latency_ms"] == pytest.approx((1 - row["saved"]) * knob.awake.latency_ms)
    assert [row["series"] for row in knob_rows(knob)] == ["knob"] * 2


class Growing(nn.Module):
    """What it puts out grows with the image; it may hold a tensor that is of the CPU alone."""

    def __init__(self, scale: float | Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale).flatten(1)


@pytest.mark.parametrize(
    ("scale", "sizes"), [(torch.full((1, 3, 1, 1), 1.5), ["14 px", "10 px"]), (1.5, [])]
)
def test_rivals_take_what_tune_takes(
    images: Tensor, scale: float | Tensor, sizes: list[str]
) -> None:
    """A tensor of its own, images of another dtype; not what cannot be held against awake."""
    model, images = Growing(scale).eval(), images.double()
    knob = drowsy.tune(
        model, images, metric="outputs", cost="macs", levers="view", minutes=0.02, progress=False
    )
    rows = rival_rows(knob, model, images, savings=[0.1, 0.5], asleep=[1], seconds=0.1)
    assert [row["setting"] for row in rows] == [*sizes, "1/8 asleep"]


def test_a_knob_tuned_by_a_function_has_rivals_by_it(model: nn.Module, images: Tensor) -> None:
    def closeness(outputs: Tensor, awake: Tensor, targets: object) -> Tensor:
        return 1 - (outputs - awake).abs().mean(1)

    knob = drowsy.tune(
        model, images, metric=closeness, cost="macs", levers="view", minutes=0.02, progress=False
    )
    given = {"savings": [0.5], "asleep": [1], "seconds": 0.1}
    with pytest.raises(ValueError, match="metric: got none"):
        rival_rows(knob, model, images, **given)
    small, _ = rival_rows(knob, model, images, metric=closeness, **given)
    with torch.inference_mode():
        awake, other = model(images), model(View((16, 16), (16, 16), (11, 11))(images))
    loss = (awake - other).abs().mean().item()
    assert small["loss"] == pytest.approx(loss, abs=1e-6)
    rows = knob_rows(knob, images, metric=closeness)
    assert rows[0]["loss"] == 0


def test_what_was_not_measured_has_empty_cells(model: nn.Module, knob: drowsy.Knob) -> None:
    bare = replace(knob.awake, latency_ms=None, loss=None, interval=None)
    knob = drowsy.Knob(model, replace(knob.contents, cost="macs", points=(bare,)))
    lines = table(knob_rows(knob), knob.objective, knob.batch).splitlines()
    assert lines[-1].split() == ["knob", "awake", "100.0"]
