"""Measure settings, resumably, and search for the Pareto-optimal ones.

``Measurer`` evaluates settings over several seeds and puts every result into the store at once;
whatever the store holds already is not evaluated again. The searches below only choose settings,
many at a time where they can, since the evaluator computes what settings share only once.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from drowsy._optional import require
from drowsy.energy import Meter, measured_gains, profile
from drowsy.engine import Engine, InProcess, Result, Workload
from drowsy.evaluate import Counts, Setting, check_images, check_labels
from drowsy.knob.costs import (
    ROUNDING,
    add_gains,
    layer_costs,
    layer_shares,
    multiplication_gains,
    saving,
)
from drowsy.knob.frontier import Frontier, OperatingPoint, check_cost
from drowsy.net import DrowsyNet, check_network
from drowsy.race import Race
from drowsy.sleep import stored_text
from drowsy.stages import find_ties
from drowsy.store import Context, Store, fingerprint_data, fingerprint_state

if TYPE_CHECKING:
    from drowsy.calibrate import Correction

METHODS = ("auto", "exhaustive", "additive", "greedy", "nsga2", "tpe")
# "auto" walks every setting up to this many; beyond it, the additive search.
EXHAUSTIVE_LIMIT = 40_000
# Without a budget, a search measures as many settings beyond the single layers and uniform rates.
REFINEMENTS = 256
# How a layer's damage grows with its rate, below and above 1/2: powers that fit interpolated and
# corrected lattices (at 7/8, 9 to 18 times the damage of 1/2 on three networks).
_GROWTH_BELOW, _GROWTH_ABOVE = 1.0, 4.0
# Settings measured before the next ones are chosen: exchanges, and generations of Optuna's methods.
EXCHANGES = 16
GENERATION = 32


@dataclass(frozen=True)
class Reference:
    """What agreement and divergence compare with, where that is not the network itself at rate 0.

    Args:
        weights, data: SHA-256 of the network's weights and of its images.
        logits: computes its logits ``[N, classes]``; called only where something is evaluated.
    """

    weights: str
    data: str
    logits: Callable[[], Tensor]


class Measurer:
    """Operating points of a network on a set of images.

    Args:
        net: a converted network. Its fills and grains count, and the correction in force; its rates
            do not.
        images: float ``[N, C, H, W]``, as the network takes them.
        labels: int64 ``[N]``, or None: then only agreement with rate 0 is measured.
        seeds: of the sleep maps; a point's figures are means over them.
        store: where results go at once; None keeps them in memory.
        batch: images per forward pass.
        engine: where settings are evaluated; None is ``InProcess()``.
        cost: what searches trade accuracy for: ``macs``, ``latency`` or ``joules``. These two are
            measured here, on a batch of the images, with the network where it is: of each layer
            alone to guide a search, and of what seems optimal in ``frontier``.
        forward: what is timed for that, by default ``net``; as for ``drowsy.energy.profile``.
        reference: what agreement and divergence compare with; None for the network at rate 0.
        progress: show progress bars (needs tqdm).
    """

    def __init__(
        self,
        net: DrowsyNet,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        seeds: Sequence[int] = (0,),
        store: Store | None = None,
        batch: int = 50,
        engine: Engine | None = None,
        cost: str = "macs",
        forward: Callable[[Tensor], object] | None = None,
        reference: Reference | None = None,
        progress: bool = False,
    ) -> None:
        check_network(net)
        check_images(images)
        check_labels(labels, images)
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds: got {tuple(seeds)}, allowed: at least one, each once")
        self.net, self.images = net, images
        self.seeds, self.progress = tuple(seeds), progress
        self.work = Workload(net, images, labels, batch)
        self._parts: dict[range, Workload] = {}
        self.engine = engine if engine is not None else InProcess()
        self.store = store if store is not None else Store(":memory:")
        self.names = list(net.layers)
        shares = layer_shares(layer_costs(net, images.shape[1:]))
        self.shares = {name: shares[name] for name in self.names}
        check_cost(cost)
        self.cost, self._forward = cost, forward
        self._profiled: dict[Setting, OperatingPoint] = {}
        self._meter = Meter(str(images.device)) if cost == "joules" else None
        self._weights = fingerprint_state(net.state_dict())
        self._data = fingerprint_data(images, labels)
        self._tables: dict[str, tuple[Tensor, str]] = {}
        self._reference, self._facts = reference, dict(getattr(self.engine, "facts", {}))
        self._corrected: tuple[Mapping[str, Correction], str] = {}, ""
        if reference is not None and (reference.weights, reference.data) != (
            self._weights,
            self._data,
        ):
            self._facts["reference"] = [reference.weights, reference.data]

    @functools.cached_property
    def gains(self) -> np.ndarray:
        """``[layers, k]``: fraction of the cost that each layer saves; measured when first read."""
        if self.cost == "macs":
            return multiplication_gains(self.shares, self.net.k)
        return measured_gains(
            self.net, self._timed, self.cost, meter=self._meter, forward=self._forward
        )

    def frontier(
        self, points: Mapping[Setting, OperatingPoint], objective: str = "top1"
    ) -> Frontier:
        """The optimal ones of these points; latency or joules are measured of what seems so."""
        if self.cost == "macs":
            return Frontier(points.values(), objective)
        settings = list(points)
        loss = np.array([-getattr(point, objective) for point in points.values()])
        chosen = {settings[i] for i in _undominated(add_gains(self.gains, settings), loss)}
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
        return Frontier(optimal, objective, self.cost)

    @functools.cached_property
    def ties(self) -> list[list[int]]:
        """Layers that searches give one rate, by number: see ``drowsy.stages.find_ties``."""
        layers = self.net.layers
        # Layers are tied only by a map that they share.
        if len({layer.sleep.stream for layer in layers.values()}) == len(layers):
            return [[number] for number in range(len(layers))]
        ties = find_ties(self.net, self.images[:1])
        return [[self.names.index(name) for name in tie] for tie in ties]

    @property
    def _timed(self) -> Tensor:
        return self.images[: self.work.batch]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights and of the images with their labels."""
        return {"weights_sha256": self._weights, "data_sha256": self._data}

    def context(self, seed: int, images: range | None = None) -> Context:
        """What, besides the rates, decides a result; of all images, or of a stretch of them."""
        layers = {
            name: [stored_text(layer.sleep.source), str(layer.sleep.grain), layer.fill]
            # A stream is told where it is not the layer's own.
            + [layer.sleep.stream] * (layer.sleep.stream != layer.index or layer.sleep.phase > 0)
            + [layer.sleep.phase] * (layer.sleep.phase > 0)
            + self._table(name, layer.table)
            for name, layer in self.net.layers.items()
        }
        configuration = {"k": self.net.k, "layers": layers, **self._facts}
        if self.net.corrected:
            configuration["corrected"] = self._correction(self.net.corrected)
        if images is not None:
            configuration["images"] = [images.start, images.stop]
        return Context(self._weights, self._data, configuration, seed)

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

    def _table(self, name: str, table: Tensor | None) -> list[Any]:
        """Fingerprint of the table that a layer's fill reads; empty where it reads none."""
        if table is None:
            return []
        if name not in self._tables or self._tables[name][0] is not table:
            self._tables[name] = table, fingerprint_state({"table": table})
        return [self._tables[name][1]]

    def measure(
        self, settings: Iterable[Setting], label: str = "settings"
    ) -> dict[Setting, OperatingPoint]:
        """Operating points of these settings, evaluated where the store does not know them."""
        counts = self.counts(settings, label)
        return {setting: self.point(setting, each) for setting, each in counts.items()}

    def counts(
        self, settings: Iterable[Setting], label: str = "settings", images: range | None = None
    ) -> dict[Setting, list[Counts]]:
        """Counts for each seed; on all images, or on a stretch of them, which is stored apart."""
        wanted = list(dict.fromkeys(settings))
        contexts = {seed: self.context(seed, images) for seed in self.seeds}
        known = {seed: self.store.results(context) for seed, context in contexts.items()}
        missing = {
            seed: todo
            for seed in self.seeds
            if (todo := [setting for setting in wanted if setting not in known[seed]])
        }
        total = sum(map(len, missing.values()))
        if total:
            results = self.engine.evaluate(self._part(images), missing)
            for seed, setting, counts in self._bar(results, total, label):
                self.store.put(contexts[seed], setting, counts)
                known[seed][setting] = counts
        return {setting: [known[seed][setting] for seed in self.seeds] for setting in wanted}

    def known(self, images: range | None = None) -> set[Setting]:
        """Settings that the store holds for every seed."""
        each = [self.store.results(self.context(seed, images)).keys() for seed in self.seeds]
        return set.intersection(*map(set, each))

    def keep(self, setting: Setting, counts: Sequence[Counts]) -> None:
        """Store counts of all images that were taken on stretches of them."""
        for seed, each in zip(self.seeds, counts, strict=True):
            self.store.put(self.context(seed), setting, each)

    def saving(self, setting: Setting) -> float:
        """Fraction of the network's convolution multiplications saved."""
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
        mean: dict[str, float | None] = {}
        spread: dict[str, float] = {}
        for name in ("top1", "top5", "agreement", "divergence"):
            values = [value for rate in rates if (value := rate[name]) is not None]
            mean[name] = statistics.fmean(values) if values else None
            if len(values) > 1:
                spread[name] = statistics.stdev(values)
        return OperatingPoint(
            schedule=self.net.schedule_of(setting),
            saving=self.saving(setting),
            top1=mean["top1"],
            top5=mean["top5"],
            agreement=mean["agreement"],
            divergence=mean["divergence"],
            spread=spread or None,
            images=counts[0].images,
            seeds=self.seeds,
        )


