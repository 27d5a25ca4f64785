"""Tuning a small network: what is offered, what is chosen, what resumes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_nvml import FakeClock, FakeRapl
from torch import Tensor, nn

import drowsy
from drowsy.correction.corrected import Corrected
from drowsy.energy import NoMeter
from drowsy.evaluation.metrics import NotFinite
from drowsy.evaluation.store import Store
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.tuning import tune as tuning
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.journal import Journal
from drowsy.tuning.plan import Plan
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.rig import Rig
from drowsy.tuning.workbench import Operation, Workbench

CHECKOUT = Path(__file__).resolve().parents[2]


class Net(nn.Module):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x)).relu()
        return self.head(self.two(x).relu().mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model(images: Tensor) -> nn.Module:
    torch.manual_seed(1)
    model = Net().eval()
    with torch.no_grad():
        # No class is the answer to everything.
        model.head.bias -= model(images).mean(0)
    return model


def tune(*args: Any, **kwargs: Any) -> drowsy.Knob:
    with warnings.catch_warnings():
        # A small budget for a search is told.
        warnings.simplefilter("ignore")
        return drowsy.tune(*args, progress=False, **{"minutes": 0.05, **kwargs})


def test_all_levers_by_multiplications(model: nn.Module, images: Tensor) -> None:
    labels = model(images).argmax(1)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    knob = tune(model, images, labels, cost="macs", batch=4)
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert knob.objective == "top1"
    assert knob.awake.top1 == 1
    assert knob.awake.loss == 0
    savings = [point.saving for point in knob.points]
    assert savings == sorted(savings)
    assert 3 <= len(knob.points) <= 11
    assert savings[-1] > 0.6
    assert set(knob.contents.levers) == {"view", "sleep", "format"}
    assert "saves no multiplications" in knob.contents.levers["format"]
    # Every point has what it was measured with.
    for point in knob.points:
        assert point.interval[0] <= point.loss <= point.interval[1]
        assert point.loss == pytest.approx(knob.awake.top1 - point.top1, abs=1e-6)
        assert point.latency_ms > 0
        knob.set(point)
        assert knob(images[:5]).shape == (5, 4)


def test_a_knob_reports_what_its_points_do(model: nn.Module, images: Tensor) -> None:
    """The report of a point is what the knob itself then does on those images."""
    labels = model(images).argmax(1)
    knob = tune(model, images, labels, cost="macs")
    counts = knob.contents.made["images"]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    report = order[counts["calibration"] + counts["search"] :][: counts["report"]]
    assert sum(counts.values()) <= 64
    for point in knob.points:
        if any(point.schedule.thresholds().values()):
            knob.set(point)
            knob.reseed(0)
            right = knob(images[report]).argmax(1) == labels[report]
            assert right.float().mean().item() == pytest.approx(point.top1, abs=1e-6)


def test_a_task_that_is_guessed_is_tuned_as_the_one_named(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether each answer is right or wrong decides how searches go, however that was found."""
    monkeypatch.setattr(tuning, "_seconds", lambda *_: 2e-4)
    labels = model(images).argmax(1)
    knobs = {m: tune(model, images, labels, cost="macs", metric=m) for m in (
        "auto", "classification"
    )}  # fmt: skip
    guessed, named = knobs["auto"].contents, knobs["classification"].contents
    assert guessed.levers == named.levers
    assert [replace(each, latency_ms=None) for each in guessed.points] == [
        replace(each, latency_ms=None) for each in named.points
    ]
    assert guessed.made["task"].startswith("classification (")
    # Corrections are tried along with recipes: on this network one is of use.
    assert guessed.recipe.correction != "none"


