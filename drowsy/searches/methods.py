"""Search for the Pareto-optimal settings.

The methods only choose settings, many at a time where they can, since the evaluator computes what
settings share only once.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from drowsy._optional import require
from drowsy.evaluation.arguments import check_count
from drowsy.evaluation.engine import Engine
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.store import Store
from drowsy.knob.costs import ROUNDING
from drowsy.knob.frontier import Frontier
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet
from drowsy.searches.exchanges import exchange, exchange_at
from drowsy.searches.race import Race
from drowsy.searches.settings import all_settings, spread, uniform_settings
from drowsy.searches.tradeoff import additive_settings
from drowsy.searches.trials import Trials, sensitivity, spread_rates

METHODS = ("auto", "exhaustive", "additive", "greedy", "nsga2", "tpe")
# "auto" walks every setting up to this many; beyond it, the additive search.
EXHAUSTIVE_LIMIT = 40_000
# Asked for, it walks this many: a point of 20 layers takes 4 KB of memory.
EXHAUSTIVE_MOST = 1_000_000
GENERATION = 32


def search(
    net: DrowsyNet,
    images: Tensor | Iterable[Any],
    labels: Any = None,
    *,
    metric: Task | str | Callable[[Any, Any, Any], Any] = "auto",
    method: str = "auto",
    budget: int | None = None,
    objective: str | None = None,
    cost: str = "macs",
    racing: bool = False,
    seeds: Sequence[int] = (0,),
    store: Store | str | os.PathLike[str] | None = None,
    batch: int = 50,
    engine: Engine | None = None,
    forward: Callable[[Tensor], object] | None = None,
    progress: bool = False,
) -> Frontier:
    """Search non-uniform settings for the best power-accuracy trade-offs.

    Layers that rest (``net.resting``) stay awake in every setting and count as no layers here.

    Args:
        net, images, labels, cost, seeds, store, batch, engine, forward, progress: as for
            ``Measurer``.
        metric: what the network is for and is judged by, as for ``Measurer``'s ``task``:
            ``classification``, ``segmentation``, ``restoration``, ``detection``, a function
            ``metric(outputs, awake_outputs, targets)`` that gives a number of each image, higher is
            better, or ``auto``, which looks at the outputs' form.
        method: ``exhaustive`` (Algorithm 1: all ``k ** n`` settings), ``additive`` (every layer
            alone, then the settings that would be best if their damages added up, then exchanges
            around the frontier), ``greedy`` (down from rate 0 by the steps of least damage per
            multiplication saved, then exchanges), ``nsga2`` or ``tpe`` (Optuna's, from the additive
            candidates), or ``auto``: exhaustive up to 40,000 settings, else additive.
        budget: how many settings to measure at most, those that the store knows included. None:
            every layer alone, uniform rates, and 256 more. Exhaustive has no budget; ``auto`` is
            exhaustive only within it. Below the number of layers and rates, a warning says what it
            takes, and uniform rates are measured first.
        objective: what the frontier is optimal in beside the cost: of classification ``top1``,
            ``top5`` or ``agreement``, of segmentation ``miou`` or ``agreement``, of restoration
            ``psnr`` or ``ssim``, of detection ``f1``, else ``score``; None for the first, without
            labels for ``agreement`` in place of ``top1`` and ``ssim`` of ``psnr``. The searches
            themselves go by divergence from rate 0, or where outputs are not classes by their
            relative squared error.
        racing: measure on few images first, and drop what cannot be optimal in the objective: see
            ``drowsy.searches.race``. The images must be in random order.

    The search resumes from ``store``: a result that it holds is not computed again.

    Raises:
        ValueError: an unknown method or objective, a budget below 1, a budget for ``exhaustive``,
            or more than a million settings for it; and as ``Measurer`` does.
        TypeError: a budget that is no integer; and as ``Measurer`` does.
        ImportError: ``nsga2`` or ``tpe`` without Optuna; says how to install it.
    """
    check_method(method, budget)
    measurer = Measurer(
        net,
        images,
        labels,
        task=metric,
        seeds=seeds,
        store=store,
        batch=batch,
        engine=engine,
        cost=cost,
        forward=forward,
        progress=progress,
    )
    objective = measurer.check_objective(objective)
    points = search_points(Race(measurer, [objective]) if racing else measurer, method, budget)
    return measurer.frontier(points, objective)


def check_method(method: str, budget: int | None, settings: int = 1) -> None:
    """Raise unless a search could run so; ImportError where its method needs a missing package.

    Args:
        method, budget: as for ``search``.
        settings: how many the network has, where that is known already.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, allowed: {', '.join(METHODS)}")
    if budget is not None:
        check_count("budget", budget, "1 or more evaluations")
    if budget is not None and method == "exhaustive":
        raise ValueError(
            f"budget: got {budget}, allowed: none, as exhaustive measures every setting"
        )
    if method == "exhaustive" and settings > EXHAUSTIVE_MOST:
        raise ValueError(
            f"method: got exhaustive for {_told(settings)} settings, allowed: up to "
            f"{EXHAUSTIVE_MOST:,}; every other method measures no more than its budget"
        )
    if method in ("nsga2", "tpe"):
        require("optuna", "search")