# --- settings ------------------------------------------------------------------------------------


def uniform_settings(layers: int, k: int) -> list[Setting]:
    """The same rate in every layer: ``0, 1/k .. (k-1)/k``."""
    return [(j,) * layers for j in range(k)]


def single_settings(layers: int, k: int) -> list[Setting]:
    """One layer asleep at a time (Fig. 4), and rate 0."""
    zero = (0,) * layers
    return [zero] + [
        (*zero[:layer], j, *zero[layer + 1 :]) for layer in range(layers) for j in range(1, k)
    ]


def all_settings(layers: int, k: int) -> list[Setting]:
    """Every setting of Algorithm 1: ``k ** layers`` of them."""
    return list(itertools.product(range(k), repeat=layers))


def additive_settings(
    damage: np.ndarray, gains: np.ndarray, count: int | None = None, labels: int = 1 << 14
) -> list[Setting]:
    """Settings that would be optimal if layers' damages added up, by increasing saving.

    A multiple-choice knapsack, solved by dynamic programming over the layers: of all settings of
    the first layers those stay that none other matches in saving and damage, so settings off the
    convex hull, which no price of a multiplication would choose, are found too. Exact up to
    ``labels`` partial settings; of more, the least damage of each ``1/labels`` of saving stays.

    Args:
        damage: ``[layers, k]``, harm of each layer alone at each rate; ``damage[:, 0] == 0``.
        gains: ``[layers, k]``, what each layer saves at each rate.
        count: how many settings at most, spread over the savings they reach; None for all.
        labels: how many partial settings to keep.
    """
    layers, k = damage.shape
    chosen = np.zeros((1, 0), np.int64)
    saved, harm = np.zeros(1), np.zeros(1)
    for layer in range(layers):
        chosen = np.column_stack([np.repeat(chosen, k, axis=0), np.tile(np.arange(k), len(chosen))])
        saved = (saved[:, None] + gains[layer]).ravel()
        harm = (harm[:, None] + damage[layer]).ravel()
        keep = _undominated(saved, harm)
        if len(keep) > labels:
            bins = np.floor(saved[keep] * labels)
            # By increasing saving, so the first of a bin is its least damage.
            keep = keep[np.unique(bins, return_index=True)[1]]
        chosen, saved, harm = chosen[keep], saved[keep], harm[keep]
    if count is not None and count < len(chosen):
        goals = np.linspace(saved[0], saved[-1], count)
        nearest = np.abs(saved[:, None] - goals).argmin(axis=0)
        chosen = chosen[np.unique(nearest)]
    return [tuple(map(int, setting)) for setting in chosen]


