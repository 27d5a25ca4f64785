"""One network and its images, and what recipes ask about them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy.correction.calibrate import BATCH
from drowsy.correction.corrected import Corrected
from drowsy.correction.layerwise import chunk_size
from drowsy.correction.stencils import calibrate_stencils
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.guessing import check_targets, looked_at
from drowsy.evaluation.identity import fingerprint_data, fingerprint_network, fingerprint_state
from drowsy.evaluation.measurer import Measurer, Reference
from drowsy.evaluation.metrics import NotFinite, Task
from drowsy.evaluation.store import open_store
from drowsy.images.checks import check_images, check_splits
from drowsy.images.scaling import Size
from drowsy.images.structures import alike, mapped, tensors_in
from drowsy.images.view import View
from drowsy.knob.costs import NetworkCost, layer_shares, network_cost
from drowsy.knob.costs import saving as saving_of
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting
from drowsy.network.calibration import Calibration
from drowsy.network.net import DrowsyNet
from drowsy.searches.methods import search_at
from drowsy.tuning.conditions import Conditions
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Recipe, Sleep
from drowsy.tuning.resolution import resolution_for, shadow


@dataclass(frozen=True)
class Operation:
    """How a recipe reaches a saving.

    Attributes:
        net: the network.
        view: what it is shown of the images.
        setting: thresholds of its layers.
        saving: fraction saved of the multiplications of the network as it is.
        correction: as in ``Sleep``.
        number_format: that the network is in; None for its own.
    """

    net: DrowsyNet
    view: View
    setting: Setting
    saving: float
    correction: str = "none"
    number_format: str | None = None


_AWAKE = Sleep("dense")
_Measured = tuple[OperatingPoint, dict[str, np.ndarray]]
# Searches that correct the network at every setting: images for that at most (twice those that they
# measure on), and images that they measure on.
SEARCH_CALIBRATION, SEARCH_IMAGES = 24, 64


class Workbench:
    """One network and its images, and what recipes ask about them.

    Args:
        model, images, labels: as for ``compare``.
        splits: disjoint ranges of the images: ``search``, ``report``, and ``calibration`` where a
            recipe calibrates.
        conditions: what is the same for every recipe.
        recipes: those that share searches.
        task: what outputs and labels are, and how they are judged.

    Attributes:
        objective: the metric that quality is reported in; ``labelled``: whether by labels.
        covers: whether outputs cover the picture, as maps and boxes do: views must show all of it,
            and outputs are scaled to its size.
        dense: the network with nobody asleep; ``awake`` is its setting.
        full: ``(H, W)`` of the images at full resolution, ``image`` their ``(C, H, W)``.
        fitted: nodes whose features are scaled so that it takes smaller images (``fit_flatten``).
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Any,
        splits: Mapping[str, range],
        conditions: Conditions,
        recipes: Sequence[Recipe] = (),
        task: Task = CLASSIFICATION,
    ) -> None:
        check_images(images)
        if labels is not None:
            labels = task.check(labels, images)
        check_splits(splits, len(images))
        self.conditions = conditions
        self.image = (images.shape[1], images.shape[2], images.shape[3])
        self.full: Size = (images.shape[2], images.shape[3])
        self._model, self._store = model, open_store(conditions.store)
        self._images = {name: images[span.start : span.stop] for name, span in splits.items()}
        self._labels = {
            name: None if labels is None else _placed(labels[span.start : span.stop], conditions)
            for name, span in splits.items()
        }
        self.labelled = labels is not None
        self._task, self.objective = task, task.quality(self.labelled)
        self._sleepers = [recipe for recipe in recipes if isinstance(recipe, Sleep)]
        self._searched: dict[Sleep, dict[Setting, float]] = {}
        self._engines: dict[tuple[str, View, str | None], Corrected] = {}
        self._points: dict[tuple[Operation, str], _Measured] = {}
        self._references: dict[str, Reference] = {}
        self._shadows: dict[DrowsyNet, nn.Module] = {}
        self._costs: dict[tuple[DrowsyNet, Size], NetworkCost] = {}
        self.dense, self.fitted = self._made(_AWAKE)
        self._nets: dict[tuple[Sleep, str | None], DrowsyNet] = {
            (_network_key(_AWAKE), None): self.dense
        }
        self.awake: Setting = (0,) * len(self.dense.layers)
        self.covers = task.name == "detection" or self._puts_out_maps()

    def _puts_out_maps(self) -> bool:
        if not self.graded:
            return False
        found = tensors_in(self._whole)
        return any(y.dim() == 4 or tuple(y.shape[1:]) == self.full for y in found)

    @functools.cached_property
    def _whole(self) -> Any:
        """Outputs for one image as it is, on the meta device: shapes alone."""
        return self._outputs_on(View.whole(self.full))

    def _outputs_on(self, view: View) -> Any:
        with torch.inference_mode():
            outputs = self.dense(self.images("search", view)[:1])
        return mapped(lambda y: y.to("meta"), outputs)

    def comparable(self, view: View) -> bool:
        """Whether outputs on a view have the shapes of those for whole images, or are boxes."""
        outputs = self._outputs_on(view)
        if self.covers:
            outputs = view.restored(outputs, self.full, self._whole)
        return alike(outputs, self._whole)

    def check_targets(self) -> None:
        """Raise ValueError or warn where the network awake does no better than who guesses."""
        targets = self._labels["search"]
        if targets is not None:
            outputs = self._reference("search").logits()
            counts = self._task.count(outputs, outputs, targets)
            check_targets(self._task, counts, looked_at(self._task, outputs), targets)

    # --- networks and costs ---------------------------------------------------------------------

    def net(self, recipe: Sleep, number_format: str | None = None) -> DrowsyNet:
        """The network as a recipe wants it, made once for all that want the same."""
        key = (_network_key(recipe), number_format)
        if key not in self._nets:
            self._nets[key], _ = self._made(recipe, number_format)
        return self._nets[key]

    def _made(self, recipe: Sleep, number_format: str | None = None) -> tuple[DrowsyNet, list[str]]:
        conditions = self.conditions
        like = next(self._model.parameters())
        example = self._images["search"][:1].to(like.device, like.dtype)
        net, fitted = made(self._model, example, recipe, number_format)
        net.to(device=conditions.device)
        if number_format is None:
            net.to(dtype=conditions.dtype)
        if recipe.fill == "stencil":
            images = _like(net, self._images["calibration"])
            calibrate_stencils(net, images, batch=conditions.batch)
            net.set(0, fill="stencil")
        return net, fitted

    def multiplies(self, size: Size) -> int:
        """Multiplications of all convolutions for one image of a size, nobody asleep."""
        return self._cost(self.dense, size).convolutions.multiplies

    def spared(self, size: Size) -> float:
        """Fraction of the multiplications that scaling images to ``size`` saves."""
        return 1 - self.multiplies(size) / self.multiplies(self.full)

    def awake_at(self, view: View, number_format: str | None = None) -> Operation:
        """The network on a view, nobody asleep."""
        net, saving = self.net(_AWAKE, number_format), self.spared(view.size)
        return Operation(net, view, self.awake, saving, number_format=number_format)

    def scaled(self, size: Size) -> View:
        """Whole images at a size."""
        return View(self.full, self.full, size, self.conditions.interpolation)

    def cropped(self, size: Size) -> View:
        """The middle of the images at full resolution."""
        return View(self.full, size, size, self.conditions.interpolation)

    def left_to_sleep(self, size: Size, saving: float) -> float:
        """Fraction of the multiplications at ``size`` that is to sleep, to save ``saving`` of all.

        A multiplication asleep is one of those that are left at this size.
        """
        return 1 - (1 - saving) / (1 - self.spared(size))

    def asleep(self, net: DrowsyNet, size: Size, setting: Setting) -> float:
        """Fraction of the multiplications at ``size`` that a setting saves."""
        rates = {name: j / net.k for name, j in zip(net.layers, setting, strict=True)}
        return saving_of(rates, layer_shares(self._cost(net, size).convolutions))

    def resolution_for(self, saving: float) -> Size | None:
        """The largest size that saves at least ``saving``; None if none does."""
        return resolution_for(saving, self.multiplies, self.full)

    def _cost(self, net: DrowsyNet, size: Size) -> NetworkCost:
        """Multiplications for one image of a size."""
        if (net, size) not in self._costs:
            if net not in self._shadows:
                self._shadows[net] = shadow(net, self.image)
            self._costs[net, size] = network_cost(self._shadows[net], (self.image[0], *size))
        return self._costs[net, size]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights and of the images reported on, with their labels."""
        weights = fingerprint_state(self.dense.state_dict())
        return {"weights_sha256": weights, "data_sha256": self._reference("report").data}

    # --- measuring ------------------------------------------------------------------------------

    def measure(self, operation: Operation, split: str = "report") -> OperatingPoint:
        """What an operation does on the images of a split; every seed counts on ``report``."""
        return self._measured(operation, split)[0]

    def values(
        self, operation: Operation, split: str = "report", metric: str | None = None
    ) -> np.ndarray:
        """A metric, or the objective, of every image of a split: ``[images]``, means over seeds."""
        return self._measured(operation, split)[1][metric or self.objective]

    def calibration(self, operation: Operation) -> Calibration | None:
        """The corrections that an operation is measured with; None for none."""
        engine = self._engine(operation)
        if engine is None or not any(operation.setting):
            return None
        return engine.calibration(operation.net, operation.setting)

    def _measured(self, operation: Operation, split: str) -> _Measured:
        """An operation's point on a split and every metric of every image; measured once."""
        if (operation, split) not in self._points:
            measurer = self._measurer_of(operation, split)
            counts = measurer.counts([operation.setting], split)[operation.setting]
            values = {
                name: np.mean([each.values[name] for each in counts], axis=0)
                for name in counts[0].values
            }
            self._points[operation, split] = measurer.point(operation.setting, counts), values
        return self._points[operation, split]

    def _measurer_of(self, operation: Operation, split: str) -> Measurer:
        # Without sleep nothing is random.
        random = split == "report" and any(operation.setting)
        seeds = self.conditions.seeds if random else self.conditions.seeds[:1]
        engine = self._engine(operation)
        images = self.images(split, operation.view, operation.net)
        return self._measurer(operation.net, images, split, seeds, engine, operation.view)

    def is_finite(self, operation: Operation, split: str = "search") -> bool:
        """Whether what an operation puts out has figures: no NaN, as of too few pixels it may be.

        Awake on whole images it has, or nothing can be said of any.
        """
        try:
            self._measured(operation, split)
        except NotFinite:
            return False
        return True

    def quality(self, operation: Operation) -> float:
        """How good an operation is on the search images, to choose among several."""
        return float(self.qualities(operation).mean())

    def qualities(self, operation: Operation) -> np.ndarray:
        """The same of every image, ``[images]``."""
        values = self._measured(operation, "search")[1]
        if self.graded:
            return values[self.objective]
        # Without labels, what is finer than how often outputs agree.
        return values["top1"] + values["top5"] if self.labelled else -values["divergence"]

    @property
    def graded(self) -> bool:
        """Whether quality is a matter of degree (``Task.graded``)."""
        return self._task.graded

    @property
    def quick(self) -> int:
        """How many of the search images, the first ones, a search measures on at most.

        Half of them, where they are few and quality is told by the image: the others judge it.
        """
        count = len(self._images["search"])
        return min(SEARCH_IMAGES, max(count // 2, 1) if self.graded else count)

    def damage(self, operation: Operation) -> float:
        """Mean damage on the search images, to choose among settings on one view."""
        return float(self._measured(operation, "search")[1][self._task.damage].mean())

    def search(
        self,
        recipe: Sleep,
        budget: int | None = None,
        few: int | None = None,
        wanted: Iterable[float] | None = None,
    ) -> dict[Setting, float]:
        """Settings measured on the search images at full resolution, and their divergence.

        Layers rank alike at every resolution, so that one search serves them all, and all recipes
        that differ in nothing else: it looks for the savings that each size leaves to sleep.

        Args:
            budget: settings that the first search for it measures; None for what conditions say.
            few: images that it measures on, ``quick`` of them at most; None for so many.
            wanted: savings of the convolutions at full resolution that the first search looks for;
                None for those that the recipes sharing it may ask for.
        """
        recipe = self._searching(recipe)
        if recipe not in self._searched:
            engine, split = None, "search"
            few = few or self.quick
            if recipe.correction != "none":
                # What a correction costs at every setting, few images make up for.
                images = self.images("calibration")[: min(SEARCH_CALIBRATION, 2 * few)]
                engine = Corrected(images)
            if recipe.correction != "none" or self.graded:
                split = self._first(few)
            images = self.images(split)
            measurer = self._measurer(
                self.net(recipe), images, split, self.conditions.seeds[:1], engine
            )
            # A measurer's savings are of the whole network.
            cost = self._cost(measurer.net, self.full)
            part = cost.convolutions.multiplies / cost.multiplies
            wanted = self._goals(recipe) if wanted is None else wanted
            goals = sorted({part * round(goal, 6) for goal in wanted})
            points = search_at(measurer, goals, budget or self.conditions.budget)
            damage = self._task.damage
            self._searched[recipe] = {s: p.figure(damage) or 0.0 for s, p in points.items()}
        return self._searched[recipe]

    def _searching(self, recipe: Sleep) -> Sleep:
        """What decides a search: equal for recipes that share one.

        Where quality is graded no correction does: without, ten times as many settings are tried.
        """
        shared = _shared(recipe)
        return replace(shared, correction="none") if self.graded else shared

    def _first(self, count: int) -> str:
        """The first of the search images, as a split."""
        split, labels = f"first {count}", self._labels["search"]
        self._images[split] = self._images["search"][:count]
        self._labels[split] = None if labels is None else labels[:count]
        return split

    def _goals(self, recipe: Sleep) -> set[float]:
        """Savings at full resolution that a recipe and those of the same search may ask for."""
        sharing = [e for e in self._sleepers if self._searching(e) == self._searching(recipe)]
        parts = {part for each in (recipe, *sharing) for part in each.scaling}
        goals = set()
        for saving, part in itertools.product(self.conditions.savings, parts):
            size = self.resolution_for(part * saving)
            if size is not None and self.spared(size) < saving:
                goals.add(self.left_to_sleep(size, saving))
        return goals

    def _engine(self, operation: Operation) -> Corrected | None:
        if operation.correction == "none":
            return None
        key = (operation.correction, operation.view, operation.number_format)
        if key not in self._engines:
            images = self.images("calibration", operation.view, operation.net)
            reconstruct = operation.correction == "reconstruct"
            batch = BATCH
            if reconstruct and self.conditions.mirrored:
                # In chunks of whole pairs: what chooses a ridge holds no image that was fitted to.
                batch = 2 * chunk_size(len(images), BATCH // 2)
                images = torch.stack([images, images.flip(3)], 1).flatten(0, 1)
            self._engines[key] = Corrected(images, reconstruct=reconstruct, batch=batch)
        return self._engines[key]

    def images(self, split: str, view: View | None = None, net: DrowsyNet | None = None) -> Tensor:
        """Images of a split, as a network is shown them; None is all of them, and ``dense``."""
        images = self._images[split] if view is None else view(self._images[split])
        return _like(self.dense if net is None else net, images)

    def _measurer(
        self,
        net: DrowsyNet,
        images: Tensor,
        split: str,
        seeds: Sequence[int],
        engine: Corrected | None = None,
        view: View | None = None,
    ) -> Measurer:
        task = self._task
        own = self._images[split].dtype
        shown = view if self.covers and view is not None and not view.is_whole else None
        if shown is not None or images.dtype != own:
            task = replace(task, take=partial(_as_given, task.take, shown, self._whole, own))
        return Measurer(
            net,
            images,
            self._labels[split],
            task=task,
            seeds=seeds,
            store=self._store,
            batch=self.conditions.batch,
            reference=self._reference(split),
            engine=engine,
            progress=self.conditions.progress,
        )

    def _reference(self, split: str) -> Reference:
        """The network as it is, on images as they are."""
        if split not in self._references:

            @functools.cache
            def outputs() -> Any:
                images = self.images(split)
                batch, task = self.conditions.batch, self._task
                return Evaluator(self.dense, images, batch=batch, task=task).outputs()

            self._references[split] = Reference(
                fingerprint_network(self.dense),
                # As given: outputs are compared in the dtype of the images.
                fingerprint_data(self._images[split], self._labels[split]),
                outputs,
            )
        return self._references[split]


def _as_given(
    take: Callable[[Any, Tensor], Any],
    view: View | None,
    whole: Any,
    dtype: torch.dtype,
    output: Any,
    images: Tensor,
) -> Any:
    """What a task takes of a network's output as a knob gives it.

    In the dtype of the pictures, and at a view as large as for all pixels.
    """
    output = mapped(lambda y: y.to(dtype) if y.dtype == images.dtype else y, output)
    if view is not None:
        output = view.restored(output, view.full, whole)
    return take(output, images)


def _placed(labels: Any, conditions: Conditions) -> Any:
    return labels.to(conditions.device) if isinstance(labels, Tensor) else labels


def _like(net: DrowsyNet, images: Tensor) -> Tensor:
    """Images as a network takes them."""
    weight = next(iter(net.layers.values())).weight
    images = images.to(device=weight.device, dtype=weight.dtype)
    return images.contiguous(memory_format=torch.channels_last)


def _network_key(recipe: Sleep) -> Sleep:
    """What decides a network: equal for recipes that share one."""
    return replace(_shared(recipe), rates="uniform", correction="none")


def _shared(recipe: Sleep) -> Sleep:
    """What a recipe has in common with others: all but what it is called and how it scales."""
    return replace(recipe, name="", scaling=(0.0,), cropped=False)
