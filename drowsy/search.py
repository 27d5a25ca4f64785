"""Measure settings, resumably, and search for the Pareto-optimal ones.

``Measurer`` evaluates settings over several seeds and puts every result into the store at once;
whatever the store holds already is not evaluated again. The searches below only choose settings,
many at a time where they can, since the evaluator computes what settings share only once.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from torch import Tensor

from drowsy._optional import require
from drowsy.cost import layer_costs, layer_shares, saving
from drowsy.evaluate import Counts, Evaluator, Setting, check_images, check_labels
from drowsy.frontier import Frontier, OperatingPoint
from drowsy.net import DrowsyNet, check_network
from drowsy.schedule import LayerSetting, Schedule
from drowsy.sleep import source_text
from drowsy.store import Context, Store, fingerprint_data, fingerprint_state

METHODS = ("auto", "exhaustive", "additive", "greedy", "nsga2", "tpe")
# "auto" walks every setting up to this many; beyond it, the additive search.
EXHAUSTIVE_LIMIT = 40_000
# Without a budget, a search measures as many settings beyond the single layers and uniform rates.
REFINEMENTS = 256
# Settings measured before the next ones are chosen: exchanges, and generations of Optuna's methods.
EXCHANGES = 16
GENERATION = 32


class Measurer:
    """Operating points of a network on a set of images.

    Args:
        net: a converted network. Its fills and grains count; its rates do not.
        images: float ``[N, C, H, W]``, as the network takes them.
        labels: int64 ``[N]``, or None: then only agreement with rate 0 is measured.
        seeds: of the sleep maps; a point's figures are means over them.
        store: where results go at once; None keeps them in memory.
        batch: images per forward pass.
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
        progress: bool = False,
    ) -> None:
        check_network(net)
        check_images(images)
        check_labels(labels, images)
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds: got {tuple(seeds)}, allowed: at least one, each once")
        self.net, self.images, self.labels = net, images, labels
        self.seeds, self.batch, self.progress = tuple(seeds), batch, progress
        self.store = store if store is not None else Store(":memory:")
        self.names = list(net.layers)
        shares = layer_shares(layer_costs(net, images.shape[1:]))
        self.shares = {name: shares[name] for name in self.names}
        self._weights = fingerprint_state(net.state_dict())
        self._data = fingerprint_data(images, labels)
        self._tables: dict[str, tuple[Tensor, str]] = {}

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights and of the images with their labels."""
        return {"weights_sha256": self._weights, "data_sha256": self._data}

    def context(self, seed: int) -> Context:
        """What, besides the rates, decides a result."""
        layers = {
            name: [
                source_text(layer.sleep.source),
                str(layer.sleep.grain),
                layer.fill,
                *self._table(name, layer.table),
            ]
            for name, layer in self.net.layers.items()
        }
        return Context(self._weights, self._data, {"k": self.net.k, "layers": layers}, seed)

    def _table(self, name: str, table: Tensor | None) -> list[str]:
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
        wanted = list(dict.fromkeys(settings))
        known: dict[int, dict[Setting, Counts]] = {}
        for seed in self.seeds:
            context = self.context(seed)
            known[seed] = self.store.results(context)
            missing = [setting for setting in wanted if setting not in known[seed]]
            if not missing:
                continue
            evaluator = Evaluator(self.net, self.images, self.labels, seed=seed, batch=self.batch)
            for setting, counts in self._bar(evaluator.walk(missing), len(missing), label, seed):
                self.store.put(context, setting, counts)
                known[seed][setting] = counts
        return {
            setting: self._point(setting, [known[seed][setting] for seed in self.seeds])
            for setting in wanted
        }

    def saving(self, setting: Setting) -> float:
        """Fraction of the network's convolution multiplications saved."""
        rates = {name: j / self.net.k for name, j in zip(self.names, setting, strict=True)}
        return saving(rates, self.shares)

    def schedule(self, setting: Setting) -> Schedule:
        """The setting with the network's present grains and fills."""
        layers = self.net.layers.items()
        return Schedule(
            self.net.k,
            {
                name: LayerSetting(Fraction(j, self.net.k), str(layer.sleep.grain), layer.fill)
                for j, (name, layer) in zip(setting, layers, strict=True)
            },
        )

    def _bar(self, walk: Iterable, total: int, label: str, seed: int) -> Iterable:
        if not self.progress:
            return walk
        tqdm = require("tqdm", "search").tqdm
        note = f" (seed {seed})" if len(self.seeds) > 1 else ""
        return tqdm(walk, total=total, desc=label + note, unit="point", smoothing=0.05)

    def _point(self, setting: Setting, counts: list[Counts]) -> OperatingPoint:
        rates = [each.rates() for each in counts]
        mean: dict[str, float | None] = {}
        spread: dict[str, float] = {}
        for name in ("top1", "top5", "agreement", "divergence"):
            values = [value for rate in rates if (value := rate[name]) is not None]
            mean[name] = statistics.fmean(values) if values else None
            if len(values) > 1:
                spread[name] = statistics.stdev(values)
        return OperatingPoint(
            schedule=self.schedule(setting),
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
    damage: np.ndarray, shares: np.ndarray, count: int | None = None, labels: int = 1 << 14
) -> list[Setting]:
    """Settings that would be optimal if layers' damages added up, by increasing saving.

    A multiple-choice knapsack, solved by dynamic programming over the layers: of all settings of
    the first layers those stay that none other matches in saving and damage, so settings off the
    convex hull, which no price of a multiplication would choose, are found too. Exact up to
    ``labels`` partial settings; of more, the least damage of each ``1/labels`` of saving stays.

    Args:
        damage: ``[layers, k]``, harm of each layer alone at each rate; ``damage[:, 0] == 0``.
        shares: ``[layers]``, each layer's share of the multiplications.
        count: how many settings at most, spread over the savings they reach; None for all.
        labels: how many partial settings to keep.
    """
    layers, k = damage.shape
    rates = np.arange(k) / k
    chosen = np.zeros((1, 0), np.int64)
    saved, harm = np.zeros(1), np.zeros(1)
    for layer in range(layers):
        chosen = np.column_stack([np.repeat(chosen, k, axis=0), np.tile(np.arange(k), len(chosen))])
        saved = (saved[:, None] + rates * shares[layer]).ravel()
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
    seeds: Sequence[int] = (0,),
    store: Store | None = None,
    batch: int = 50,
    progress: bool = False,
) -> Frontier:
    """Search non-uniform settings for the best power-accuracy trade-offs.

    Args:
        net, images, labels, seeds, store, batch, progress: as for ``Measurer``.
        method: ``exhaustive`` (Algorithm 1: all ``k ** n`` settings), ``additive`` (every layer
            alone, then the settings that would be best if their damages added up, then exchanges
            around the frontier), ``greedy`` (down from rate 0 by the steps of least damage per
            multiplication saved, then exchanges), ``nsga2`` or ``tpe`` (Optuna's, from the additive
            candidates), or ``auto``: exhaustive up to 40,000 settings, else additive.
        budget: how many settings to measure at most, those that the store knows included. None:
            every layer alone, uniform rates, and 256 more. Exhaustive has no budget; ``auto`` is
            exhaustive only within it.
        objective: what the frontier is optimal in beside the saving: ``top1``, ``top5`` or
            ``agreement``. The searches themselves go by divergence from rate 0.

    The search resumes from ``store``: a result that it holds is not computed again.

    Raises:
        ValueError: an unknown method, a budget below 1, or a budget for ``exhaustive``.
        ImportError: ``nsga2`` or ``tpe`` without Optuna; says how to install it.
    """
    check_method(method, budget)
    measurer = Measurer(
        net, images, labels, seeds=seeds, store=store, batch=batch, progress=progress
    )
    points = search_points(measurer, method, budget)
    return Frontier(points.values(), objective=objective)