def _told(count: int) -> str:
    """A number in digits, or as a power where these would fill lines."""
    return f"{count:,}" if count < 10**30 else f"10^{math.log10(count):.0f}"


def search_points(
    measurer: Measurer | Race, method: str = "auto", budget: int | None = None, seed: int = 0
) -> dict[Setting, OperatingPoint]:
    """Every point that ``method`` measures; of a race, those that it did not drop.

    Args:
        measurer: what measures; a ``Race`` drops settings that cannot be optimal.
        method, budget: as for ``search``.
        seed: of Optuna's draws; the other methods draw nothing.
    """
    free, k = measurer.free, measurer.net.k
    count = k ** len(free)
    check_method(method, budget, count)
    if method == "auto":
        limit = EXHAUSTIVE_LIMIT if budget is None else min(budget, EXHAUSTIVE_LIMIT)
        method = "exhaustive" if count <= limit else "additive"
    if method == "exhaustive":
        alone = [[layer] for layer in free]
        settings = spread(all_settings(len(free), k), alone, len(measurer.names))
        # Of so many settings, the values of single images would fill a disk.
        return _complete(measurer.measure(settings, "Algorithm 1", values=False))
    trials = Trials(measurer, budget)
    _mind_the_budget(trials)
    if method == "additive":
        _additive(trials)
    elif method == "greedy":
        _greedy(trials)
    else:
        _evolve(trials, method, seed)
    return _complete(trials.found)


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
    trials = Trials(measurer, budget)
    _mind_the_budget(trials)
    _additive_at(trials, savings)
    return trials.found


def _complete(points: dict[Setting, OperatingPoint]) -> dict[Setting, OperatingPoint]:
    """Those of all images."""
    images = max(point.images for point in points.values())
    return {setting: point for setting, point in points.items() if point.images == images}


def _mind_the_budget(trials: Trials) -> None:
    """Where a budget is too small to try every layer, say so and measure uniform rates first.

    Of layers alone, few of which can be tried then, no setting would save much.
    """
    layers, k = trials.layers, trials.k
    needed = min(layers + k, k**layers)
    if trials.budget >= needed:
        return
    warnings.warn(
        f"budget: got {trials.budget}, which is too small for a search of {layers} layers with "
        f"k = {k}: uniform rates come first; {needed} settings or more try every layer too",
        stacklevel=4,
    )
    rates = spread_rates(k, min(trials.budget, k) - 1)
    trials.measure([(int(j),) * layers for j in rates], "uniform rates")


# --- methods, from the simplest ------------------------------------------------------------------


def _additive(trials: Trials) -> None:
    """Each layer alone, what would be best if damages added up, then exchanges."""
    damage = _damage_of_layers(trials)
    if trials.left:
        trials.measure(additive_settings(damage, trials.gains, trials.left), "candidates")
    exchange(trials, damage)


def _additive_at(trials: Trials, savings: Sequence[float]) -> None:
    """The same, but of what would be best only what is so at these savings."""
    damage = _damage_of_layers(trials)
    if trials.left:
        candidates = additive_settings(damage, trials.gains)
        reached = trials.saved(candidates)
        each = -(-trials.left // 2 // len(savings))
        # By increasing saving, so of those that save enough the first do the least damage.
        first = [int(np.searchsorted(reached, wanted - ROUNDING)) for wanted in savings]
        chosen = itertools.chain.from_iterable(candidates[i : i + each] for i in first)
        trials.measure(chosen, "candidates")
    exchange_at(trials, damage, savings)


def _damage_of_layers(trials: Trials) -> np.ndarray:
    """``[layers, k]`` damages of each layer alone; uniform rates are measured along with them."""
    damage = sensitivity(trials)
    trials.measure(uniform_settings(trials.layers, trials.k), "uniform rates")
    return damage


def _greedy(trials: Trials) -> None:
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
    exchange(trials, np.maximum.accumulate(damage, axis=1))


def _next_saving(gains: np.ndarray, j: int) -> int | None:
    """The next rate of a layer that saves more; for multiplications that is ``j + 1``."""
    more = np.flatnonzero(gains[j + 1 :] > gains[j])
    return j + 1 + int(more[0]) if len(more) else None


def _step(setting: Setting, change: Mapping[int, int]) -> Setting:
    return tuple(j + change.get(i, 0) for i, j in enumerate(setting))


def _evolve(trials: Trials, method: str, seed: int) -> None:
    """NSGA-II or TPE through Optuna, from the additive candidates, by generations."""
    optuna = require("optuna", "search")
    damage = sensitivity(trials, share=0.25)
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
