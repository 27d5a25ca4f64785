"""Comparisons: what each recipe saves, how operations are chosen, that stopped ones resume."""

from __future__ import annotations

import copy
import csv
import inspect
import json
import math
from collections.abc import Iterable
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.comparison.compare import _verdicts, table
from drowsy.comparison.compare import compare as run_compare
from drowsy.comparison.operate import operate
from drowsy.comparison.recipes import RECIPES, SETS, Crop, Scale, Sleep
from drowsy.comparison.slimming import slim_to
from drowsy.correction import corrected
from drowsy.correction.calibrate import calibrate
from drowsy.evaluation.evaluator import Evaluator
from drowsy.images.scaling import scale_images
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.resolution import fit_flatten, resolution_for
from drowsy.tuning.workbench import Workbench

SPLITS = {"search": range(0, 12), "report": range(12, 36), "calibration": range(36, 40)}
SAVINGS = (0.25, 0.5)
METHODS = [recipe.name for recipe in SETS["methods"]]


def small_model(flatten: bool = False) -> nn.Module:
    """Three convolutions; its head takes 16 x 16 images alone with ``flatten``.

    Its classes are equally likely on ``small_data``: without training one would always win.
    """
    torch.manual_seed(0)
    head = [nn.Linear(12 * 64, 6)] if flatten else [nn.Linear(12, 6)]
    pool = [] if flatten else [nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(10, 12, 3, padding=1), nn.ReLU(), *pool, nn.Flatten(), *head,
    ).eval()  # fmt: skip
    with torch.no_grad():
        head[0].bias -= model(small_data()[0]).mean(0)
    return model


def small_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 3, 16, 16, generator=generator)
    return images, torch.randint(0, 6, (40,), generator=generator)


def compare(model: nn.Module | None = None, **options: Any) -> list[dict[str, Any]]:
    images, labels = small_data()
    options = {"savings": SAVINGS, "budget": 24, **SPLITS, **options}
    return run_compare(model or small_model(), images, labels, **options)


