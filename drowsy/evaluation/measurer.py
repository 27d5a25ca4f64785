"""Measure settings, resumably.

``Measurer`` evaluates settings over several seeds and puts every result into the store at once;
whatever the store holds already is not evaluated again.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from drowsy._optional import require
from drowsy.energy import Meter, measured_gains, profile
from drowsy.evaluation.arguments import check_count, check_seeds, costs_on, gather
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.engine import Engine, InProcess, Result, Workload
from drowsy.evaluation.evaluator import task_of
from drowsy.evaluation.identity import (
    Context,
    LayerRecord,
    fingerprint_data,
    fingerprint_network,
    fingerprint_state,
)
from drowsy.evaluation.metrics import Counts, Task, Values
from drowsy.evaluation.store import Store, open_store
from drowsy.graph.stages import find_ties
from drowsy.knob.costs import add_gains, layer_shares, multiplication_gains, saving
from drowsy.knob.frontier import Frontier, check_cost
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting
from drowsy.knob.tradeoffs import undominated
from drowsy.network.net import DrowsyNet, check_network
from drowsy.sleep import source_text

if TYPE_CHECKING:
    from drowsy.network.calibration import Correction


@dataclass(frozen=True)
class Reference:
    """What agreement, divergence and error compare with, if not with the network itself at rate 0.

    Args:
        network, data: ``fingerprint_network`` and ``fingerprint_data`` of its images.
        logits: computes its outputs, as ``Evaluator.outputs``; called only where something is
            evaluated.
    """

    network: str
    data: str
    logits: Callable[[], Any]


class Measurer:
    """Operating points of a network on a set of images.

    Args:
        net: a converted network. Its fills and grains count, and the correction in force; its rates
            do not.
        images: float ``[N, C, H, W]``, as the network takes them, where the network is; or a loader
            of such batches or of ``(batch, labels)``, or a data set of ``(image, label)``, all of
            which is read into memory.
        labels: integers ``[N]``, or what else the outputs should be (see ``task``); None for those
            of a loader or data set. Without any, only what compares with rate 0 is measured.
        task: what outputs and labels are, and what is measured of them: a name
            (``drowsy.evaluation.tasks.NAMES``), ``auto`` by the outputs' form, a function
            ``metric(outputs, awake_outputs, targets)`` that gives a number of each image, higher is
            better, or a ``Task``. None is classification.
        seeds: of the sleep maps, each once; a point's figures are means over them.
        store: where results go at once: a store, or a path, which is open for as long as the
            measurer is there; None keeps them in memory.
        batch: images per forward pass.
        engine: where settings are evaluated; None is ``InProcess()``.
        cost: what searches trade accuracy for: ``macs``, ``latency`` or ``joules``. These two are
            measured here, on a batch of the images, with the network where it is: of each layer
            alone to guide a search, and of what seems optimal in ``frontier``.
        forward: what is timed for that, by default ``net``; as for ``drowsy.energy.profile``.
        reference: what agreement, divergence and error compare with; None for the network at rate
            0.
        progress: show progress bars (needs tqdm).

    Raises:
        TypeError, ValueError: a network, images or labels, seeds, a batch, a store, an engine, a
            cost or a task that is not allowed; images that the network does not take.

    Attributes:
        task: the ``Task``; its text says what ``auto`` took it for, and by what.
    """

    def __init__(
        self,
        net: DrowsyNet,
        images: Tensor | Iterable[Any],
        labels: Any = None,
        *,
        task: Task | str | Callable[[Any, Any, Any], Any] | None = None,
        seeds: Sequence[int] = (0,),
        store: Store | str | os.PathLike[str] | None = None,
        batch: int = 50,
        engine: Engine | None = None,
        cost: str = "macs",
        forward: Callable[[Tensor], object] | None = None,
        reference: Reference | None = None,
        progress: bool = False,
    ) -> None:
        check_network(net)
        images, labels = gather(net, images, labels)
        check_cost(cost)
        check_count("batch", batch)
        if engine is not None and not callable(getattr(engine, "evaluate", None)):
            raise TypeError(f"engine: got {engine!r}, allowed: an engine, as drowsy.RayEngine()")
        if forward is not None and not callable(forward):
            raise TypeError(f"forward: got {forward!r}, allowed: a function of a batch of images")
        self.net, self.images = net, images
        self.seeds, self.progress = check_seeds(seeds), progress
        self._parts: dict[range, Workload] = {}
        self.engine = engine if engine is not None else InProcess()
        self.store = open_store(store)
        if self.store is not store:
            weakref.finalize(self, self.store.close)
        self.names = list(net.layers)
        shares = layer_shares(costs_on(net, images))
        net.settle(images[:1])
        self.task = task_of(net, images, labels, CLASSIFICATION if task is None else task)
        labels = None if labels is None else self.task.check(labels, images)
        self.work = Workload(net, images, labels, batch, task=self.task)
        # A layer that does not run on such images saves nothing.
        self.shares = {name: shares.get(name, 0.0) for name in self.names}
        self.cost, self._forward = cost, forward
        self._profiled: dict[Setting, OperatingPoint] = {}
        self._meter = Meter(str(images.device)) if cost == "joules" else None
        self._data = fingerprint_data(images, labels)
        self._versions = self._versions_of_data()
        self._steady: str | None = None
        self._tables: dict[str, tuple[Tensor, str]] = {}
        self._reference, self._facts = reference, dict(getattr(self.engine, "facts", {}))
        self._corrected: tuple[Mapping[str, Correction], str] = {}, ""

    @functools.cached_property
    def gains(self) -> np.ndarray:
        """``[layers, k]``: fraction of the cost that each layer saves; measured when first read."""
        if self.cost == "macs":
            return multiplication_gains(self.shares, self.net.k)
        return measured_gains(
            self.net, self._timed, self.cost, meter=self._meter, forward=self._forward
        )

    def frontier(
        self, points: Mapping[Setting, OperatingPoint], objective: str | None = None
    ) -> Frontier:
        """The optimal ones of these points; latency or joules are measured of what seems so.

        Args:
            points: as measured.
            objective: None for the task's own: of classification top1, or without labels
                agreement.
        """
        objective = self.check_objective(objective)
        if self.cost == "macs":
            return Frontier(points.values(), objective, source=self._source)
        settings = list(points)
        loss = np.array([-point.figure(objective) for point in points.values()])
        chosen = {settings[i] for i in undominated(add_gains(self.gains, settings), loss)}
        # Losses and savings count from rate 0.
        chosen |= {(0,) * len(self.names)} & points.keys()
        new = [setting for setting in points if setting in chosen - self._profiled.keys()]
        if new:
            measured = profile(
                self.net,
                self._timed,
                [points[setting] for setting in new],
                meter=self._meter,
                forward=self._forward,
            )
            self._profiled |= zip(new, measured, strict=True)
        optimal = [self._profiled[setting] for setting in points if setting in chosen]
        return Frontier(optimal, objective, self.cost, source=self._source)

    @property
    def _source(self) -> str | None:
        """Text of the source of all layers; None where they have several."""
        sources = {source_text(layer.sleep.source) for layer in self.net.layers.values()}
        return sources.pop() if len(sources) == 1 else None

    @property
    def objectives(self) -> list[str]:
        """Metrics that a frontier can be optimal in, as they can be measured here."""
        return self.task.objectives(self.work.labels is not None)

    @property
    def damage(self) -> str:
        """The metric that searches go by: lower is better, 0 at rate 0."""
        return self.task.damage

    def check_objective(self, objective: str | None) -> str:
        """An objective that can be measured here, the task's own for None."""
        allowed = self.objectives
        if objective is None:
            return self.task.quality(self.work.labels is not None)
        if objective not in allowed:
            raise ValueError(
                f"objective: got {objective!r}, allowed: {', '.join(allowed)}"
                + ("" if self.work.labels is not None else ", as there are no labels")
            )
        return objective

    @functools.cached_property
    def free(self) -> list[int]:
        """Numbers of the layers that searches let sleep: all but those of ``net.resting``."""
        return [n for n, name in enumerate(self.names) if name not in self.net.resting]

    @functools.cached_property
    def ties(self) -> list[list[int]]:
        """Free layers that searches give one rate, by number: see ``drowsy.find_ties``."""
        layers = self.net.layers
        # Layers are tied only by a map that they share.
        if len({layer.sleep.stream for layer in layers.values()}) == len(layers):
            return [[number] for number in self.free]
        numbers = {self.names[number]: number for number in self.free}
        ties = find_ties(self.net, self.images[:1])
        free = ([numbers[name] for name in tie if name in numbers] for tie in ties)
        return [tie for tie in free if tie]

    @property
    def _timed(self) -> Tensor:
        return self.images[: self.work.batch]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights and of the images with their labels."""
        weights = fingerprint_state(self.net.state_dict())
        return {"weights_sha256": weights, "data_sha256": self._data}

    def context(self, seed: int, images: range | None = None) -> Context:
        """What, besides the rates, decides a result of a seed; see ``contexts``."""
        return replace(next(iter(self.contexts(images).values())), seed=seed)

    def contexts(self, images: range | None = None) -> dict[int, Context]:
        """What, besides the rates, decides the results of each seed, as it is now.

        Args:
            images: a stretch of them; None for all.

        Raises:
            ValueError: images or labels have been changed in place.
        """
        if self._versions_of_data() != self._versions:
            raise ValueError(
                "images: they or their labels have been changed in place, allowed: a new Measurer "
                "for other images"
            )
        layers = {
            name: LayerRecord.of(layer, self._table(name, layer.table)).stored()
            for name, layer in self.net.layers.items()
        }
        configuration = {"k": self.net.k, "layers": layers, **self._facts}
        if self.task.told is not None:
            configuration["task"] = self.task.told
        if self.net.corrected:
            configuration["corrected"] = self._correction(self.net.corrected)
        if images is not None:
            configuration["images"] = [images.start, images.stop]
        network = self._steady or fingerprint_network(self.net)
        compared = self._reference
        if compared and (compared.network, compared.data) != (network, self._data):
            configuration["reference"] = [compared.network, compared.data]
        return {seed: Context(network, self._data, configuration, seed) for seed in self.seeds}

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Promise that a block does not change the network: it is fingerprinted once."""
        before = self._steady
        self._steady = before or fingerprint_network(self.net)
        try:
            yield
        finally:
            self._steady = before

    def _versions_of_data(self) -> list[int | None]:
        """What grows with every change in place, where torch counts them."""
        labels = self.work.labels
        entries = labels if isinstance(labels, list) else [labels]
        inner = [each.values() if isinstance(each, Mapping) else [each] for each in entries]
        data = [self.work.images, *itertools.chain.from_iterable(inner)]
        tensors = [each for each in data if isinstance(each, Tensor)]
        return [None if each.is_inference() else each._version for each in tensors]

    def _correction(self, corrections: Mapping[str, Correction]) -> str:
        """Fingerprint of the corrections in force."""
        if self._corrected[0] is not corrections:
            tensors = {
                f"{name}/{part}": tensor
                for name, each in corrections.items()
                for part, tensor in vars(each).items()
                if tensor is not None
            }
            self._corrected = corrections, fingerprint_state(tensors)
        return self._corrected[1]

    def _table(self, name: str, table: Tensor | None) -> str | None:
        """Fingerprint of the table that a layer's fill reads; None where it reads none."""
        if table is None:
            return None
        if name not in self._tables or self._tables[name][0] is not table:
            self._tables[name] = table, fingerprint_state({"table": table})
        return self._tables[name][1]

    def measure(
        self, settings: Iterable[Setting], label: str = "settings", values: bool = True
    ) -> dict[Setting, OperatingPoint]:
        """Operating points of these settings, evaluated where the store does not know them.

        Args:
            values: whether the store keeps the single images' values of what is evaluated, too:
                1 to 4 bytes for each image and metric.
        """
        counts = self.counts(settings, label, values=values)
        return {setting: self.point(setting, each) for setting, each in counts.items()}

    def values(
        self, settings: Iterable[Setting], label: str = "settings"
    ) -> dict[Setting, list[Values]]:
        """Every metric's values of the single images, for each seed.

        Results that the store holds without them are evaluated again.
        """
        counts = self.counts(settings, label)
        lacking = [s for s, each in counts.items() if not all(one.values for one in each)]
        if lacking:
            known: dict[int, dict[Setting, Counts]] = {seed: {} for seed in self.seeds}
            counts |= self._counts(lacking, label, self.contexts(), known)
        return {setting: [one.values for one in each] for setting, each in counts.items()}

    def counts(
        self,
        settings: Iterable[Setting],
        label: str = "settings",
        images: range | None = None,
        values: bool = True,
    ) -> dict[Setting, list[Counts]]:
        """Counts for each seed; on all images, or on a stretch of them, which is stored apart.

        They have the single images' values where the store does and ``values`` is set.
        """
        contexts = self.contexts(images)
        known = {seed: self.store.results(context, values) for seed, context in contexts.items()}
        wanted = list(dict.fromkeys(settings))
        return self._counts(wanted, label, contexts, known, images, values)

    def _counts(
        self,
        wanted: Sequence[Setting],
        label: str,
        contexts: Mapping[int, Context],
        known: dict[int, dict[Setting, Counts]],
        images: range | None = None,
        values: bool = True,
    ) -> dict[Setting, list[Counts]]:
        """Counts for each seed, evaluated where they are not known."""
        missing = {
            seed: todo
            for seed in self.seeds
            if (todo := [setting for setting in wanted if setting not in known[seed]])
        }
        total = sum(map(len, missing.values()))
        if total:
            results = self.engine.evaluate(self._part(images), missing)
            for seed, setting, counts in self._bar(results, total, label):
                kept = counts if values else replace(counts, values={})
                self.store.put(contexts[seed], setting, kept)
                known[seed][setting] = kept
            self._mind_changes(contexts)
        return {setting: [known[seed][setting] for seed in self.seeds] for setting in wanted}

    def _mind_changes(self, contexts: Mapping[int, Context]) -> None:
        """Warn where an evaluation has changed the network, whose results are then lost to it."""
        (network,) = {context.network for context in contexts.values()}
        if self._steady is None and fingerprint_network(self.net) != network:
            warnings.warn(
                "net: it changes while it runs (a buffer or an attribute that its forward writes), "
                "so that the store will not know these results, nor will they repeat",
                stacklevel=5,
            )

    def known(self, images: range | None = None) -> set[Setting]:
        """Settings that the store holds for every seed."""
        each = [self.store.results(context).keys() for context in self.contexts(images).values()]
        return set.intersection(*map(set, each))

    def keep(self, setting: Setting, counts: Sequence[Counts]) -> None:
        """Store counts of all images that were taken on stretches of them."""
        for context, each in zip(self.contexts().values(), counts, strict=True):
            self.store.put(context, setting, each)

    def saving(self, setting: Setting) -> float:
        """Fraction of the network's multiplications saved."""
        rates = {name: j / self.net.k for name, j in zip(self.names, setting, strict=True)}
        return saving(rates, self.shares)

    def _part(self, images: range | None) -> Workload:
        if self._reference is not None and self.work.baseline is None:
            self.work = replace(self.work, baseline=self._reference.logits())
        if images is None:
            return self.work
        # Kept, so that an engine knows images that it has seen.
        if images not in self._parts:
            self._parts[images] = self.work.part(images)
        return self._parts[images]

    def _bar(self, results: Iterable[Result], total: int, label: str) -> Iterable[Result]:
        if not self.progress:
            return results
        tqdm = require("tqdm", "search").tqdm
        return tqdm(results, total=total, desc=label, unit="point", smoothing=0.05)

    def point(self, setting: Setting, counts: Sequence[Counts]) -> OperatingPoint:
        """The operating point that has these counts, one for each seed."""
        rates = [each.rates() for each in counts]
        mean: dict[str, float] = {}
        spread: dict[str, float] = {}
        for name in rates[0]:
            values = [value for rate in rates if (value := rate[name]) is not None]
            if values:
                mean[name] = statistics.fmean(values)
            if len(values) > 1:
                spread[name] = statistics.stdev(values)
        return OperatingPoint(
            schedule=self.net.schedule_of(setting),
            saving=self.saving(setting),
            spread=spread or None,
            images=counts[0].images,
            seeds=self.seeds,
        ).with_figures(mean)
