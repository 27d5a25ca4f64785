"""A knob's network is known by what it computes: no other is taken for it, and it always is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.knob import Knob, load
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.witness import TOLERANCE, Witness, fixed_images, sizes_of

IMAGE = (3, 24, 24)
RECIPE = Sleep("ours", source="lattice", grain="position", fill="interpolate")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.act: nn.Module = nn.ReLU6()
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.one(x)))
        return self.head(self.scale * self.two(x).relu().mean((2, 3)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(1)
    return Net().eval()


def saved(model: nn.Module, path: Path, view: View | None = None) -> Path:
    """A knob of one point, or of one on a view too, in a file."""
    net, _ = made(model, torch.rand(1, *IMAGE), RECIPE)
    awake = OperatingPoint(net.schedule, 0, top1=0.9, latency_ms=1.0, loss=0.0, interval=(0, 0))
    seen = replace(awake, view=view, latency_ms=0.5, loss=0.1, top1=0.8)
    points = (awake,) if view is None else (awake, seen)
    contents = Contents(
        weights=fingerprint_state(model.state_dict()),
        witness=Witness.of(model, IMAGE, sizes_of(points)),
        image=IMAGE,
        recipe=RECIPE,
        points=points,
        objective="top1",
        cost="latency",
        batch=4,
        restores=False,
    )
    Knob(model, contents).save(path)
    return path


def other(change: Callable[[Any], object], model: Net) -> Net:
    found = copy.deepcopy(model)
    change(found)
    return found.eval()


OTHERS: dict[str, Callable[[Any], object]] = {
    "activation": lambda m: setattr(m, "act", nn.ReLU()),
    "smooth activation": lambda m: setattr(m, "act", nn.SiLU()),
    "stride": lambda m: setattr(m.one, "stride", (1, 1)),
    "epsilon": lambda m: setattr(m.norm, "eps", 1e-5),
    "padding mode": lambda m: (
        setattr(m.two, "padding_mode", "reflect"),
        setattr(m.two, "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
    ),
    "dilation": lambda m: (setattr(m.two, "dilation", (2, 2)), setattr(m.two, "padding", (2, 2))),
    "forward": lambda m: setattr(m, "forward", lambda x: Net.forward(m, x.flip(1))),
    "a number in the forward": lambda m: setattr(m, "scale", 1.001),
    "what follows the last layer": lambda m: setattr(
        m, "forward", lambda x: Net.forward(m, x).softmax(1)
    ),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_network_with_the_same_weights_is_refused(
    model: Net, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    path = saved(model, tmp_path / "net.drowsy")
    wrong = other(change, model)
    assert fingerprint_state(wrong.state_dict()) == fingerprint_state(model.state_dict())
    with pytest.raises(ValueError, match="another network that has this model's weights"):
        load(path, wrong)


@pytest.mark.filterwarnings("ignore:.*another machine")
def test_the_network_is_known_after_every_move(model: Net, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "net.drowsy")
    for same in (
        copy.deepcopy(model),
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        other(lambda m: [p.requires_grad_(False) for p in m.parameters()], model),
        torch.compile(copy.deepcopy(model), backend="eager"),
    ):
        load(path, same)
    with torch.autocast("cpu", torch.bfloat16):
        load(path, model)


def test_a_model_that_was_wrapped_when_tuned_is_known_alone(model: Net) -> None:
    wrapped = torch.compile(model, backend="eager")
    assert Witness.of(wrapped, IMAGE).contradiction(model, IMAGE) is None


def test_rounding_is_far_below_the_tolerance(model: Net) -> None:
    """As of another machine: all weights a rounding away, and summed in another order."""
    witness = Witness.of(model, IMAGE)
    assert witness.exact
    away = copy.deepcopy(model)
    with torch.no_grad():
        for weight in away.parameters():
            weight.mul_(1 + 0.02 * TOLERANCE)
    assert witness.contradiction(away, IMAGE) is None
    with torch.no_grad():
        away.two.weight.mul_(1 + 10 * TOLERANCE)
    assert witness.contradiction(away, IMAGE) == ("the output of two differs by 0.0001 of its size")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_half_formats_the_same_is_asked(model: Net, dtype: torch.dtype) -> None:
    half = model.to(dtype)
    witness = Witness.of(half, IMAGE)
    assert witness.exact
    assert witness.contradiction(copy.deepcopy(half), IMAGE) is None
    assert witness.contradiction(other(OTHERS["epsilon"], half), IMAGE) is not None


class OneFormat(Net):
    """Takes float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_a_network_of_one_format_is_compared_in_it() -> None:
    torch.manual_seed(1)
    model = OneFormat().eval()
    witness = Witness.of(model, IMAGE)
    assert not witness.exact
    assert witness.contradiction(copy.deepcopy(model), IMAGE) is None
    assert witness.contradiction(other(OTHERS["activation"], model), IMAGE) is not None


