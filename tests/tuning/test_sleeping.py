"""What sleeps to reach a saving: rates that reach it, and searches that few images judge."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drowsy.correction.calibrate import calibrate
from drowsy.correction.layerwise import chunk_size
from drowsy.evaluation.restoration import restoration
from drowsy.images.view import View
from drowsy.tuning import levers
from drowsy.tuning import tune as tuning
from drowsy.tuning.clock import Clock
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.journal import Journal
from drowsy.tuning.levers import Offers, offer_sleep
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.sleeping import asleep
from drowsy.tuning.workbench import Operation, Workbench

SEARCHED = Sleep("searched", source="lattice", grain="position")
UNIFORM = replace(SEARCHED, rates="uniform")
CLOCK = Clock(10, Journal(None, {}), "a run")


class Restores(nn.Module):
    """Puts out a picture; its first convolution has too few multiplications to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Conv2d(3, 3, 1, groups=3)
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 32, 3, padding=1)
        self.three = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.shift(x)).relu()
        return self.three(self.two(y).relu())


@pytest.fixture
def workbench() -> Workbench:
    torch.manual_seed(0)
    images = torch.rand(14, 3, 16, 16)
    model = Restores().eval()
    splits = {"calibration": range(2), "search": range(2, 12), "report": range(12, 14)}
    with torch.inference_mode():
        targets = model(images) + 0.01
    return Workbench(model, images, targets, splits, Conditions(seeds=(0,)), task=restoration(1))


def whole(workbench: Workbench) -> View:
    return View.whole(workbench.full)


def test_one_layer_makes_up_for_those_that_rest(workbench: Workbench) -> None:
    operation = asleep(UNIFORM, workbench, whole(workbench), 0.25)
    assert operation is not None
    net = operation.net
    rates = dict(zip(net.layers, operation.setting, strict=True))
    assert set(net.resting) == {"shift"}
    # 9 x 3 x 16, 9 x 16 x 32 and 9 x 32 x 3 multiplications a position, and 3 that do not sleep:
    # the first is the smallest that saves those by one step.
    assert rates == {"shift": 0, "one": 3, "two": 2, "three": 2}
    work = {"one": 432, "two": 4608, "three": 864}
    saved = sum(rates[name] * each for name, each in work.items()) / 8 / (3 + sum(work.values()))
    assert operation.saving == pytest.approx(saved)
    assert 0.25 <= operation.saving < 0.26


