"""Neighbours of what was measured: one layer up, another down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drowsy.knob.costs import ROUNDING
from drowsy.knob.schedule import Setting
from drowsy.searches.tradeoff import gain
from drowsy.searches.trials import Trials

# Settings measured before the next ones are chosen: exchanges, and generations of Optuna's methods.
EXCHANGES = 16


def exchange(trials: Trials, damage: np.ndarray) -> None:
    """Spend what is left on neighbours of the measured frontier: a layer up, another down.

    A neighbour's damage is predicted from its origin's, measured, and the difference that the
    layers alone make; measured are those whose prediction adds most to the hypervolume.
    """
    while trials.left:
        frontier = trials.frontier()
        saved, harm = trials.saved(frontier), np.array([trials.damage(s) for s in frontier])
        guess = np.maximum(harm[:, None, None] + _changes(damage, frontier, np.inf), 0.0)
        lift = _changes(trials.gains, frontier, 0.0)
        score = gain(saved, np.exp(-harm), saved[:, None, None] + lift, np.exp(-guess))
        score[np.isinf(guess)] = -np.inf
        if not trials.measure(_best_exchanges(trials, frontier, score, EXCHANGES), "exchanges"):
            return


def exchange_at(trials: Trials, damage: np.ndarray, savings: Sequence[float]) -> None:
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
    trials: Trials, origins: Sequence[Setting], score: np.ndarray, count: int
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