def _undominated(saved: np.ndarray, harm: np.ndarray) -> np.ndarray:
    """Indices of what nothing matches in saving and harm and beats in one, by saving."""
    order = np.lexsort((harm, -saved))
    least = np.minimum.accumulate(np.concatenate([[np.inf], harm[order]]))
    return order[harm[order] < least[:-1]][::-1]


# --- searches ------------------------------------------------------------------------------------


def search(
    net: DrowsyNet,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "auto",
    budget: int | None = None,
    objective: str = "top1",
    cost: str = "macs",
    racing: bool = False,
    seeds: Sequence[int] = (0,),
    store: Store | None = None,
    batch: int = 50,
    engine: Engine | None = None,
    forward: Callable[[Tensor], object] | None = None,
    progress: bool = False,
) -> Frontier:
    """Search non-uniform settings for the best power-accuracy trade-offs.

    Args:
        net, images, labels, cost, seeds, store, batch, engine, forward, progress: as for
            ``Measurer``.
        method: ``exhaustive`` (Algorithm 1: all ``k ** n`` settings), ``additive`` (every layer
            alone, then the settings that would be best if their damages added up, then exchanges
            around the frontier), ``greedy`` (down from rate 0 by the steps of least damage per
            multiplication saved, then exchanges), ``nsga2`` or ``tpe`` (Optuna's, from the additive
            candidates), or ``auto``: exhaustive up to 40,000 settings, else additive.
        budget: how many settings to measure at most, those that the store knows included. None:
            every layer alone, uniform rates, and 256 more. Exhaustive has no budget; ``auto`` is
            exhaustive only within it.
        objective: what the frontier is optimal in beside the cost: ``top1``, ``top5`` or
            ``agreement``. The searches themselves go by divergence from rate 0.
        racing: measure on few images first, and drop what cannot be optimal in the objective: see
            ``drowsy.race``. The images must be in random order.

    The search resumes from ``store``: a result that it holds is not computed again.

    Raises:
        ValueError: an unknown method, a budget below 1, or a budget for ``exhaustive``.
        ImportError: ``nsga2`` or ``tpe`` without Optuna; says how to install it.
    """
    check_method(method, budget)
    measurer = Measurer(
        net,
        images,
        labels,
        seeds=seeds,
        store=store,
        batch=batch,
        engine=engine,
        cost=cost,
        forward=forward,
        progress=progress,
    )
    points = search_points(Race(measurer, [objective]) if racing else measurer, method, budget)
    return measurer.frontier(points, objective)