def test_it_is_the_layer_that_harms_least_alone_where_that_is_known(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No gain, so that it is one rate for all layers.
    monkeypatch.setattr(workbench, "qualities", lambda operation: np.zeros(10))
    # At their highest rates the second layer does least; the last setting is of no layer alone.
    workbench._searched[replace(SEARCHED, name="")] = {
        (0, 4, 0, 0): 0.3, (0, 0, 4, 0): 0.1, (0, 0, 7, 0): 0.2, (0, 0, 0, 4): 0.4,
        (0, 1, 1, 1): 0.0,
    }  # fmt: skip
    operation = asleep(SEARCHED, workbench, whole(workbench), 0.25)
    assert operation is not None
    assert operation.setting == (0, 2, 3, 2)


def test_a_rate_that_one_layer_cannot_reach_is_the_next_one(workbench: Workbench) -> None:
    operation = asleep(UNIFORM, workbench, whole(workbench), 0.37)
    assert operation is not None
    assert operation.setting == (0, 3, 3, 3)


@pytest.mark.parametrize(
    ("gains", "best"),
    [
        # Better on each of the five images that the search did not go by.
        ([-9.0] * 5 + [0.2, 0.3, 0.2, 0.3, 0.2], "searched"),
        # Better by more than a standard error, though not on every image.
        ([-9.0] * 5 + [-0.2, 0.0, 5.0, 3.0, 0.2], "searched"),
        # Better on average, but not beyond what so few images tell.
        ([9.0] * 5 + [1.0, -0.4, 0.9, -0.5, 0.1], "uniform"),
        # Much better on the images that the search went by alone.
        ([9.0] * 5 + [0.0] * 5, "uniform"),
    ],
)
def test_a_search_is_judged_by_images_that_it_did_not_go_by(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, gains: list[float], best: str
) -> None:
    uniform = asleep(UNIFORM, workbench, whole(workbench), 0.5)
    assert uniform is not None
    setting = (0, 0, 5, 5)
    workbench._searched[replace(SEARCHED, name="")] = {setting: 0.1, (0, 7, 7, 7): 0.2}

    def qualities(operation: Operation) -> np.ndarray:
        return np.array(gains) if operation.setting == setting else np.zeros(10)

    monkeypatch.setattr(workbench, "qualities", qualities)
    assert workbench.quick == 5
    chosen = asleep(SEARCHED, workbench, whole(workbench), 0.5)
    assert chosen is not None
    assert chosen.setting == {"searched": setting, "uniform": uniform.setting}[best]


def test_a_setting_of_another_view_leaves_the_next_best(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network has one correction a setting: a second view gets another one, not none."""
    damage = {(0, 0, 5, 5): 0.1, (0, 1, 5, 5): 0.2, (0, 7, 7, 7): 0.3}
    workbench._searched[replace(SEARCHED, name="")] = damage
    good = np.arange(10) + 1.0
    monkeypatch.setattr(workbench, "qualities", lambda o: good * (o.setting in damage))
    found = []
    for _ in range(4):
        operation = asleep(SEARCHED, workbench, whole(workbench), 0.5, used=found)
        found.append(operation and operation.setting)
    uniform = asleep(UNIFORM, workbench, whole(workbench), 0.5)
    assert uniform is not None
    assert found == [*damage, uniform.setting]
    # One rate for all layers, but for another one of them.
    assert uniform.setting == (0, 5, 4, 4)
    for recipe in (SEARCHED, UNIFORM):
        other = asleep(recipe, workbench, whole(workbench), 0.5, used=found)
        assert other is not None
        assert other.setting == (0, 4, 4, 5)
    every = list(itertools.product([0], *[range(8)] * 3))
    assert asleep(UNIFORM, workbench, whole(workbench), 0.5, used=every) is None


def test_a_rate_in_use_is_taken_with_one_layer_a_step_more(workbench: Workbench) -> None:
    operation = asleep(UNIFORM, workbench, whole(workbench), 0.37, used=[(0, 3, 3, 3)])
    assert operation is not None
    assert operation.setting == (0, 4, 3, 3)


@pytest.mark.parametrize("least", [-3.9e-8, 0.0, float("nan")])
def test_damage_that_is_rounded_below_none_chooses_too(
    monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Restores(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    splits = {"calibration": range(4), "search": range(4, 14), "report": range(14, 16)}
    bench = Workbench(model, torch.rand(16, 3, 16, 16), None, splits, Conditions())
    recipe = replace(SEARCHED, correction="affine")
    bench._searched[bench._searching(recipe)] = {(0, 0, 5, 5): least}
    monkeypatch.setattr(bench, "damage", lambda o: least)
    found = asleep(recipe, bench, whole(bench), 0.5)
    assert found is not None


def test_one_image_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    splits = {"calibration": range(1), "search": range(1, 3), "report": range(3, 4)}
    few = Workbench(Restores().eval(), images, None, splits, Conditions(), task=restoration(1))
    few._searched[replace(SEARCHED, name="")] = {(0, 0, 5, 5): 0.1}
    monkeypatch.setattr(few, "qualities", lambda o: np.full(2, float(o.setting == (0, 0, 5, 5))))
    chosen = asleep(SEARCHED, few, whole(few), 0.5)
    uniform = asleep(UNIFORM, few, whole(few), 0.5)
    assert chosen is not None
    assert uniform is not None
    assert chosen.setting == uniform.setting


def test_searches_take_fewer_pictures_before_fewer_settings(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple[int | None, int | None]] = []

    def search(
        recipe: Sleep,
        budget: int | None = None,
        few: int | None = None,
        wanted: list[float] | None = None,
    ) -> dict[Any, float]:
        if budget is not None:
            # What each view, here the whole picture, leaves to sleep.
            assert wanted == list(levers.SLEEP_SAVINGS)
        searched.append((budget, few))
        return {(0, 4, 4, 4): 0.1}

    monkeypatch.setattr(workbench, "search", search)

    class Rig:
        cost = "macs"

    rig: Any = Rig()
    rig.workbench = workbench
    # Twice what it takes to try 3 layers and 8 rates is 22.
    offer_sleep(rig, [UNIFORM], None, [whole(workbench)], lambda _, few: 80 // few, Offers(CLOCK))
    assert searched[0] == (20, 4)
    searched.clear()
    offer_sleep(rig, [UNIFORM], None, [whole(workbench)], lambda _, few: 200 // few, Offers(CLOCK))
    assert searched[0] == (40, 5)
    searched.clear()
    told = Offers(CLOCK)
    offer_sleep(rig, [UNIFORM], None, [whole(workbench)], lambda _, few: 40 // few, told)
    assert not searched
    assert "rates: uniform" in told.told["sleep"]


def test_where_quality_is_graded_each_point_is_corrected_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    splits = {"calibration": range(4), "search": range(4, 14), "report": range(14, 16)}
    model = Restores().eval()
    workbench = Workbench(model, images, None, splits, Conditions(), task=restoration(1))
    searched = []
    search = Workbench.search

    def searching(self: Workbench, recipe: Sleep, *args: Any) -> dict[Any, float]:
        searched.append(self._searching(recipe).correction)
        return search(self, recipe, *args)

    # Corrections mend what sleeps at half and harm below; affine ones mend less than they harm.
    gain = {"none": 0.0, "affine": 1.0, "reconstruct": 2.0}
    harm = {"none": 0.0, "affine": 2.0, "reconstruct": 1.0}

    def quality(operation: Operation) -> float:
        by = gain if operation.saving > 0.4 else harm
        return by[operation.correction] * (1 if operation.saving > 0.4 else -1)

    monkeypatch.setattr(Workbench, "search", searching)
    monkeypatch.setattr(workbench, "quality", quality)
    monkeypatch.setattr(workbench, "qualities", lambda o: np.full(10, quality(o)))

    class Rig:
        cost = "macs"

    rig: Any = Rig()
    rig.workbench = workbench
    offers = Offers(CLOCK)
    recipe = offer_sleep(rig, [SEARCHED], None, [whole(workbench)], lambda *_: 20, offers)
    assert recipe.correction == "reconstruct"
    assert {*searched} == {"none"}
    for operation in offers.operations:
        assert operation.correction == ("reconstruct" if operation.saving > 0.4 else "none")
    assert {each.correction for each in offers.operations} == {"none", "reconstruct"}
    corrections = tuning._calibrations(workbench, offers.operations)[None]
    assert corrections.points.keys() == {each.setting for each in offers.operations}
    for operation in offers.operations:
        net = operation.net
        with net.kept():
            net.calibration = corrections
            net.set(net.schedule_of(operation.setting))
            corrected = [layer.corrected_weight is not None for layer in net.layers.values()]
            differ = [
                not torch.equal(layer.corrected_weight, layer.weight)
                for layer in net.layers.values()
                if layer.corrected_weight is not None
            ]
        assert any(corrected)
        assert any(differ) == (operation.correction == "reconstruct")


@pytest.mark.parametrize("images", range(4, 70))
def test_an_image_and_itself_mirrored_are_fitted_to_or_held_out_together(images: int) -> None:
    splits = {
        "calibration": range(images),
        "search": range(images, images + 1),
        "report": range(images + 1, images + 2),
    }
    shown, conditions = torch.rand(images + 2, 3, 16, 16), Conditions(seeds=(0,), mirrored=True)
    bench = Workbench(Restores().eval(), shown, None, splits, conditions)
    net = bench.net(UNIFORM)
    engine = bench._engine(Operation(net, whole(bench), (4,) * len(net.layers), 0.5, "reconstruct"))
    assert engine is not None
    size = chunk_size(len(engine.images), engine.batch)
    assert size % 2 == 0
    assert size <= 32


@pytest.mark.parametrize("correction", ["affine", "reconstruct"])
def test_weights_are_reconstructed_from_mirrored_images_too(correction: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(14, 3, 16, 16)
    splits = {"calibration": range(8), "search": range(8, 11), "report": range(11, 14)}
    conditions = Conditions(seeds=(0,), mirrored=True)
    bench = Workbench(Restores().eval(), images, None, splits, conditions)
    net = bench.net(UNIFORM)
    setting = tuple(4 * (name not in net.resting) for name in net.layers)
    operation = Operation(net, whole(bench), setting, 0.5, correction)
    found = bench.calibration(operation)
    assert found is not None
    seen = images[:8]
    if correction == "reconstruct":
        # An image and its mirrored one side by side: the last quarter, which chooses how strongly
        # weights change, has none of an image that they were fitted to.
        seen = torch.stack([y for x in seen for y in (x, x.flip(-1))])
    with net.kept():
        net.set(net.schedule_of(setting))
        net.calibration = None
        # Of eight images in pairs, chunks of four.
        expected = calibrate(net, seen, reconstruct=correction == "reconstruct", batch=4)
    for name, one in found.points[setting].items():
        other = expected.points[setting][name]
        # Other layouts in memory round otherwise.
        torch.testing.assert_close(one.bias, other.bias, rtol=1e-4, atol=1e-5)
        assert (one.delta is None) == (other.delta is None)
        if one.delta is not None:
            torch.testing.assert_close(one.delta, other.delta, rtol=1e-4, atol=1e-5)


def test_of_recipes_about_as_good_the_one_of_least_damage(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = np.array([1.0, -1.0] * 5)
    quality = {"lattice": np.zeros(10), "fovea": far - 0.1, "bernoulli": np.full(10, -0.5)}
    damage = {"lattice": 0.2, "fovea": 0.1, "bernoulli": 0.0}

    def source(operation: Operation) -> str:
        return operation.net.layers["two"].sleep.source.name

    monkeypatch.setattr(workbench, "qualities", lambda o: quality[source(o)])
    monkeypatch.setattr(workbench, "damage", lambda o: damage[source(o)])
    recipes = [replace(UNIFORM, source=name) for name in ("lattice", "fovea", "bernoulli")]
    found = levers._best(workbench, recipes, whole(workbench), None, CLOCK)
    assert found is not None
    assert found.source == "fovea"