class Noisy(Net):
    """Its outputs do not repeat, its layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(5, dtype=x.dtype)


class Making(Net):
    """Puts out what is made of its scores."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(super().forward(x))


def boxes(least: float, factor: float = 1.0) -> Callable[[Tensor], Any]:
    def made(y: Tensor) -> Any:
        kept = [each[each > least].sort(descending=True).values for each in y]
        return [{"scores": factor * e, "labels": torch.ones_like(e).long()} for e in kept]

    return made


MADE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "integers": (lambda y: y.argmax(1), lambda y: y.argmin(1)),
    "maps of integers": (lambda y: (9 * y).round().long(), lambda y: (9 * y).floor().long()),
    "truth values": (lambda y: y > 0, lambda y: y < 0),
    "complex numbers": (lambda y: torch.fft.rfft(y), lambda y: torch.fft.rfft(y).conj()),
    "infinities": (lambda y: y.relu().log(), lambda y: -y.relu().log()),
    "beside infinities": (lambda y: y.relu().log(), lambda y: 1.001 * y.relu().log()),
    "beyond float32": (lambda y: (1e4 * y).exp(), lambda y: (-1e4 * y).exp()),
    "no batch": (lambda y: y[0], lambda y: -y[0]),
    "one number": (lambda y: y.mean(), lambda y: -y.mean()),
    "other boxes": (boxes(-1e9), boxes(0.0)),
    "other scores": (boxes(-1e9), boxes(-1e9, 0.5)),
    "no boxes": (boxes(1e9), boxes(-1e9)),
}


@pytest.mark.parametrize("one", MADE.values(), ids=MADE)
def test_outputs_of_any_form_are_compared(one: tuple[Callable[..., Any], ...]) -> None:
    torch.manual_seed(1)
    model = Making(one[0]).eval()
    witness = Witness.of(model, IMAGE)
    assert witness.exact
    assert witness.contradiction(copy.deepcopy(model), IMAGE) is None
    wrong = other(lambda m: setattr(m, "make", one[1]), model)
    assert witness.contradiction(wrong, IMAGE) is not None
    assert Witness.of(wrong, IMAGE).contradiction(model, IMAGE) is not None


def test_integers_are_not_compared_in_formats_that_round() -> None:
    torch.manual_seed(1)
    model = Making(lambda y: y.argmax(1)).eval()
    model.register_forward_pre_hook(lambda m, x: x[0].float())
    witness = Witness.of(model, IMAGE)
    assert not witness.exact
    wrong = other(lambda m: setattr(m, "make", lambda y: y.argmin(1)), model)
    assert witness.contradiction(wrong, IMAGE) is None


class Pooled(Net):
    """The edge of its pooling shows where sides are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.act = nn.Sequential(nn.ReLU6(), self.pool)


@pytest.mark.filterwarnings("ignore:.*another machine")
def test_what_only_sizes_of_views_bring_out_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Pooled().eval()
    wrong = other(lambda m: setattr(m.pool, "ceil_mode", True), model)
    assert Witness.of(model, IMAGE).contradiction(wrong, IMAGE) is None
    path = saved(model, tmp_path / "net.drowsy", View.of((24, 24), (18, 18)))
    load(path, copy.deepcopy(model))
    with pytest.raises(ValueError, match="at 18 x 18 differs by"):
        load(path, wrong)


def test_a_size_that_the_model_does_not_take_tells_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(968, 4)).eval()
    witness = Witness.of(model, IMAGE, [(18, 18), (24, 24)])
    assert set(witness.found) == {"the output of 0", "output 0"}
    assert witness.contradiction(model, IMAGE, [(18, 18)]) is None


def test_what_does_not_repeat_is_left_out() -> None:
    torch.manual_seed(1)
    model = Noisy().eval()
    witness = Witness.of(model, IMAGE)
    assert set(witness.found) == {"the output of one", "the output of two"}
    assert witness.contradiction(copy.deepcopy(model), IMAGE) is None
    assert witness.contradiction(other(OTHERS["activation"], model), IMAGE) is not None


def test_images_are_the_same_everywhere() -> None:
    images = fixed_images((1, 2, 18))
    assert images.shape == (3, 1, 2, 18)
    # Of the bits of PCG64 streams, which numpy promises to keep.
    expected = [0.27392337, -0.46042657, -0.91805295]
    assert images[0, 0, 0, :3].tolist() == pytest.approx(expected, abs=1e-7)
    assert len(images[2].unique()) == 2
    assert 3.0 < images[2].abs().max() <= 30


def test_nothing_of_the_model_is_changed(model: Net) -> None:
    state = {name: each.clone() for name, each in model.state_dict().items()}
    Witness.of(model, IMAGE)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert not model.one._forward_hooks