def search_points(
    measurer: Measurer | Race, method: str = "auto", budget: int | None = None, seed: int = 0
) -> dict[Setting, OperatingPoint]:
    """Every point that ``method`` measures; of a race, those that it did not drop.

    Args:
        measurer: what measures; a ``Race`` drops settings that cannot be optimal.
        method, budget: as for ``search``.
        seed: of Optuna's draws; the other methods draw nothing.
    """
    check_method(method, budget)
    layers, k = len(measurer.names), measurer.net.k
    if method == "auto":
        limit = EXHAUSTIVE_LIMIT if budget is None else min(budget, EXHAUSTIVE_LIMIT)
        method = "exhaustive" if k**layers <= limit else "additive"
    if method == "exhaustive":
        return _complete(measurer.measure(all_settings(layers, k), "Algorithm 1"))
    trials = _Trials(measurer, budget)
    if method == "additive":
        _additive(trials)
    elif method == "greedy":
        _greedy(trials)
    else:
        _evolve(trials, method, seed)
    return _complete(trials.found)


def _complete(points: dict[Setting, OperatingPoint]) -> dict[Setting, OperatingPoint]:
    """Those of all images."""
    images = max(point.images for point in points.values())
    return {setting: point for setting, point in points.items() if point.images == images}


def search_at(
    measurer: Measurer, savings: Sequence[float], budget: int | None = None
) -> dict[Setting, OperatingPoint]:
    """Every point of an additive search for the best settings at given savings, not in between.

    Every layer alone and uniform rates, as in ``search``; then, at each saving, the settings that
    would be best if damages added up; then exchanges around the best measured there.

    Args:
        measurer: as for ``search``.
        savings: fractions of the multiplications that settings are to save at least.
        budget: as for ``search``.
    """
    check_method("additive", budget)
    trials = _Trials(measurer, budget)
    damage = _sensitivity(trials)
    trials.measure(uniform_settings(trials.layers, trials.k), "uniform rates")
    if trials.left:
        candidates = additive_settings(damage, trials.gains)
        reached = trials.saved(candidates)
        each = -(-trials.left // 2 // len(savings))
        # By increasing saving, so of those that save enough the first do the least damage.
        first = [int(np.searchsorted(reached, wanted - ROUNDING)) for wanted in savings]
        chosen = itertools.chain.from_iterable(candidates[i : i + each] for i in first)
        trials.measure(chosen, "candidates")
    _exchange_at(trials, damage, savings)
    return trials.found


def check_method(method: str, budget: int | None) -> None:
    """Raise unless a search could run so; ImportError where its method needs a missing package."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, allowed: {', '.join(METHODS)}")
    if budget is not None and budget < 1:
        raise ValueError(f"budget: got {budget}, allowed: 1 or more evaluations")
    if budget is not None and method == "exhaustive":
        raise ValueError(
            f"budget: got {budget}, allowed: none, as exhaustive measures every setting"
        )
    if method in ("nsga2", "tpe"):
        require("optuna", "search")


class _Trials:
    """What a search has measured, within its budget.

    A point counts when the search first asks for it, also if the store knows it: so a resumed
    search takes the same steps as one that was never stopped. To a search, tied layers are one.
    """

    def __init__(self, measurer: Measurer | Race, budget: int | None) -> None:
        self.measurer = measurer
        self.layers, self.k = len(measurer.ties), measurer.net.k
        if budget is None:
            budget = len(single_settings(self.layers, self.k)) + self.k + REFINEMENTS
        self.budget = budget
        self.gains = np.stack([measurer.gains[tie].sum(axis=0) for tie in measurer.ties])
        self.points: dict[Setting, OperatingPoint] = {}

    @property
    def found(self) -> dict[Setting, OperatingPoint]:
        """The points by settings of all layers."""
        return {self._of_layers(setting): point for setting, point in self.points.items()}

    @property
    def left(self) -> int:
        return self.budget - len(self.points)

    def measure(self, settings: Iterable[Setting], label: str) -> int:
        """Measure those that are new, as many as the budget allows; returns their number."""
        new = [each for each in dict.fromkeys(settings) if each not in self.points][: self.left]
        if new:
            points = self.measurer.measure(map(self._of_layers, new), label)
            self.points |= zip(new, points.values(), strict=True)
        return len(new)

    def _of_layers(self, setting: Setting) -> Setting:
        rates = {
            layer: j for tie, j in zip(self.measurer.ties, setting, strict=True) for layer in tie
        }
        return tuple(rates[layer] for layer in range(len(rates)))

    def damage(self, setting: Setting) -> float:
        # Divergence, not accuracy: it resolves harm that flips no image yet, and needs no labels.
        return max(self.points[setting].divergence or 0.0, 0.0)

    def saved(self, settings: Sequence[Setting]) -> np.ndarray:
        return add_gains(self.gains, settings)

    def frontier(self) -> list[Setting]:
        """Measured settings that are optimal in saving and damage, by saving."""
        settings = list(self.points)
        harm = np.array([self.damage(setting) for setting in settings])
        return [settings[i] for i in _undominated(self.saved(settings), harm)]


def _sensitivity(trials: _Trials, share: float = 0.5) -> np.ndarray:
    """``[layers, k]`` damages of each layer alone, in at most ``share`` of the budget.

    Where the budget is short, fewer rates are measured, and damages of the others lie between or
    beyond as ``_growth`` says.
    """
    layers, k = trials.layers, trials.k
    depth = min(max(int(share * trials.budget - 1) // layers, 1), k - 1)
    rates, growth = _spread_rates(k, depth), _growth(k)
    settings = [s for s in single_settings(layers, k) if max(s) in rates]
    trials.measure(settings, "each layer alone")
    damage = np.zeros((layers, k))
    for setting in filter(trials.points.__contains__, settings):
        layer = int(np.argmax(setting))
        damage[layer, setting[layer]] = trials.damage(setting)
    if depth == 1:
        return damage[:, k // 2][:, None] * growth
    # More sleep cannot help a layer; what says so is noise.
    damage = np.maximum.accumulate(damage, axis=1)
    return np.array([np.interp(growth, growth[rates], row[rates]) for row in damage])


def _growth(k: int) -> np.ndarray:
    """How a layer's damage grows with its rate, in units of that at the middle rate."""
    times = np.arange(k) / (k // 2)
    return np.where(times <= 1, times**_GROWTH_BELOW, times**_GROWTH_ABOVE)


def _spread_rates(k: int, depth: int) -> np.ndarray:
    """0 and ``depth`` rates to measure, in 1/k.

    The middle one, at which patterns are most regular; the highest; then always what is farthest
    from those.
    """
    rates = [0, k // 2, k - 1][: depth + 1]
    while len(rates) <= depth:
        rates.append(max(range(k), key=lambda j: (min(abs(j - r) for r in rates), j)))
    return np.unique(rates)


def _additive(trials: _Trials) -> None:
    """Each layer alone, what would be best if damages added up, then exchanges."""
    damage = _sensitivity(trials)
    trials.measure(uniform_settings(trials.layers, trials.k), "uniform rates")
    if trials.left:
        trials.measure(additive_settings(damage, trials.gains, trials.left), "candidates")
    _exchange(trials, damage)


def _greedy(trials: _Trials) -> None:
    """Descend from rate 0 by the steps of least damage for what they save; then exchanges."""
    layers, k = trials.layers, trials.k
    rounds = max(trials.budget // 2 // layers, 1)
    # Steps taken at once, so that the descent costs about half of the budget.
    stride = -(-layers * (k - 1) // rounds)
    here: Setting = (0,) * layers
    trials.measure([here], "descent")
    damage = np.zeros((layers, k))
    while trials.left:
        further = {i: _next_saving(trials.gains[i], here[i]) for i in range(layers)}
        steps = {i: _step(here, {i: j - here[i]}) for i, j in further.items() if j is not None}
        if not steps:
            break
        trials.measure(steps.values(), "descent")
        value = {}
        for i in (i for i, setting in steps.items() if setting in trials.points):
            harm = max(trials.damage(steps[i]) - trials.damage(here), 0.0)
            now, then = here[i], steps[i][i]
            damage[i, now + 1 : then + 1] = damage[i, now] + harm
            value[i] = harm / (trials.gains[i, then] - trials.gains[i, now])
        best = sorted(value, key=value.__getitem__)[:stride]
        if not best:
            break
        here = _step(here, {i: steps[i][i] - here[i] for i in best})
        trials.measure([here], "descent")
        if here not in trials.points:
            break
    _exchange(trials, np.maximum.accumulate(damage, axis=1))


def _next_saving(gains: np.ndarray, j: int) -> int | None:
    """The next rate of a layer that saves more; for multiplications that is ``j + 1``."""
    more = np.flatnonzero(gains[j + 1 :] > gains[j])
    return j + 1 + int(more[0]) if len(more) else None


def _step(setting: Setting, change: Mapping[int, int]) -> Setting:
    return tuple(j + change.get(i, 0) for i, j in enumerate(setting))


def _exchange(trials: _Trials, damage: np.ndarray) -> None:
    """Spend what is left on neighbours of the measured frontier: a layer up, another down.

    A neighbour's damage is predicted from its origin's, measured, and the difference that the
    layers alone make; measured are those whose prediction adds most to the hypervolume.
    """
    while trials.left:
        frontier = trials.frontier()
        saved, harm = trials.saved(frontier), np.array([trials.damage(s) for s in frontier])
        guess = np.maximum(harm[:, None, None] + _changes(damage, frontier, np.inf), 0.0)
        lift = _changes(trials.gains, frontier, 0.0)
        score = _gain(saved, np.exp(-harm), saved[:, None, None] + lift, np.exp(-guess))
        score[np.isinf(guess)] = -np.inf
        if not trials.measure(_best_exchanges(trials, frontier, score, EXCHANGES), "exchanges"):
            return


def _exchange_at(trials: _Trials, damage: np.ndarray, savings: Sequence[float]) -> None:
    """Spend what is left on exchanges around the best measured setting of each saving."""
    each = max(EXCHANGES // len(savings), 1)
    while trials.left:
        chosen: list[Setting] = []
        for wanted in savings:
            settings = list(trials.points)
            enough = np.flatnonzero(trials.saved(settings) >= wanted - ROUNDING)
            if not len(enough):
                continue
            best = min((settings[i] for i in enough), key=trials.damage)
            score = -_changes(damage, [best], np.inf)
            reached = trials.saved([best])[:, None, None] + _changes(trials.gains, [best], 0.0)
            score[reached < wanted - ROUNDING] = -np.inf
            chosen += _best_exchanges(trials, [best], score, each)
        if not trials.measure(chosen, "exchanges"):
            return


def _changes(table: np.ndarray, settings: Sequence[Setting], beyond: float) -> np.ndarray:
    """``[settings, layers + 1, layers + 1]``: what one layer up and another down add of a table.

    The last stands for no layer, so that a move up or down alone is an exchange too.

    Args:
        table: ``[layers, k]``, damages or gains of the layers alone.
        settings: where the exchanges start.
        beyond: stands for rates that a layer does not have.
    """
    here, rows = np.array(settings), np.arange(len(table))
    padded = np.pad(table, ((0, 0), (1, 1)), constant_values=beyond)
    up = padded[rows, here + 2] - table[rows, here]
    down = padded[rows, here] - table[rows, here]
    up, down = np.pad(up, ((0, 0), (0, 1))), np.pad(down, ((0, 0), (0, 1)))
    return up[:, :, None] + down[:, None, :]


def _best_exchanges(
    trials: _Trials, origins: Sequence[Setting], score: np.ndarray, count: int
) -> list[Setting]:
    """Exchanges of the highest scores that are not measured yet; minus infinity never."""
    diagonal = range(score.shape[1])
    score[:, diagonal, diagonal] = -np.inf
    chosen: dict[Setting, None] = {}
    for flat in np.argsort(-score, axis=None, kind="stable"):
        origin, more, less = np.unravel_index(flat, score.shape)
        if score[origin, more, less] == -np.inf or len(chosen) == count:
            break
        change = {int(more): 1, int(less): -1}
        setting = tuple(j + change.get(i, 0) for i, j in enumerate(origins[origin]))
        if setting not in trials.points:
            chosen[setting] = None
    return list(chosen)


def _gain(
    saved: np.ndarray, quality: np.ndarray, new_saved: np.ndarray, new_quality: np.ndarray
) -> np.ndarray:
    """Hypervolume that each new point alone would add to a frontier sorted by saving.

    Of a point that adds none: how far below the frontier it lies, negative.
    """
    left = np.concatenate([[0.0], saved])
    level = np.append(quality, 0.0)
    width = np.concatenate([[0.0], np.cumsum(np.diff(left))])
    area = np.concatenate([[0.0], np.cumsum(np.diff(left) * quality)])
    # The frontier's steps from ``first`` on lie below the point, those before ``last`` left of it.
    first = np.searchsorted(-quality, -new_quality, side="right")
    last = np.searchsorted(saved, new_saved)
    whole = new_quality * (width[last] - width[first]) - (area[last] - area[first])
    above = new_quality - level[last]
    return np.where(above > 0, whole + (new_saved - left[last]) * above, above)


def _evolve(trials: _Trials, method: str, seed: int) -> None:
    """NSGA-II or TPE through Optuna, from the additive candidates, by generations."""
    optuna = require("optuna", "search")
    damage = _sensitivity(trials, share=0.25)
    layers, k = trials.layers, trials.k
    ranges = {str(i): optuna.distributions.IntDistribution(0, k - 1) for i in range(layers)}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # TPE's two options are old, and still called experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = (
                optuna.samplers.NSGAIISampler(population_size=GENERATION, seed=seed)
                if method == "nsga2"
                else optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, constant_liar=True, n_startup_trials=0
                )
            )
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        for setting in additive_settings(damage, trials.gains, GENERATION):
            study.enqueue_trial({str(i): j for i, j in enumerate(setting)})
        idle = 0
        while trials.left and idle < 20:
            asked = [study.ask(ranges) for _ in range(GENERATION)]
            proposed = [tuple(trial.params[str(i)] for i in range(layers)) for trial in asked]
            idle = 0 if trials.measure(proposed, method) else idle + 1
            for trial, setting in zip(asked, proposed, strict=True):
                if setting in trials.points:
                    saved = float(trials.saved([setting])[0])
                    study.tell(trial, [saved, math.exp(-trials.damage(setting))])
    finally:
        optuna.logging.set_verbosity(level)