@pytest.mark.parametrize("lever", ["view", "sleep", "format"])
def test_one_lever_alone(model: nn.Module, images: Tensor, lever: str) -> None:
    cost = "latency" if lever == "format" else "macs"
    knob = tune(model, images, levers=[lever], cost=cost)
    assert knob.objective == "agreement"
    for point in knob.points:
        turned = {
            "view": point.view is not None,
            "sleep": any(point.schedule.thresholds().values()),
            "format": point.number_format is not None,
        }
        assert not any(on for name, on in turned.items() if name != lever)
    others = {"view", "sleep", "format"} - {lever}
    assert all(knob.contents.levers[name] == "not asked for" for name in others)


def test_by_latency_no_point_is_slower_than_awake(model: nn.Module, images: Tensor) -> None:
    knob = tune(model, images, levers="auto", batch=2)
    times = [point.latency_ms for point in knob.points]
    assert times == sorted(times, reverse=True)
    assert max(times) <= knob.awake.latency_ms


class Maps(nn.Module):
    """A map a pixel, and a dictionary as its output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.two(self.one(x).relu())}


@pytest.mark.parametrize(
    ("channels", "objective", "labelled"),
    [(5, "miou", True), (5, "agreement", False), (3, "psnr", True)],
)
def test_outputs_that_cover_the_picture(
    images: Tensor, channels: int, objective: str, labelled: bool
) -> None:
    torch.manual_seed(3)
    model = Maps(channels).eval()
    with torch.no_grad():
        maps = model(images)["out"]
    targets = (maps.argmax(1) if objective == "miou" else maps) if labelled else None
    knob = tune(model, images, targets, cost="macs")
    assert knob.contents.restores
    views = [point.view for point in knob.points if point.view is not None]
    # Never a part of it.
    assert all(view.covers for view in views)
    for point in knob.points:
        knob.set(point)
        assert knob(images[:2])["out"].shape == (2, channels, 24, 24)
    if not labelled:
        assert knob.objective in ("agreement", "miou")
    else:
        assert knob.objective == objective


@dataclass
class Out:
    logits: Tensor
    loss: None = None


class Cells(nn.Module):
    """A map of cells of 8 pixels, as an object's attribute: strides round its size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(8 if n else 3, 8, 3, stride=2, padding=1) for n in range(3))
        )
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Out:
        return Out(self.head(self.layers(x).relu()))


def test_maps_smaller_than_the_picture_are_as_awake_at_every_point() -> None:
    torch.manual_seed(3)
    model = Cells().eval()
    images = torch.randn(40, 3, 29, 37, generator=torch.Generator().manual_seed(2))
    knob = tune(model, images, cost="macs")
    assert knob.contents.restores
    assert any(point.view for point in knob.contents.points)
    counts = knob.contents.made["images"]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    report = order[counts["calibration"] + counts["search"] :][: counts["report"]]
    with torch.no_grad():
        awake = model(images[report]).logits
    for point in knob.contents.points:
        knob.set(point)
        knob.reseed(0)
        found = knob(images[report]).logits
        assert found.shape == awake.shape == (len(report), 5, 4, 5)
        agreement = (found.argmax(1) == awake.argmax(1)).float().mean().item()
        assert agreement == pytest.approx(point.agreement, abs=1e-6)
        # Sizes that are looked up on the way take no place of an image's.
        assert knob(images[:2, :, :21, :28]).logits.shape == (2, 5, 3, 4)
        assert knob._machine.nets[point.number_format].control.clock[1] == len(report) + 2


