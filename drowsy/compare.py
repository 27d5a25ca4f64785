"""Ways to save multiplications, side by side: one network, one set of images, equal savings.

A *recipe* (``drowsy.recipes``) turns a wanted saving into an *operation*: a network, an image size
and a setting whose convolutions need that many multiplications less than the network as it is.
Operations are chosen on search images and reported on others.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drowsy import plots
from drowsy.calibrate import Corrected
from drowsy.comparison.resolution import fit_flatten, resolution_for
from drowsy.convert import convert
from drowsy.evaluate import Evaluator, Setting, check_images, check_labels
from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import align as align_columns
from drowsy.files.tables import csv_text
from drowsy.images.scaling import INTERPOLATIONS, Size, crop_images, scale_images
from drowsy.knob.costs import layer_costs, layer_shares
from drowsy.knob.costs import saving as saving_of
from drowsy.knob.frontier import OperatingPoint
from drowsy.net import DrowsyNet
from drowsy.recipes import SETS, Operation, Recipe, Scale, Sleep, operate
from drowsy.search import Measurer, Reference, check_method, search_at
from drowsy.stages import align
from drowsy.stencil import calibrate_stencils
from drowsy.store import Store, fingerprint_data, fingerprint_state

Row = dict[str, Any]
SAVINGS = (0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)
# Searches that correct the network at every setting: images for that, and images they measure on.
SEARCH_CALIBRATION, SEARCH_IMAGES = 24, 64


# --- what recipes are given ----------------------------------------------------------------------


class Bench:
    """One network and its images, and what recipes ask about them.

    Args: as for ``compare``.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        splits: Mapping[str, range],
        *,
        savings: Sequence[float],
        seeds: Sequence[int],
        store: Store | None,
        budget: int | None,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        interpolation: str,
        progress: bool,
        recipes: Sequence[Recipe] = (),
    ) -> None:
        check_images(images)
        check_labels(labels, images)
        check_splits(splits, len(images))
        if len(seeds) < 2:
            raise ValueError(
                f"seeds: got {tuple(seeds)}, allowed: two or more, as their spread is reported"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation: got {interpolation!r}, allowed: {', '.join(INTERPOLATIONS)}"
            )
        self.seeds, self._savings = tuple(seeds), tuple(savings)
        self.image = tuple(images.shape[1:])
        self.full: Size = (images.shape[2], images.shape[3])
        self._model, self._budget, self._batch = model, budget, batch
        self._dtype, self._device, self._progress = dtype, device, progress
        self._interpolation, self._store = interpolation, store or Store(":memory:")
        self._images = {name: images[span.start : span.stop] for name, span in splits.items()}
        self._labels = {
            name: None if labels is None else labels[span.start : span.stop].to(device)
            for name, span in splits.items()
        }
        self._images["quick"] = self._images["search"][:SEARCH_IMAGES]
        found = self._labels["search"]
        self._labels["quick"] = None if found is None else found[:SEARCH_IMAGES]
        self._nets: dict[Sleep, DrowsyNet] = {}
        self._recipes = [recipe for recipe in recipes if isinstance(recipe, Sleep)]
        self._searched: dict[Sleep, dict[Setting, float]] = {}
        self._engines: dict[tuple[str, Size, bool], Corrected] = {}
        self._references: dict[str, Reference] = {}
        self.dense = self.net(Sleep("dense"))
        self.awake: Setting = (0,) * len(self.dense.layers)
        self._shadows: dict[DrowsyNet, nn.Module] = {}
        self._costs: dict[tuple[DrowsyNet, Size], tuple[int, dict[str, float]]] = {}

    # --- networks and costs ---------------------------------------------------------------------

    def net(self, recipe: Sleep) -> DrowsyNet:
        """The network as a recipe wants it, made once for all that want the same."""
        key = replace(_search_key(recipe), rates="uniform", correction="none")
        if key not in self._nets:
            # A copy of its own: in another dtype, batch norms stay folded in the given one.
            net = self._converted(recipe, copy.deepcopy(self._model))
            net.to(device=self._device, dtype=self._dtype)
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if recipe.fill == "stencil":
                calibrate_stencils(net, self.images("calibration", self.full), batch=self._batch)
                net.set(0, fill="stencil")
            self._nets[key] = net
        return self._nets[key]

    def _converted(self, recipe: Sleep, model: nn.Module) -> DrowsyNet:
        net = convert(
            model,
            source=recipe.source,
            grain=recipe.grain,
            k=recipe.k,
            # Its tables are made first.
            fill="auto" if recipe.fill == "stencil" else recipe.fill,
            skip=recipe.skip,
        )
        self.fitted = fit_flatten(net, self.image)
        if recipe.aligned:
            example = next(net.parameters()).new_zeros(1, *self.image)
            align(net, example, grain=recipe.grain)
        return net

    def multiplies(self, size: Size) -> int:
        """Multiplications of all convolutions for one image of a size, nobody asleep."""
        return self._cost(self.dense, size)[0]

    def spared(self, size: Size) -> float:
        """Fraction of the multiplications that scaling images to ``size`` saves."""
        return 1 - self.multiplies(size) / self.multiplies(self.full)

    def awake_at(self, size: Size, cropped: bool = False) -> Operation:
        """The network at a size, nobody asleep."""
        return Operation(self.dense, size, self.awake, self.spared(size), cropped=cropped)

    def left_to_sleep(self, size: Size, saving: float) -> float:
        """Fraction of the multiplications at ``size`` that is to sleep, to save ``saving`` of all.

        A multiplication asleep is one of those that are left at this size.
        """
        return 1 - (1 - saving) / (1 - self.spared(size))

    def asleep(self, net: DrowsyNet, size: Size, setting: Setting) -> float:
        """Fraction of the multiplications at ``size`` that a setting saves."""
        rates = {name: j / net.k for name, j in zip(net.layers, setting, strict=True)}
        return saving_of(rates, self._cost(net, size)[1])

    def resolution_for(self, saving: float) -> Size | None:
        """The largest size that saves at least ``saving``; None if none does."""
        return resolution_for(saving, self.multiplies, self.full)

    def _cost(self, net: DrowsyNet, size: Size) -> tuple[int, dict[str, float]]:
        """Multiplications for one image of a size, and the share of each layer."""
        if (net, size) not in self._costs:
            if net not in self._shadows:
                # Shapes and costs without memory or time.
                self._shadows[net] = copy.deepcopy(net).to("meta")
            costs = layer_costs(self._shadows[net], (self.image[0], *size))
            self._costs[net, size] = sum(cost.multiplies for cost in costs), layer_shares(costs)
        return self._costs[net, size]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights and of the images reported on, with their labels."""
        reference = self._reference("report")
        return {"weights_sha256": reference.weights, "data_sha256": reference.data}

    # --- measuring ------------------------------------------------------------------------------

    def measure(self, operation: Operation, split: str = "report") -> OperatingPoint:
        """What an operation does on the images of a split; every seed counts on ``report``."""
        # Without sleep nothing is random.
        seeds = self.seeds if split == "report" and any(operation.setting) else self.seeds[:1]
        engine = self._engine(operation)
        images = self.images(split, operation.size, operation.cropped)
        measurer = self._measurer(operation.net, images, split, seeds, engine)
        return measurer.measure([operation.setting], split)[operation.setting]

    def quality(self, operation: Operation) -> float:
        """How good an operation is on the search images, to choose among sizes."""
        point = self.measure(operation, "search")
        if point.top1 is None or point.top5 is None:
            return -(point.divergence or 0.0)
        return point.top1 + point.top5

    def divergence(self, operation: Operation) -> float:
        """Mean divergence on the search images, to choose among settings at one size."""
        return self.measure(operation, "search").divergence or 0.0

    def search(self, recipe: Sleep) -> dict[Setting, float]:
        """Settings measured on the search images at full resolution, and their divergence.

        Layers rank alike at every resolution, so that one search serves them all, and all recipes
        that differ in nothing else: it looks for the savings that each size leaves to sleep.
        """
        key = _search_key(recipe)
        if key not in self._searched:
            engine, split = None, "search"
            if recipe.correction != "none":
                # What a correction costs at every setting, few images make up for.
                images = self.images("calibration", self.full)[:SEARCH_CALIBRATION]
                engine, split = Corrected(images), "quick"
            images = self.images(split, self.full)
            measurer = self._measurer(self.net(recipe), images, split, self.seeds[:1], engine)
            points = search_at(measurer, self._goals(recipe), self._budget)
            self._searched[key] = {s: point.divergence or 0.0 for s, point in points.items()}
        return self._searched[key]

    def _goals(self, recipe: Sleep) -> list[float]:
        """Savings at full resolution that a recipe and those of the same search may ask for."""
        sharing = [each for each in self._recipes if _search_key(each) == _search_key(recipe)]
        parts = {part for each in (recipe, *sharing) for part in each.scaling}
        goals = set()
        for saving, part in itertools.product(self._savings, parts):
            size = self.resolution_for(part * saving)
            if size is not None and self.spared(size) < saving:
                goals.add(round(self.left_to_sleep(size, saving), 6))
        return sorted(goals)

    def _engine(self, operation: Operation) -> Corrected | None:
        if operation.correction == "none":
            return None
        key = (operation.correction, operation.size, operation.cropped)
        if key not in self._engines:
            images = self.images("calibration", operation.size, operation.cropped)
            engine = Corrected(images, reconstruct=operation.correction == "reconstruct")
            self._engines[key] = engine
        return self._engines[key]

    def images(self, split: str, size: Size, cropped: bool = False) -> Tensor:
        """Images of a split, scaled or cropped, as the network takes them."""
        images = self._images[split]
        if cropped:
            images = crop_images(images, size)
        else:
            images = scale_images(images, size, self._interpolation)
        images = images.to(device=self._device, dtype=self._dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def _measurer(
        self,
        net: DrowsyNet,
        images: Tensor,
        split: str,
        seeds: Sequence[int],
        engine: Corrected | None = None,
    ) -> Measurer:
        return Measurer(
            net,
            images,
            self._labels[split],
            seeds=seeds,
            store=self._store,
            batch=self._batch,
            reference=self._reference(split),
            engine=engine,
            progress=self._progress,
        )

    def _reference(self, split: str) -> Reference:
        """The network as it is, on images as they are."""
        if split not in self._references:

            @functools.cache
            def logits() -> Tensor:
                images = self.images(split, self.full)
                return Evaluator(self.dense, images, batch=self._batch).logits()

            self._references[split] = Reference(
                fingerprint_state(self.dense.state_dict()),
                fingerprint_data(self.images(split, self.full), self._labels[split]),
                logits,
            )
        return self._references[split]


def _search_key(recipe: Sleep) -> Sleep:
    """What decides a search: equal for recipes that share one."""
    return replace(recipe, name="", scaling=(0.0,), cropped=False)


def check_splits(splits: Mapping[str, range], count: int) -> None:
    """Raise ValueError unless these are disjoint ranges of ``count`` images, none empty."""
    for name, span in splits.items():
        if span.step != 1 or not 0 <= span.start < span.stop <= count:
            raise ValueError(
                f"{name}: got {span.start}:{span.stop}, allowed: a range within 0:{count}"
            )
    named = sorted(splits.items(), key=lambda item: item[1].start)
    for (name, span), (other, later) in itertools.pairwise(named):
        if later.start < span.stop:
            raise ValueError(
                f"{other}: got {later.start}:{later.stop}, which overlaps {name} "
                f"{span.start}:{span.stop}, allowed: disjoint ranges"
            )


# --- the comparison ------------------------------------------------------------------------------


def compare(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    search: range,
    report: range,
    calibration: range | None = None,
    savings: Sequence[float] = SAVINGS,
    seeds: Sequence[int] = SEEDS,
    recipes: Sequence[Recipe] = SETS["methods"],
    budget: int | None = None,
    interpolation: str = "bicubic",
    store: Store | None = None,
    batch: int = 50,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: bool = False,
    each: Callable[[Row], None] = lambda row: None,
    out: str | os.PathLike[str] | None = None,
    title: str = "",
    about: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Accuracy lost by each recipe at each saving.

    Args:
        model: a network in eval mode that ``drowsy.convert`` takes; stays as it was.
        images: float32 ``[N, C, H, W]``, as the network takes them at full resolution.
        labels: int64 ``[N]``, or None: then agreement with the network as it is stands for top-1.
        search: images on which operations are chosen, with the first seed.
        report: images on which they are reported, with every seed.
        calibration: images, labels unused, for recipes that calibrate. The three are disjoint.
        savings: fractions of the convolution multiplications of the whole network at full
            resolution, each above 0 and below 1. A recipe reaches at least these.
        seeds: of the sleep maps, two or more.
        recipes: what is compared; names must differ.
        budget: settings of each search, as for ``drowsy.search``.
        interpolation: how images are scaled down (antialiased): ``bicubic`` or ``bilinear``.
        store: results go there at once, and what it holds is not evaluated again.
        batch, dtype, device, progress: of the evaluation.
        each: called with every row as soon as it is known.
        out: folder for ``compare.csv`` (the rows), ``compare.json`` (where they come from) and
            ``compare.png`` (the picture); None writes nothing.
        title, about: of the picture, and further facts for the record.

    Returns:
        A row for each saving and recipe: ``method``, ``saving`` (wanted), ``saving_reached``,
        ``size`` (of the image), ``NAME_lost`` in points and ``NAME_std`` over the seeds for top1
        and top5 (or agreement), ``NAME_beats`` (``yes`` where it loses less than ``resolution`` by
        more than the larger spread of the two, ``no`` where it loses more by that, else ``even``),
        ``sampling_error`` (points: so large at most is the standard error of the loss of top1 or
        agreement that is due to the choice of the images), ``divergence`` from the network as it is
        (mean, nats), ``images``, ``seeds``, ``rates`` in 1/k. What a recipe cannot reach is None.

    Raises:
        ValueError: splits that overlap or are empty, a saving out of range, fewer than two seeds,
            recipes of one name, or no calibration images for a recipe that calibrates.
    """
    if not savings:
        raise ValueError("savings: got none, allowed: one or more")
    for wanted in savings:
        if not 0 < wanted < 1:
            raise ValueError(f"savings: got {wanted}, allowed: above 0 and below 1")
    check_method("additive", budget)
    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"recipes: got {names}, allowed: one or more, each name once")
    splits = {"search": search, "report": report}
    if calibration is not None:
        splits["calibration"] = calibration
    needy = [r.name for r in recipes if isinstance(r, Sleep) and r.calibrates]
    if needy and calibration is None:
        raise ValueError(f"calibration: got none, allowed: a range, as {needy[0]} calibrates")
    bench = Bench(
        model,
        images,
        labels,
        splits,
        savings=savings,
        seeds=seeds,
        store=store,
        budget=budget,
        batch=batch,
        dtype=dtype,
        device=torch.device(device),
        interpolation=interpolation,
        progress=progress,
        recipes=recipes,
    )
    start = time.perf_counter()
    dense = bench.measure(bench.awake_at(bench.full))
    rows: list[Row] = []
    scaling = next((recipe for recipe in recipes if isinstance(recipe, Scale)), None)
    for wanted in savings:
        # First what the others are judged by.
        rival = None if scaling is None else _row(bench, scaling, wanted, dense)
        for recipe in recipes:
            judge = None if recipe is scaling else rival
            row = _row(bench, recipe, wanted, dense) if judge or rival is None else rival
            rows.append(row | _verdicts(row, judge))
            each(rows[-1])
    if out is not None:
        record = {
            "comparison": title,
            **(about or {}),
            "as it is": {name: getattr(dense, name) for name in _measured(dense)},
            "splits": {name: [span.start, span.stop] for name, span in splits.items()},
            "seeds": list(bench.seeds),
            "budget": budget,
            "images scaled": f"{interpolation}, antialiased",
            "features scaled before flattening": bench.fitted,
            "recipes": {recipe.name: _described(recipe) for recipe in recipes},
            "seconds": round(time.perf_counter() - start, 1),
            "seconds_note": "of this run; points found in the store cost nothing",
            **bench.fingerprints,
            **provenance(),
        }
        folder = Path(out)
        write_text(folder / "compare.csv", csv_text(rows))
        write_json(folder / "compare.json", record)
        as_it_is = " / ".join(f"{100 * getattr(dense, name):.1f}" for name in _measured(dense))
        plots.plot_comparison(
            rows,
            folder / "compare.png",
            f"{title}; with all multiplications {as_it_is}%",
            None if scaling is None else scaling.name,
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    shown = [key for key in rows[0] if key not in ("rates", "images", "seeds")]
    return align_columns([shown, *([_text(key, row[key]) for key in shown] for row in rows)])


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    # Adding 0 turns -0.0 into 0.0.
    if key == "divergence":
        return f"{value:.3f}"
    return f"{value:.1%}" if key.startswith("saving") else f"{round(value, 1) + 0.0:.1f}"


def _row(bench: Bench, recipe: Recipe, wanted: float, dense: OperatingPoint) -> Row:
    """What a recipe loses at a saving; None in every column where it cannot reach it."""
    operation = operate(recipe, bench, wanted)
    point = None if operation is None else bench.measure(operation)
    row: Row = {
        "method": recipe.name,
        "saving": wanted,
        "saving_reached": operation and operation.saving,
        "size": operation and "x".join(map(str, operation.size)),
    }
    for name in _measured(dense):
        lost = point and 100 * (getattr(dense, name) - getattr(point, name))
        row[f"{name}_lost"] = lost
        # One seed was measured where nothing is random.
        row[f"{name}_std"] = point and 100 * (point.spread or {}).get(name, 0.0)
    return {
        **row,
        # Losses differ from 0 only on images that get another first choice.
        "sampling_error": point and 100 * math.sqrt((1 - (point.agreement or 0)) / dense.images),
        "divergence": point and point.divergence,
        "images": dense.images,
        "seeds": len(bench.seeds),
        "rates": operation and " ".join(map(str, operation.setting)),
    }


def _measured(point: OperatingPoint) -> list[str]:
    return ["top1", "top5"] if point.top1 is not None else ["agreement"]


def _verdicts(row: Row, rival: Row | None) -> Row:
    """Whether a row loses less than its rival, by more than the larger spread of the two."""
    verdicts: Row = {}
    for name in (key.removesuffix("_lost") for key in row if key.endswith("_lost")):
        lost = row[f"{name}_lost"]
        if rival is None or None in (lost, rival[f"{name}_lost"]):
            verdicts[f"{name}_beats"] = None
            continue
        less = rival[f"{name}_lost"] - lost
        spread = max(row[f"{name}_std"], rival[f"{name}_std"])
        verdicts[f"{name}_beats"] = "even" if abs(less) <= spread else "yes" if less > 0 else "no"
    return verdicts


def _described(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, JSON-able."""
    return {"kind": type(recipe).__name__, **vars(recipe)}