def multiplies(side: int) -> list[int]:
    """Of ``small_model``'s convolutions, from their geometry."""
    return [side**2 * 8 * 3 * 9, side**2 * 10 * 8 * 9, (side // 2) ** 2 * 12 * 10 * 9]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every (network, images, seed, setting) that is evaluated from here on."""
    found: list[Any] = []
    walk = Evaluator.walk

    def counted(self: Evaluator, settings: list) -> Iterable:
        for setting, counts in walk(self, settings):
            layers = list(self.net.layers.values())
            weight = float(layers[0].weight.detach().sum())
            layers = tuple(str(layer.sleep) + layer.fill for layer in layers)
            images = len(self.images), self.images.shape[2]
            found.append((layers, weight, images, self.seed, setting))
            yield setting, counts

    monkeypatch.setattr(Evaluator, "walk", counted)
    return found


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return recorded(monkeypatch)


@pytest.fixture(scope="module")
def straight() -> tuple[list[dict[str, Any]], int]:
    """The rows of a comparison of all recipes, and how many evaluations it took."""
    with pytest.MonkeyPatch.context() as patch:
        found = recorded(patch)
        return compare(), len(found)


# --- rows ----------------------------------------------------------------------------------------


def test_every_recipe_has_a_row_and_reaches_the_saving_it_says(
    straight: tuple[list[dict[str, Any]], int],
) -> None:
    rows, _ = straight
    assert [(r["saving"], r["method"]) for r in rows] == [(s, m) for s in SAVINGS for m in METHODS]
    whole = sum(multiplies(16))
    for row in rows:
        assert row["saving_reached"] >= row["saving"]
        assert (row["images"], row["seeds"]) == (24, 3)
        side = int(row["size"].split("x")[0])
        if row["method"] == "channels":
            continue
        thresholds = map(int, row["rates"].split())
        asleep = sum(Fraction(j, 8) * m for j, m in zip(thresholds, multiplies(side), strict=True))
        awake = sum(multiplies(side)) - asleep
        assert row["saving_reached"] == pytest.approx(float(1 - awake / whole))
    of = {(row["method"], row["saving"]): row for row in rows}
    assert of["paper-uniform", 0.25]["rates"] == "2 2 2"
    for wanted in SAVINGS:
        resolution = of["resolution", wanted]
        assert resolution["rates"] == "0 0 0"
        assert resolution["top1_std"] == of["channels", wanted]["top1_std"] == 0.0
        assert resolution["top1_beats"] is None
        assert of["ours", wanted]["top1_beats"] in ("yes", "no", "even")
        assert of["ours", wanted]["size"] == "16x16"
        sides = {bench().resolution_for(part * wanted)[0] for part in (0.0, 0.5, 0.75, 1.0)}
        assert int(of["ours+resolution", wanted]["size"].split("x")[0]) in sides
        assert of["crop", wanted]["size"] == resolution["size"]


def test_losses_are_points_below_the_network_as_it_is() -> None:
    """Against the network itself, on the images that are reported, scaled here."""
    images, labels = small_data()
    (row,) = compare(recipes=[Scale()], savings=[0.5])
    model = small_model()
    side = int(row["size"].split("x")[0])
    images, labels = images[12:36], labels[12:36]
    small = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
    with torch.inference_mode():
        right = [(model(x).argmax(1) == labels).float().mean() for x in (images, small)]
        whole, scaled = (model(x).log_softmax(1) for x in (images, small))
    assert row["top1_lost"] == pytest.approx(100 * float(right[0] - right[1]), abs=1e-4)
    divergence = F.kl_div(scaled, whole, reduction="batchmean", log_target=True)
    assert row["divergence"] == pytest.approx(float(divergence), rel=1e-4)


def test_a_crop_is_the_middle_of_the_images_as_they_are() -> None:
    images, labels = small_data()
    scaled, row = compare(recipes=[Scale(), Crop()], savings=[0.5])
    side = int(row["size"].split("x")[0])
    assert row["saving_reached"] == scaled["saving_reached"]
    first = (16 - side) // 2
    middle = images[12:36, :, first : first + side, first : first + side]
    with torch.inference_mode():
        whole, part = (
            (small_model()(x).argmax(1) == labels[12:36]).float().mean()
            for x in (images[12:36], middle)
        )
    assert row["top1_lost"] == pytest.approx(100 * float(whole - part), abs=1e-4)
    assert row["divergence"] != scaled["divergence"]


def test_without_labels_agreement_with_the_full_network_counts() -> None:
    images, _ = small_data()
    (row,) = run_compare(
        small_model(), images, recipes=[Scale()], savings=[0.75], budget=24, **SPLITS
    )
    small = scale_images(images[12:36], tuple(map(int, row["size"].split("x"))))
    with torch.inference_mode():
        first, second = (small_model()(x).argmax(1) for x in (images[12:36], small))
    changed = int((first != second).sum())
    assert changed > 0
    assert row["agreement_lost"] == pytest.approx(100 * changed / 24)
    assert row["sampling_error"] == pytest.approx(100 * changed**0.5 / 24)
    assert "top1_lost" not in row


def test_what_cannot_be_reached_is_empty() -> None:
    lazy = Sleep("lazy", rates="uniform", skip=("3",))
    for recipe, saving in ((lazy, 0.8), (Scale(), 0.9999)):
        rows = compare(recipes=[recipe, RECIPES["channels"]], savings=[saving])
        for key in ("saving_reached", "top1_lost", "top1_std", "top1_beats", "rates"):
            assert rows[0][key] is None
        assert rows[1]["top1_beats"] is None
        assert table(rows).splitlines()[2].split()[2] == "-"


def test_the_spread_is_over_seeds_and_decides() -> None:
    def row(lost: float, std: float) -> dict[str, float]:
        return {"top1_lost": lost, "top1_std": std}

    assert _verdicts(row(3.0, 0.5), row(4.0, 0.0)) == {"top1_beats": "yes"}
    assert _verdicts(row(3.0, 1.5), row(4.0, 0.0)) == {"top1_beats": "even"}
    assert _verdicts(row(3.0, 0.0), row(4.0, 1.5)) == {"top1_beats": "even"}
    assert _verdicts(row(5.0, 0.5), row(4.0, 0.0)) == {"top1_beats": "no"}
    assert _verdicts(row(5.0, 0.5), None) == {"top1_beats": None}
    assert _verdicts(row(5.0, 0.5), {"top1_lost": None}) == {"top1_beats": None}


def test_the_model_stays_as_it_was() -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    compare(model, savings=[0.5], dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


# --- choosing ------------------------------------------------------------------------------------


def bench(labelled: bool = True) -> Workbench:
    images, labels = small_data()
    conditions = Conditions(savings=SAVINGS, seeds=(0, 1), budget=24)
    return Workbench(small_model(), images, labels if labelled else None, SPLITS, conditions)


def test_conditions_of_compare_are_its_defaults_and_stay_as_they_are() -> None:
    """So that what a comparison is made with has one home; mirrored images are for ``tune``."""
    conditions = Conditions()
    assert not conditions.mirrored
    given = {name: p.default for name, p in inspect.signature(run_compare).parameters.items()}
    shared = {name: value for name, value in vars(conditions).items() if name != "mirrored"}
    assert {name: given[name] for name in shared} == shared
    with pytest.raises(FrozenInstanceError):
        conditions.batch = 1  # type: ignore[misc]


def test_the_workbench_says_which_features_it_scales_from_the_start() -> None:
    images, labels = small_data()
    found = Workbench(small_model(flatten=True), images, labels, SPLITS, Conditions())
    assert found.fitted == ["_6"]
    found.net(Sleep("other", k=4, skip=("3", "6")))
    assert found.fitted == ["_6"]
    assert bench().fitted == []


@pytest.mark.parametrize("labelled", [True, False])
def test_of_several_sizes_the_best_on_the_search_images_is_taken(labelled: bool) -> None:
    found = bench(labelled)
    recipe = Sleep("both", source="lattice", grain="position", fill="nearest")
    parts = (0.0, 0.25, 0.5, 0.75, 1.0)
    alone = [operate(replace(recipe, scaling=(part,)), found, 0.5) for part in parts]
    points = [found.measure(operation, "search") for operation in alone if operation]
    assert len({operation.view.size for operation in alone}) == len(points) == 5
    quality = [p.top1 + p.top5 if labelled else -p.divergence for p in points]
    best = operate(replace(recipe, scaling=parts), found, 0.5)
    assert best.view.size == alone[quality.index(max(quality))].view.size
    # All of a saving left to resolution: nobody sleeps.
    assert alone[-1] == operate(Scale(), found, 0.5)
    # Divergence at another size is from the network as it is, not from itself at rate 0.
    rested = replace(best, setting=found.awake, view=found.scaled((8, 8)))
    assert found.measure(rested, "search").divergence > 0


def test_one_search_at_full_resolution_serves_every_size(evaluated: list[Any]) -> None:
    found = bench()
    recipe = Sleep(
        "both", source="lattice", grain="position", fill="nearest", scaling=(0.0, 0.3, 0.6)
    )
    operate(recipe, found, 0.5)
    sides = [side for _, _, (count, side), _, _ in evaluated if count == 12]
    small = {side for side in sides if side < 16}
    assert len(small) == 2
    # Of smaller images only the operation chosen for them is measured.
    assert [sides.count(side) for side in small] == [1, 1]
    assert sides.count(16) == 24
    evaluated.clear()
    operate(replace(recipe, name="alone", scaling=(0.0,)), found, 0.25)
    assert not evaluated


def test_operations_are_chosen_on_search_images_and_reported_on_others(
    evaluated: list[Any],
) -> None:
    compare(recipes=[RECIPES["ours"]], savings=[0.5])
    reported = {setting for _, _, (n, _), _, setting in evaluated if n == 24}
    searched = {setting for _, _, (n, _), _, setting in evaluated if n == 12}
    assert len(searched) == 24
    # Rate 0 once, and the chosen setting for each seed.
    assert len(reported) == 2
    assert [seed for _, _, (n, _), seed, s in evaluated if n == 24 and any(s)] == [0, 1, 2]


def test_aligned_layers_share_their_map_at_every_size() -> None:
    found = bench()
    recipe = Sleep("aligned", grain="position", fill="nearest", aligned=True, scaling=(0.25,))
    streams = [layer.sleep.stream for layer in found.net(recipe).layers.values()]
    assert streams == [0, 0, 2]
    apart = found.measure(operate(replace(recipe, aligned=False), found, 0.5))
    shared = found.measure(operate(recipe, found, 0.5))
    assert apart.divergence != shared.divergence


@pytest.mark.parametrize("correction", ["affine", "reconstruct"])
@pytest.mark.parametrize("scaling", [0.0, 0.25])
def test_operations_are_corrected_on_the_calibration_images(
    correction: str, scaling: float
) -> None:
    recipe = Sleep(
        "mine", source="lattice", grain="position", fill="nearest", rates="uniform",
        scaling=(scaling,), correction=correction,
    )  # fmt: skip
    found = bench()
    operation = operate(recipe, found, 0.5)
    assert (operation.correction, operation.view.is_whole) == (correction, scaling == 0)
    measured = found.measure(operation)
    plain = found.measure(replace(operation, correction="none"))
    net, labels = copy.deepcopy(operation.net), small_data()[1][12:36]
    baseline = Evaluator(found.dense, found.images("report")).logits()
    net.set(net.schedule_of(operation.setting))
    unlabelled = found.images("calibration", operation.view)
    assert len(unlabelled) == 4
    calibrate(net, unlabelled, reconstruct=correction == "reconstruct")
    by_hand = [
        Evaluator(
            net, found.images("report", operation.view), labels, seed=seed, baseline=baseline
        ).evaluate(operation.setting)
        for seed in found.conditions.seeds
    ]
    divergence = [counts.divergence / 24 for counts in by_hand]
    assert measured.divergence == pytest.approx(sum(divergence) / 2, rel=1e-6)
    assert measured.top1 == pytest.approx(sum(counts.top1 for counts in by_hand) / 48)
    assert measured.divergence != pytest.approx(plain.divergence, rel=1e-3)
    assert operation.net.calibration is None


def test_searches_go_by_the_affine_correction_and_are_kept(
    evaluated: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def counted(*args: Any, reconstruct: bool, **options: Any) -> Any:
        calls.append(reconstruct)
        return calibrate(*args, reconstruct=reconstruct, **options)

    monkeypatch.setattr(corrected, "calibrate", counted)
    store = drowsy.Store(":memory:")
    options: dict[str, Any] = {"recipes": [RECIPES["ours"]], "savings": [0.5], "store": store}
    first = compare(**options)
    # Each of 24 settings; in the end the best one and a uniform one, once for all seeds.
    assert calls == [False] * 24 + [True] * 2
    evaluated.clear()
    calls.clear()
    assert compare(**options) == first
    assert not evaluated
    assert not calls


def test_sleep_on_crops_is_calibrated_and_measured_on_crops() -> None:
    images, labels = small_data()
    found = bench()
    recipe = replace(RECIPES["ours+crop"], rates="uniform", scaling=(0.5,))
    operation = operate(recipe, found, 0.5)
    side = operation.view.size[0]
    assert operation.view.middle == operation.view.size
    assert side < 16
    first = (16 - side) // 2
    middle = images[..., first : first + side, first : first + side]
    net = drowsy.convert(small_model(), source="fovea", grain="position")
    drowsy.align(net, images[:1])
    net.to(memory_format=torch.channels_last)
    drowsy.calibrate_stencils(net, images[36:40])
    net.set(net.schedule_of(operation.setting), fill="stencil")
    calibrate(net, middle[36:40], reconstruct=True)
    right = [
        Evaluator(net, middle[12:36], labels[12:36], seed=seed).evaluate(operation.setting).top1
        for seed in (0, 1)
    ]
    assert found.measure(operation).top1 == pytest.approx(sum(right) / 48)


@pytest.mark.parametrize(
    ("searched", "uniform", "best"),
    [
        ((0.20, 1.4), (0.30, 1.6), "searched"),
        ((0.20, 1.4), (0.21, 1.6), "uniform"),
        ((0.20, 1.6), (0.19, 1.4), "searched"),
        ((0.30, 1.6), (0.20, 1.4), "uniform"),
    ],
)
def test_settings_about_as_close_are_told_apart_by_their_accuracy(
    searched: tuple[float, float], uniform: tuple[float, float], best: str
) -> None:
    found = bench()
    recipe = RECIPES["ours"]

    def judged(number: int) -> Any:
        return lambda operation: (uniform if operation.setting == (4, 4, 4) else searched)[number]

    found.damage, found.quality = judged(0), judged(1)  # type: ignore[method-assign]
    found._searched[replace(recipe, name="")] = {(3, 6, 6): 0.1}
    chosen = operate(recipe, found, 0.5)
    assert chosen.setting == {"searched": (3, 6, 6), "uniform": (4, 4, 4)}[best]


# --- resuming ------------------------------------------------------------------------------------


def test_a_stopped_comparison_resumes_and_a_finished_one_evaluates_nothing(
    straight: tuple[list[dict[str, Any]], int],
    evaluated: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, count = straight
    put, stop = drowsy.Store.put, 100

    def failing(self: drowsy.Store, *args: Any) -> None:
        if len(evaluated) == stop:
            raise KeyboardInterrupt
        put(self, *args)

    monkeypatch.setattr(drowsy.Store, "put", failing)
    with drowsy.Store(tmp_path / "points.sqlite") as store, pytest.raises(KeyboardInterrupt):
        compare(store=store)
    stop = -1
    with drowsy.Store(tmp_path / "points.sqlite") as store:
        assert compare(store=store) == rows
        # One was evaluated and not kept.
        assert len(evaluated) == count + 1
        monkeypatch.setattr(Evaluator, "walk", None)
        assert compare(store=store) == rows


def test_savings_are_of_the_convolutions_whatever_else_multiplies() -> None:
    class Burdened(nn.Module):
        """The same logits, for five times the multiplications."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.burden = small_model(), nn.Linear(6, 200_000, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.model(x)
            return logits + 0 * self.burden(logits).sum(1, keepdim=True)

    recipes = [recipe for recipe in SETS["methods"] if recipe.name == "paper-nonuniform"]
    plain = compare(recipes=recipes)
    burdened = compare(Burdened().eval(), recipes=recipes)
    assert all(row["saving_reached"] >= row["saving"] for row in plain)
    told = ("saving_reached", "rates", "size", "top1_lost")
    for a, b in zip(plain, burdened, strict=True):
        assert [a[name] for name in told] == [b[name] for name in told]


def test_no_recipe_lets_a_gate_sleep(evaluated: list[Any]) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.model = nn.Conv2d(3, 3, 1), small_model()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())

    names = ("paper-uniform", "paper-nonuniform", "ours+resolution")
    recipes = [recipe for recipe in SETS["methods"] if recipe.name in names]
    rows = compare(Gated().eval(), recipes=recipes)
    assert all(row["saving_reached"] >= row["saving"] for row in rows)
    settings = {setting for *_, setting in evaluated}
    assert {len(setting) for setting in settings} == {4}
    assert {setting[0] for setting in settings} == {0}
    assert any(len(set(setting)) == 2 and setting[1] for setting in settings)


# --- smaller images ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "cifar_resnet20"])
@pytest.mark.parametrize("saving", [0.1, 0.25, 0.5, 0.75])
def test_resolution_is_the_largest_that_saves_enough(name: str, saving: float) -> None:
    side = models.MODELS[name].preprocess.crop
    with torch.device("meta"):
        model = models.create(name)

    def count(size: tuple[int, int]) -> int:
        return sum(cost.multiplies for cost in drowsy.layer_costs(model, (3, *size)))

    height, width = resolution_for(saving, count, (side, side))
    allowed = (1 - saving) * count((side, side))
    assert height == width
    assert count((height, width)) <= allowed
    # Costs grow with the size, so that the next one decides for all larger ones.
    assert count((height + 1, width + 1)) > allowed


def test_resolution_keeps_the_shape_and_says_where_it_ends() -> None:
    def area(size: tuple[int, int]) -> int:
        if min(size) < 4:
            raise RuntimeError("kernel larger than the image")
        return size[0] * size[1]

    assert resolution_for(0.0, area, (40, 60)) == (40, 60)
    assert resolution_for(0.5, area, (40, 60)) == (28, 42)
    every = [(s, round(1.5 * s)) for s in range(4, 41)]
    for saving in (0.1, 0.3, 0.77, 0.98):
        largest = max(size for size in every if area(size) <= (1 - saving) * 2400)
        assert resolution_for(saving, area, (40, 60)) == largest
    assert resolution_for(0.995, area, (40, 60)) is None


def test_a_network_that_joins_maps_gets_a_size_that_it_takes() -> None:
    def area(size: tuple[int, int]) -> int:
        if any(side % 16 for side in size) and size != (360, 480):
            raise RuntimeError("sizes of tensors must match")
        return size[0] * size[1]

    assert resolution_for(0.0, area, (360, 480)) == (360, 480)
    assert resolution_for(0.5, area, (360, 480)) == (256, 336)
    assert resolution_for(0.99999, area, (360, 480)) is None


def test_a_fixed_flatten_gets_features_of_its_size() -> None:
    net = drowsy.convert(small_model(flatten=True))
    images, _ = small_data()
    with torch.inference_mode():
        before = net(images)
        assert fit_flatten(net, (3, 16, 16)) == ["_6"]
        assert torch.equal(net(images), before)
        small = images[:, :, :11, :11]
        features = nn.Sequential(*list(small_model(flatten=True))[:8])(small)
        scaled = F.interpolate(features, (8, 8), mode="bilinear")
        expected = small_model(flatten=True)[-1](scaled.flatten(1))
        torch.testing.assert_close(net(small), expected)
    assert fit_flatten(drowsy.convert(small_model()), (3, 16, 16)) == []
    assert fit_flatten(drowsy.convert(models.load("caffenet_cifar")), (3, 32, 32)) == ["pool5"]
    rows = compare(small_model(flatten=True), recipes=[Scale(), RECIPES["ours+resolution"]])
    assert all(row["saving_reached"] >= row["saving"] for row in rows)


# --- fewer channels ------------------------------------------------------------------------------


def test_slimming_is_a_smaller_network() -> None:
    """A network built with the channels that stay computes the same and counts the same."""
    net = drowsy.convert(small_model())
    slim, saved = slim_to(net, (3, 16, 16), 0.5)
    images, _ = small_data()
    convs = list(slim.layers.values())
    kept = [layer.weight.abs().sum((1, 2, 3)) > 0 for layer in convs]
    for layer, keep in zip(net.layers.values(), kept, strict=True):
        norms = layer.weight.abs().sum((1, 2, 3))
        assert norms[keep].min() > norms[~keep].max()
    x, count, alive = images, 0, torch.ones(3, dtype=torch.bool)
    with torch.inference_mode():
        for i, (layer, keep) in enumerate(zip(convs, kept, strict=True)):
            weight, bias = layer.parameters_in_effect()
            small = weight[keep][:, alive]
            x = F.relu(F.conv2d(x, small, bias[keep], padding=1))
            count += small.numel() * x[0, 0].numel()
            x = F.max_pool2d(x, 2) if i == 1 else x
            alive = keep
        linear = small_model()[-1]
        logits = F.linear(x.mean((2, 3)), linear.weight[:, alive], linear.bias)
        torch.testing.assert_close(slim(images), logits)
    assert saved == pytest.approx(1 - count / sum(multiplies(16)))
    assert saved >= 0.5
    # A saving is reached with as many channels as possible.
    assert slim_to(net, (3, 16, 16), saved)[1] == saved
    assert slim_to(net, (3, 16, 16), saved - 0.2)[1] < saved


def test_slimming_spares_inputs_that_no_summand_fills() -> None:
    """Through a residual addition a channel is 0 only where both summands are."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
            self.c = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(x)).mean((2, 3))

    block = Block().eval()
    with torch.no_grad():
        for conv, norms in ((block.a, (1, 2, 3, 4)), (block.b, (2, 1, 4, 3))):
            conv.weight.copy_(torch.tensor(norms)[:, None, None, None].expand(4, 2, 1, 1))
    slim, saved = slim_to(drowsy.convert(block), (2, 5, 5), 0.35)
    # a keeps channels 2 and 3, b too; c, which gives the logits, keeps all of its own.
    assert [int((slim.layers[n].weight != 0).any(1).sum()) for n in "abc"] == [2, 2, 3]
    assert saved == pytest.approx(1 - (2 * 2 + 2 * 2 + 3 * 2) / (2 * 4 + 2 * 4 + 3 * 4))
    assert slim_to(drowsy.convert(block), (2, 5, 5), 0.9) is None


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_a_table_its_record_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from drowsy.cli.main import main

    (tmp_path / "data").mkdir()
    pixels = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8)
    for i, image in enumerate(pixels.numpy()):
        Image.fromarray(image).save(tmp_path / "data" / f"{i}.png")
    labels = "".join(f"{i}.png,{i % 4}\n" for i in range(9))
    (tmp_path / "data" / "labels.csv").write_text("file,label\n" + labels)
    arguments = ["compare", "--model", "caffenet_cifar", "--data", str(tmp_path / "data")]
    arguments += ["--search", "0:4", "--report", "4:9", "--seeds", "3", "5", "--savings", "0.3"]
    recipes = ["paper-uniform", "channels", "resolution"]
    assert main([*arguments, "--recipes", *recipes, "--out", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == recipes
    assert all(float(row["saving_reached"]) >= 0.3 for row in rows)
    assert all(math.isfinite(float(row["top5_lost"])) for row in rows)
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["splits"] == {"search": [0, 4], "report": [4, 9]}
    assert record["features scaled before flattening"] == ["pool5"]
    assert record["recipes"]["paper-uniform"]["source"] == "bernoulli"
    assert record["versions"]["torch"]
    assert (tmp_path / "out" / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "saving_reached" in capsys.readouterr().out