def search_points(
    measurer: Measurer, method: str = "auto", budget: int | None = None, seed: int = 0
) -> dict[Setting, OperatingPoint]:
    """Every point that ``method`` measures.

    Args:
        measurer, method, budget: as for ``search``.
        seed: of Optuna's draws; the other methods draw nothing.
    """
    check_method(method, budget)
    layers, k = len(measurer.names), measurer.net.k
    if method == "auto":
        limit = EXHAUSTIVE_LIMIT if budget is None else min(budget, EXHAUSTIVE_LIMIT)
        method = "exhaustive" if k**layers <= limit else "additive"
    if method == "exhaustive":
        return measurer.measure(all_settings(layers, k), "Algorithm 1")
    if budget is None:
        budget = len(single_settings(layers, k)) + k + REFINEMENTS
    trials = _Trials(measurer, budget)
    if method == "additive":
        _additive(trials)
    elif method == "greedy":
        _greedy(trials)
    else:
        _evolve(trials, method, seed)
    return trials.points


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
    search takes the same steps as one that was never stopped.
    """

    def __init__(self, measurer: Measurer, budget: int) -> None:
        self.measurer, self.budget = measurer, budget
        self.layers, self.k = len(measurer.names), measurer.net.k
        self.shares = np.array([measurer.shares[name] for name in measurer.names])
        self.points: dict[Setting, OperatingPoint] = {}

    @property
    def left(self) -> int:
        return self.budget - len(self.points)

    def measure(self, settings: Iterable[Setting], label: str) -> int:
        """Measure those that are new, as many as the budget allows; returns their number."""
        new = [each for each in dict.fromkeys(settings) if each not in self.points][: self.left]
        if new:
            self.points |= self.measurer.measure(new, label)
        return len(new)

    def damage(self, setting: Setting) -> float:
        # Divergence, not accuracy: it resolves harm that flips no image yet, and needs no labels.
        return max(self.points[setting].divergence or 0.0, 0.0)

    def saved(self, settings: Sequence[Setting]) -> np.ndarray:
        return np.array(settings, float) @ self.shares / self.k

    def frontier(self) -> list[Setting]:
        """Measured settings that are optimal in saving and damage, by saving."""
        settings = list(self.points)
        harm = np.array([self.damage(setting) for setting in settings])
        return [settings[i] for i in _undominated(self.saved(settings), harm)]


def _sensitivity(trials: _Trials, share: float = 0.5) -> np.ndarray:
    """``[layers, k]`` damages of each layer alone, in at most ``share`` of the budget.

    Where the budget is short, fewer rates are measured and damages between them interpolated.
    """
    layers, k = trials.layers, trials.k
    depth = min(max(int(share * trials.budget - 1) // layers, 1), k - 1)
    rates = np.unique(np.linspace(0, k - 1, depth + 1).round().astype(int))
    settings = [s for s in single_settings(layers, k) if max(s) in rates]
    trials.measure(settings, "each layer alone")
    damage = np.zeros((layers, k))
    for setting in filter(trials.points.__contains__, settings):
        layer = int(np.argmax(setting))
        damage[layer, setting[layer]] = trials.damage(setting)
    # More sleep cannot help a layer; what says so is noise.
    damage = np.maximum.accumulate(damage, axis=1)
    return np.array([np.interp(np.arange(k), rates, row[rates]) for row in damage])


def _additive(trials: _Trials) -> None:
    """Each layer alone, what would be best if damages added up, then exchanges."""
    damage = _sensitivity(trials)
    trials.measure(uniform_settings(trials.layers, trials.k), "uniform rates")
    if trials.left:
        trials.measure(additive_settings(damage, trials.shares, trials.left), "candidates")
    _exchange(trials, damage)


def _greedy(trials: _Trials) -> None:
    """Descend from rate 0 by the steps of least damage per multiplication; then exchanges."""
    layers, k = trials.layers, trials.k
    rounds = max(trials.budget // 2 // layers, 1)
    # Steps taken at once, so that the descent costs about half of the budget.
    stride = -(-layers * (k - 1) // rounds)
    here: Setting = (0,) * layers
    trials.measure([here], "descent")
    damage = np.zeros((layers, k))
    while trials.left:
        steps = {i: _step(here, {i: 1}) for i in range(layers) if here[i] < k - 1}
        if not steps:
            break
        trials.measure(steps.values(), "descent")
        known = [i for i, setting in steps.items() if setting in trials.points]
        for i in known:
            harm = trials.damage(steps[i]) - trials.damage(here)
            damage[i, here[i] + 1] = damage[i, here[i]] + max(harm, 0.0)
        price = {i: damage[i, here[i] + 1] - damage[i, here[i]] for i in known}
        best = sorted(known, key=lambda i: price[i] / trials.shares[i])[:stride]
        if not best:
            break
        here = _step(here, dict.fromkeys(best, 1))
        trials.measure([here], "descent")
        if here not in trials.points:
            break
    _exchange(trials, np.maximum.accumulate(damage, axis=1))


def _step(setting: Setting, change: Mapping[int, int]) -> Setting:
    return tuple(j + change.get(i, 0) for i, j in enumerate(setting))


def _exchange(trials: _Trials, damage: np.ndarray) -> None:
    """Spend what is left on neighbours of the measured frontier: a layer up, another down.

    A neighbour's damage is predicted from its origin's, measured, and the difference that the
    layers alone make; measured are those whose prediction adds most to the hypervolume.
    """
    layers, k = trials.layers, trials.k
    padded = np.pad(damage, ((0, 0), (1, 1)), constant_values=np.inf)
    rows = np.arange(layers)
    # The last column stands for no layer, so that a move up or down alone is an exchange too.
    weight = np.append(trials.shares / k, 0.0)
    lift = weight[:, None] - weight
    while trials.left:
        frontier = trials.frontier()
        saved, harm = trials.saved(frontier), np.array([trials.damage(s) for s in frontier])
        here = np.array(frontier)
        up = padded[rows, here + 2] - damage[rows, here]
        down = padded[rows, here] - damage[rows, here]
        up, down = np.pad(up, ((0, 0), (0, 1))), np.pad(down, ((0, 0), (0, 1)))
        guess = np.maximum(harm[:, None, None] + up[:, :, None] + down[:, None, :], 0.0)
        score = _gain(saved, np.exp(-harm), saved[:, None, None] + lift, np.exp(-guess))
        score[np.isinf(guess)] = -np.inf
        score[:, range(layers + 1), range(layers + 1)] = -np.inf
        chosen: dict[Setting, None] = {}
        for flat in np.argsort(-score, axis=None, kind="stable"):
            origin, more, less = np.unravel_index(flat, score.shape)
            if score[origin, more, less] == -np.inf or len(chosen) == EXCHANGES:
                break
            change = {int(more): 1, int(less): -1}
            setting = tuple(j + change.get(i, 0) for i, j in enumerate(frontier[origin]))
            if setting not in trials.points:
                chosen[setting] = None
        if not trials.measure(chosen, "exchanges"):
            return


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
        for setting in additive_settings(damage, trials.shares, GENERATION):
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