def test_a_metric_is_given_outputs_in_the_dtype_of_the_images(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faster(rig: Rig, operation: Operation) -> float:
        return 0.5 if operation.number_format else 1.0

    # As where formats are worth having.
    monkeypatch.setattr(Rig, "measured", faster)

    def near(outputs: Tensor, awake: Tensor, targets: Any) -> np.ndarray:
        return -np.square(outputs.numpy() - awake.numpy()).mean(1)

    knob = tune(model, images, metric=near, levers="format", cost="latency")
    assert {point.number_format for point in knob.contents.points} == {None, "bfloat16"}


def test_any_metric(model: nn.Module, images: Tensor) -> None:
    def sure(outputs: Tensor, awake: Tensor, targets: Any) -> np.ndarray:
        return -(outputs - awake).square().mean(1).numpy()

    knob = tune(model, images, metric=sure, cost="macs")
    assert knob.objective == "score"
    assert knob.awake.figure("score") == 0
    assert all(point.figure("score") <= 0 for point in knob.points)


def report_of(knob: drowsy.Knob, count: int) -> Tensor:
    """Places of the images that points were reported on."""
    counts = knob.contents.made["images"]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[counts["calibration"] + counts["search"] :][: counts["report"]]


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
)
def test_images_of_another_dtype_than_the_model(
    model: nn.Module, images: Tensor, own: torch.dtype, given: torch.dtype
) -> None:
    model, images = model.to(own), images.to(given)
    knob = tune(model, images, cost="macs")
    report = report_of(knob, 64)
    with torch.no_grad():
        awake = model(images[report].to(own)).argmax(1)
    assert any(point.view for point in knob.contents.points)
    for point in knob.contents.points:
        knob.set(point)
        knob.reseed(0)
        found = knob(images[report])
        assert found.dtype == given
        # A tie in half precision is rounded by the batch.
        agreement = (found.argmax(1) == awake).float().mean().item()
        assert agreement == pytest.approx(point.agreement, abs=1e-6)


