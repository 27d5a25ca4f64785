"""Measure settings, resumably, and search for the Pareto-optimal ones.

``Measurer`` evaluates settings over several seeds and puts every result into the store at once;
whatever the store holds already is not evaluated again. The searches below only choose settings.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
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

METHODS = ("auto", "exhaustive", "additive")
# "auto" walks every setting up to this many; beyond it, the additive search.
EXHAUSTIVE_LIMIT = 40_000


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

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights and of the images with their labels."""
        return {"weights_sha256": self._weights, "data_sha256": self._data}

    def context(self, seed: int) -> Context:
        """What, besides the rates, decides a result."""
        layers = {
            name: [source_text(layer.sleep.source), str(layer.sleep.grain), layer.fill]
            for name, layer in self.net.layers.items()
        }
        return Context(self._weights, self._data, {"k": self.net.k, "layers": layers}, seed)

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


def additive_settings(damage: np.ndarray, shares: np.ndarray, count: int = 64) -> list[Setting]:
    """Settings that would be optimal if layers' damages added up.

    Each minimises ``sum(damage) - price * saving`` for one price of a saved multiplication, which
    separates by layer; sweeping the price gives the convex frontier of the additive model.

    Args:
        damage: ``[layers, k]``, harm of each layer alone at each rate; ``damage[:, 0] == 0``.
        shares: ``[layers]``, each layer's share of the multiplications.
        count: how many settings at most, spread over the savings they reach.
    """
    layers, k = damage.shape
    saved = np.arange(k) / k * shares[:, None]
    positive = damage[damage > 0]
    if not len(positive):
        return uniform_settings(layers, k)
    floor, ceiling = positive.min() / shares.max() / 10, damage.max() / shares.min() * 10 * k
    found: dict[Setting, float] = {}
    for price in np.geomspace(floor, ceiling, 2000):
        best = (damage - price * saved).argmin(axis=1)
        found[tuple(int(j) for j in best)] = float(saved[np.arange(layers), best].sum())
    ordered = sorted(found, key=found.__getitem__)
    goals = np.linspace(found[ordered[0]], found[ordered[-1]], count)
    savings = np.array([found[setting] for setting in ordered])
    return [ordered[i] for i in dict.fromkeys(np.abs(savings - goal).argmin() for goal in goals)]


# --- searches ------------------------------------------------------------------------------------


def search(
    net: DrowsyNet,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "auto",
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
            alone, then the settings that would be best if their damages added up, measured), or
            ``auto``: exhaustive up to 40,000 settings.
        objective: what the frontier is optimal in beside the saving: ``top1``, ``top5`` or
            ``agreement``.

    The search resumes from ``store``: a result that it holds is not computed again.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, allowed: {', '.join(METHODS)}")
    measurer = Measurer(
        net, images, labels, seeds=seeds, store=store, batch=batch, progress=progress
    )
    points = search_points(measurer, method)
    return Frontier(points.values(), objective=objective)


def search_points(measurer: Measurer, method: str = "auto") -> dict[Setting, OperatingPoint]:
    """Every point that ``method`` measures."""
    layers, k = len(measurer.names), measurer.net.k
    exhaustive = method == "exhaustive" or (method == "auto" and k**layers <= EXHAUSTIVE_LIMIT)
    run: Callable[[Measurer], dict[Setting, OperatingPoint]] = (
        _exhaustive if exhaustive else _additive
    )
    return run(measurer)


def _exhaustive(measurer: Measurer) -> dict[Setting, OperatingPoint]:
    settings = all_settings(len(measurer.names), measurer.net.k)
    return measurer.measure(settings, "Algorithm 1")


def _additive(measurer: Measurer) -> dict[Setting, OperatingPoint]:
    layers, k = len(measurer.names), measurer.net.k
    points = measurer.measure(single_settings(layers, k), "each layer alone")
    damage = np.zeros((layers, k))
    for setting, point in points.items():
        for layer, j in enumerate(setting):
            if j:
                # Divergence, not accuracy: it resolves harm that flips no image yet.
                damage[layer, j] = max(point.divergence or 0.0, 0.0)
    # More sleep cannot help a layer; what says so is noise.
    damage = np.maximum.accumulate(damage, axis=1)
    shares = np.array([measurer.shares[name] for name in measurer.names])
    candidates = additive_settings(damage, shares) + uniform_settings(layers, k)
    return points | measurer.measure(candidates, "candidates")