def test_a_store_tells_images_of_one_dtype_from_the_same_in_another(
    model: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """Outputs are compared in the dtype of the images, so that results are others."""
    rounded = images.bfloat16()

    def quality(images: Tensor, store: Path | None) -> float:
        conditions = Conditions(store=None if store is None else Store(store))
        bench = Workbench(model, images, None, {"search": range(64)}, conditions)
        net = bench.net(Sleep("paper"))
        return bench.quality(Operation(net, View.whole(bench.full), (4, 4), 0.5))

    store = tmp_path / "points.sqlite"
    wide = quality(rounded.float(), store)
    assert quality(rounded, store) == quality(rounded, None) != wide


class Branching(nn.Module):
    """A network that tracing cannot take, and the meta device neither."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x if x.mean() > 1e9 else 2 * x)


def test_a_network_that_cannot_be_traced(model: nn.Module, images: Tensor) -> None:
    model = Branching(model).eval()
    knob = tune(model, images, cost="macs")
    report = report_of(knob, 64)
    with torch.no_grad():
        awake = model(images[report]).argmax(1)
    assert any(point.view for point in knob.contents.points)
    for point in knob.contents.points:
        knob.set(point)
        knob.reseed(0)
        agreement = (knob(images[report]).argmax(1) == awake).float().mean().item()
        assert agreement == pytest.approx(point.agreement, abs=1e-6)


def test_images_that_the_time_leaves_out_are_told(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.cat([images, images, images])
    made = tune(model, images, cost="macs", levers="view")
    assert made.contents.made["given"] == 192
    assert "images" not in made.contents.levers
    # As of a network for whose images the time allows no more than the fewest.
    monkeypatch.setattr(tuning, "_seconds", lambda model, images: 1.0)
    made = tune(model, images, cost="macs", levers="view")
    assert made.contents.made["images"] == {"calibration": 24, "search": 50, "report": 50}
    assert "\nimages: 124 of 192 used, as 0.05 min allow no more" in str(made)
    # What was not asked for is not left out.
    splits = {"calibration": range(8), "search": range(8, 16), "report": range(16, 24)}
    made = tune(model, images, cost="macs", levers="view", splits=splits)
    assert "images" not in made.contents.levers


def test_stages_are_told_in_lines_where_there_is_no_terminal(
    model: nn.Module, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"cost": "macs", "levers": ["view", "sleep"], "minutes": 0.05}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drowsy.tune(model, images, **given)  # type: ignore[call-overload]
        assert capsys.readouterr().err == ""
        drowsy.tune(model, images, progress=True, **given)  # type: ignore[call-overload]
    lines = capsys.readouterr().err.splitlines()
    stages = ["preparing", "view", "sleep", "choosing", "reporting", "measuring"]
    assert [re.sub(r"^\d+\.\d of 0\.05 min: ", "", line) for line in lines] == stages


def test_a_meter_that_stops_is_no_reason_to_leave_a_format_out(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(rig: Rig, operation: Operation) -> float:
        if operation.number_format:
            raise NoMeter("cpu:package-0 metered no energy in 5 s")
        return 1.0

    monkeypatch.setattr(Rig, "measured", measured)
    with pytest.raises(NoMeter, match="metered no energy"):
        tune(model, images, levers="format")


def test_formats_are_told_of_what_they_cost(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rig, "measured", lambda rig, each: 0.55 if each.number_format else 1.0)
    told = tune(model, images, levers="format").contents.levers["format"]
    # What the points then take, machines differ in: it may add that none is worth having.
    assert told.split("; ")[0] == "bfloat16 takes 0.55 of the time of the network's own format"


def test_a_lever_that_was_tried_in_vain_says_so(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tune(model, images, cost="macs")
    assert not any("none kept" in told for told in kept.contents.levers.values())
    monkeypatch.setattr(tuning, "_choose", lambda rig, operations: operations[:1])
    told = tune(model, images, cost="macs").contents.levers
    assert {name for name, each in told.items() if "none kept" in each} == {"view", "sleep"}


def test_a_lever_all_of_whose_points_are_beaten_on_the_report_images_says_so(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = tuning._point

    def beaten(bench: Workbench, operation: Operation) -> OperatingPoint:
        found = point(bench, operation)
        return found if operation.view.is_whole else replace(found, saving=0.0, agreement=0.0)

    monkeypatch.setattr(tuning, "_point", beaten)
    knob = tune(model, images, cost="macs", levers=["view"])
    assert len(knob.points) < len(knob.contents.points)
    assert knob.contents.levers["view"].endswith("; none worth having when tuned")


class Spread(nn.Module):
    """Tells the deviation of its last map too, which a single place has none of."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(8 if n else 3, 8, 3, stride=2, padding=1) for n in range(4)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return self.head(torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], 1))


def small(outputs: Tensor, awake: Tensor, targets: Any) -> Tensor:
    return -outputs.square().mean(1)


@pytest.mark.parametrize("metric", ["classification", "outputs", small])
def test_sizes_at_which_the_network_puts_out_nan_are_left_out(images: Tensor, metric: Any) -> None:
    torch.manual_seed(1)
    knob = tune(Spread().eval(), images, cost="macs", levers="view", metric=metric)
    assert re.search(r"; \d+ more left out: the network puts out NaN", knob.contents.levers["view"])
    sizes = [point.view.size for point in knob.contents.points if point.view]
    # Of 16 pixels or fewer the last map has one place.
    assert sizes
    assert min(min(size) for size in sizes) > 16


def test_a_network_of_nan_at_every_size_has_no_views(model: nn.Module, images: Tensor) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.0 if x.shape[-1] == 24 else float("nan"))

    knob = tune(nn.Sequential(Picky(), model).eval(), images, cost="macs", levers="view")
    assert knob.contents.levers["view"] == "left out: the network puts out NaN or infinity then"


def test_a_format_in_which_the_network_puts_out_nan_is_left_out(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fine(nn.Module):
        """Its numbers need more digits than bfloat16 has."""

        def forward(self, x: Tensor) -> Tensor:
            return x + (torch.ones_like(x) + 1e-3 - 1).log()

    model = nn.Sequential(Fine(), model).eval()
    monkeypatch.setattr(Rig, "measured", lambda rig, each: 0.55 if each.number_format else 1.0)
    knob = tune(model, images, levers="format", cost="latency")
    assert knob.contents.levers["format"] == (
        "bfloat16 takes 0.55 of the time of the network's own format, and is left out: the network "
        "puts out NaN or infinity then"
    )
    assert len(knob.contents.points) == 1


def test_sleep_that_puts_out_nan_is_left_out(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise NotFinite("divergence: got nan")

    monkeypatch.setattr("drowsy.tuning.levers.asleep", lost)
    knob = tune(model, images, cost="macs", levers="sleep")
    assert knob.contents.levers["sleep"].startswith("left out: no setting saves enough, or the")


def test_what_has_no_figures_on_the_report_images_is_no_point(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        Workbench, "is_finite", lambda self, each, split="search": split != "report"
    )
    knob = tune(model, images, cost="macs")
    assert len(knob.contents.points) == 1
    assert all("none kept" in knob.contents.levers[name] for name in ("view", "sleep"))
    knob.save(tmp_path / "knob.drowsy")
    drowsy.load(tmp_path / "knob.drowsy", model)


@dataclass(frozen=True)
class Offered:
    """As much of an operation as a choice asks for, with its quality image by image."""

    view: View
    saving: float
    values: np.ndarray = field(compare=False)
    setting: tuple[int, ...] = (0,)
    number_format: str | None = None


def noisy(quality: float, seed: int) -> np.ndarray:
    """Of 100 images, .03 of error in the mean, whatever it is by the seed."""
    drawn = np.random.default_rng(seed).permutation([0.3, -0.3] * 50)
    return quality + drawn


def choice(*offered: Any) -> list[Any]:
    """What is chosen of these, besides awake, whose quality is .8."""
    rig: Any = SimpleNamespace(
        workbench=SimpleNamespace(qualities=lambda each: each.values),
        spent=lambda each: 1 - each.saving,
    )
    awake: Any = Offered(View.whole((32, 32)), 0.0, np.full(100, 0.8))
    first, *others = tuning._choose(rig, [awake, *offered])
    assert first is awake
    return others


def test_of_losses_that_look_alike_the_surer_one_is_chosen() -> None:
    """A gain on few images is chance: what changes few answers is surer to lose little."""
    whole, tight = View.whole((32, 32)), View.of((32, 32), (24, 24), 0.8)
    noise = np.array([0.3, -0.3] * 50)

    # With an error of .03, of a gain by .01 a loss of .019 is expected, of a loss by .1 just that.
    lucky = Offered(tight, 0.25, 0.81 + noise)
    surer = Offered(whole, 0.26, np.full(100, 0.785), (1,))
    worse = Offered(whole, 0.5, np.full(100, 0.7), (2,))
    better = Offered(tight, 0.51, 0.72 + noise, (1,))
    assert choice(lucky, surer, worse, better) == [surer, better]


def test_more_of_the_same_is_no_better() -> None:
    """What looks as if more sleep, or fewer pixels of one part, lost less is chance."""
    whole, part = View.whole((32, 32)), View.of((32, 32), (28, 28))
    some = Offered(whole, 0.25, noisy(0.6, 1), (1,))
    more = Offered(whole, 0.4, noisy(0.62, 2), (2,))
    assert choice(some, more) == [some, more]
    # Taken for their mean, .19, they are better than this; as it is the first was not.
    view = Offered(part, 0.3, noisy(0.605, 3))
    assert choice(some, more, view) == [some, more]
    # And the other way round.
    fewer = Offered(View.of((32, 32), (24, 24)), 0.45, noisy(0.61, 4))
    sleep = Offered(whole, 0.3, noisy(0.6055, 1), (1,))
    assert choice(sleep, view, fewer) == [view, fewer]
    # Another part of the picture, another view that is slept on, another format are other kinds.
    middle = Offered(View.of((32, 32), (20, 20), 0.7), 0.5, noisy(0.615, 5))
    asleep = Offered(View.of((32, 32), (20, 20)), 0.5, noisy(0.615, 5), (1,))
    turned = Offered(whole, 0.5, noisy(0.615, 5), (3,), "bfloat16")
    for other in (middle, asleep, turned):
        assert choice(some, view, other) == [view, other]
    # What is clear stays as it is, and makes nothing else worse.
    bad = Offered(whole, 0.2, noisy(0.2, 6), (1,))
    assert choice(bad, some, more) == [some, more]


def test_what_saves_less_stays_until_it_is_worse_by_a_standard_error() -> None:
    whole, tight = View.of((32, 32), (28, 28)), View.of((32, 32), (20, 20), 0.8)
    # Their difference has an error of .042.
    bolder = Offered(tight, 0.6, noisy(0.7, 1))
    as_likely = Offered(whole, 0.3, noisy(0.67, 2))
    assert choice(as_likely, bolder) == [as_likely, bolder]
    assert choice(Offered(whole, 0.3, noisy(0.62, 2)), bolder) == [bolder]
    # Of one step there is one.
    less = Offered(View.of((32, 32), (28, 28), 0.7), 0.26, noisy(0.66, 3))
    assert choice(as_likely, less, bolder) == [as_likely, bolder]
    # Of two that are as good, the one that saves less, wherever it stands.
    twin = replace(as_likely, saving=0.26, view=less.view)
    assert choice(as_likely, twin, bolder) == choice(twin, as_likely, bolder) == [twin, bolder]


def test_weights_are_reconstructed_from_mirrored_images(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, set[int]] = {}

    def spied(images: Tensor, reconstruct: bool = False, **given: Any) -> Corrected:
        seen.setdefault(reconstruct, set()).add(len(images))
        return Corrected(images, reconstruct, **given)

    monkeypatch.setattr("drowsy.tuning.workbench.Corrected", spied)
    knob = tune(model, images, cost="macs", levers="sleep")
    count = knob.contents.made["images"]["calibration"]
    assert seen[True] == {2 * count}
    assert seen[False] <= {count, min(24, 2 * count)}


def test_six_images_are_enough(model: nn.Module, images: Tensor) -> None:
    knob = tune(model, images[:6], cost="macs", levers="sleep")
    assert knob.contents.made["images"]["calibration"] == 1
    assert "reconstruct" not in knob.contents.levers["sleep"]


def test_a_plan_fits_what_there_is() -> None:
    plan = Plan.of(1300, 0.04, 10)
    assert plan.calibration == 128
    assert plan.search == plan.report
    assert sum(map(len, plan.splits.values())) <= 1300
    assert Plan.of(1300, 0.04, 1).search < plan.search
    assert Plan.of(6, 10, 1).splits == {
        "calibration": range(1), "search": range(1, 3), "report": range(3, 5)
    }  # fmt: skip
    # 240 s: of 64 images each, which share work where nothing is corrected; else of a calibration
    # on 24 too, asleep and awake, or on twice as many as are measured on, half as long again.
    assert plan.settings("none", 64) == int(240 / (0.04 * 0.6 * 64))
    assert plan.settings("affine", 64) == int(240 / (0.04 * 1.5 * (64 + 2 * 24)))
    assert plan.settings("affine", 5) == int(240 / (0.04 * 1.5 * (5 + 2 * 10)))
    # What was spent on compiling is not left.
    assert plan.settings("none", 64, 60.0) == int(180 / (0.04 * 0.6 * 64))
    assert plan.settings("none", 64, 300.0) == 0


def test_what_first_calls_take_longer_is_counted_once(
    model: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    splits = {"calibration": range(8), "search": range(8, 16), "report": range(16, 24)}
    workbench = Workbench(model, images, None, splits, Conditions())
    operation = workbench.awake_at(View.whole(workbench.full))
    slow = [0.3]
    operation.net.register_forward_pre_hook(lambda *_: time.sleep(slow.pop()) if slow else None)
    journal = tmp_path / "journal"
    rig = Rig(model, workbench, "latency", 4, Journal(journal, {}))
    took = rig.measured(operation)
    assert 0.25 < rig.compiling < 2
    assert rig.measured(operation) == took
    # A run that goes on counts the same, and decides alike.
    again = Rig(model, workbench, "latency", 4, Journal(journal, {}))
    assert again.measured(operation) == took
    assert again.compiling == rig.compiling


def test_what_is_hopelessly_slow_is_timed_by_few_calls(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"calibration": range(8), "search": range(8, 16), "report": range(16, 24)}
    workbench = Workbench(model, images, None, splits, Conditions())
    operation = workbench.awake_at(View.whole(workbench.full))
    calls: list[None] = []

    def slow(*_: Any) -> None:
        calls.append(None)
        time.sleep(0.2)

    handle = operation.net.register_forward_pre_hook(slow)
    assert Rig(model, workbench, "latency", 4, Journal(None, {})).measured(operation) > 4
    assert len(calls) == 2
    handle.remove()
    assert 0.2 < Rig(model, workbench, "latency", 4, Journal(None, {})).measured(operation) < 4


def test_joules_are_a_ratio_and_without_them_there_is_none(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    splits = {"calibration": range(8), "search": range(8, 16), "report": range(16, 24)}
    workbench = Workbench(model, images, None, splits, Conditions())
    operation = workbench.awake_at(View.whole(workbench.full))
    clock = FakeClock()
    clock.install(monkeypatch)
    tree = FakeRapl(tmp_path, clock).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 20.0)
    for network, seconds in ((model, 0.5), (operation.net, 0.2)):
        network.register_forward_pre_hook(lambda *_, seconds=seconds: clock.advance(seconds))
    rig = Rig(model, workbench, "joules", 4, Journal(None, {}))
    assert rig.measured(operation) == pytest.approx(0.4, rel=0.01)
    tree.watts["intel-rapl:0"] = 0.0
    still = Rig(model, workbench, "joules", 4, Journal(None, {}))
    with pytest.raises(drowsy.energy.NoMeter, match="counter did not advance"):
        still.measured(operation)


@pytest.fixture
def nothing_meters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("drowsy.sensors.rapl.RAPL", tmp_path / "none")


@pytest.mark.usefixtures("nothing_meters")
def test_bad_arguments_are_named(model: nn.Module, images: Tensor) -> None:
    sliced = {"calibration": range(8), "search": slice(8, 16), "report": range(16, 24)}
    for error, match, kwargs in (
        (ValueError, "levers: got 'views'", {"levers": "views"}),
        (ValueError, "levers: got None, allowed: auto", {"levers": None}),
        (TypeError, "splits: got list, allowed", {"splits": [range(9)]}),
        (TypeError, "search: got slice, allowed: a range", {"splits": sliced}),
        (ValueError, "cost: got 'time'", {"cost": "time"}),
        (ValueError, "minutes: got 0", {"minutes": 0}),
        (TypeError, "batch: got 1.5", {"batch": 1.5}),
        (ValueError, "batch: got 1048577, allowed: 1 to 1048576", {"batch": 1048577}),
        (ValueError, "metric: got 'f2'", {"metric": "f2"}),
        (TypeError, "seeds: got 3", {"seeds": 3}),
        (TypeError, "store: got 3, allowed: a path", {"store": 3}),
        (ValueError, "store /proc/knob: cannot be opened", {"store": "/proc/knob"}),
        (ValueError, "it is a folder", {"store": "/tmp"}),
        (drowsy.energy.NoMeter, "RAPL", {"cost": "joules"}),
    ):
        with pytest.raises(error, match=match):
            drowsy.tune(model, images, progress=False, **kwargs)
    with pytest.raises(ValueError, match="images: got 5, allowed: 6 or more"):
        drowsy.tune(model, images[:5], progress=False)
    with pytest.raises(ValueError, match="training mode"):
        drowsy.tune(Net(), images, progress=False)


@pytest.mark.usefixtures("nothing_meters")
def test_bad_arguments_are_told_before_any_work(images: Tensor) -> None:
    """As a model that nothing can be done with."""

    class Idle(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it ran")

    for kwargs in ({"cost": "time"}, {"seeds": []}, {"cost": "joules"}, {"store": 3}):
        with pytest.raises((ValueError, TypeError, drowsy.energy.NoMeter)):
            drowsy.tune(Idle().eval(), images, progress=False, **kwargs)  # type: ignore[arg-type]


def test_a_store_in_memory_leaves_no_file(
    model: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune(model, images, cost="macs", levers="view", store=":memory:")
    assert not list(tmp_path.iterdir())


def test_arrays_are_taken(model: nn.Module, images: Tensor) -> None:
    labels = model(images).argmax(1)
    knob = tune(model, images.numpy(), labels.numpy(), cost="macs", levers="view")
    assert knob.awake.top1 == 1
    same = tune(model, images, labels, cost="macs", levers="view")
    assert [point.top1 for point in knob.points] == [point.top1 for point in same.points]
    # Big-endian numbers and any strides, too.
    turned = np.ascontiguousarray(images.numpy()[..., ::-1]).astype(">f8")[..., ::-1]
    rows = knob.evaluate(turned, labels.numpy())
    assert rows[0]["top1"] == 1
    with pytest.raises(TypeError, match="images: got an array of uint8, allowed: floating-point"):
        tune(model, np.zeros((8, 3, 24, 24), np.uint8))


def test_wrong_labels_sell_nothing(model: nn.Module, images: Tensor) -> None:
    images = torch.cat([images, images.flip(3)])
    labels = (model(images).argmax(1) + 1) % 4
    with pytest.raises(ValueError, match="labels: awake the network is right in 0 of"):
        tune(model, images, labels, cost="macs")
    knob = tune(model, images, (labels - 1) % 4, cost="macs", levers="view")
    with pytest.raises(ValueError, match=f"right in 0 of {len(images)} images"):
        knob.evaluate(images, labels)


SCRIPT = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import torch
import drowsy
from tests.tuning.test_tune import Net
torch.manual_seed(1)
model = Net().eval()
images = torch.rand(48, 3, 24, 24, generator=torch.Generator().manual_seed(2))
knob = drowsy.tune(model, images, cost="macs", minutes=0.05, store=sys.argv[2], progress=False)
print([(p.schedule.thresholds(), str(p.view), p.saving, p.loss, p.interval) for p in knob.points])
print(sorted(knob.contents.calibrations[None].points) if knob.contents.calibrations else None)
"""


def test_killed_anywhere_it_ends_with_the_same_knob(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    paths = (CHECKOUT, CHECKOUT / "kernels", CHECKOUT / "tests")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def start(store: str) -> subprocess.Popen[str]:
        line = [sys.executable, str(script), str(CHECKOUT), str(tmp_path / store)]
        return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True)

    whole = start("whole.sqlite")
    expected, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0
    journal = Path(f"{tmp_path / 'whole.sqlite'}.journal")
    # The same machine: what the first one timed decides how many images are used.
    (tmp_path / "killed.sqlite.journal").write_bytes(journal.read_bytes())
    for after in (3.0, 4.0, 5.0):
        process = start("killed.sqlite")
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    last = start("killed.sqlite")
    found, _ = last.communicate(timeout=300)
    assert (last.returncode, found) == (0, expected)


class Averaging(Net):
    """Whose code writes to a buffer that is in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return super().forward(x)


def test_the_model_stays_as_it_was(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Averaging().eval()
    knob = tune(model, images, cost="macs", levers="view")
    assert model.seen == 0
    knob.save(tmp_path / "knob.drowsy")
    drowsy.load(tmp_path / "knob.drowsy", model)
