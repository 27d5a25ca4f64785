"""Neighbours of what was measured: one layer up, another down.

From a setting of three layers there are 4 x 4 *exchanges*: row ``i`` moves layer ``i`` one rate
up, column ``j`` moves layer ``j`` one rate down, and the last row and column stand for no layer, so
that a move up or down alone is an exchange too. Tables of exchanges have a leading axis for the
settings where they start. With two layers of three rates, from the setting ``(1, 0)``:

>>> damage = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 5.0]])
>>> changes(damage, [(1, 0)])
array([[[ 1.,  2.,  2.],
        [ 1.,  2.,  2.],
        [-1.,  0.,  0.]]])
>>> possible([(1, 0)], 3)
array([[[False, False,  True],
        [ True, False,  True],
        [ True, False, False]]])

The second layer is at rate 0 already, so that nothing in the middle column is possible; of the
rest, the first layer down alone has the least damage, then the second up in exchange for it:

>>> score = np.where(possible([(1, 0)], 3), -changes(damage, [(1, 0)]), -np.inf)
>>> best_exchanges([(1, 0)], score, 2)
[(0, 0), (0, 1)]
"""

from __future__ import annotations

from collections.abc import Container, Sequence

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
        guess = np.maximum(harm[:, None, None] + changes(damage, frontier), 0.0)
        reached = saved[:, None, None] + changes(trials.gains, frontier)
        score = np.where(
            possible(frontier, trials.k),
            gain(saved, np.exp(-harm), reached, np.exp(-guess)),
            -np.inf,
        )
        chosen = best_exchanges(frontier, score, EXCHANGES, trials.points)
        if not trials.measure(chosen, "exchanges"):
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
            best = [min((settings[i] for i in enough), key=trials.damage)]
            reached = trials.saved(best)[:, None, None] + changes(trials.gains, best)
            fitting = possible(best, trials.k) & (reached >= wanted - ROUNDING)
            score = np.where(fitting, -changes(damage, best), -np.inf)
            chosen += best_exchanges(best, score, each, trials.points)
        if not trials.measure(chosen, "exchanges"):
            return


def changes(table: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """``[settings, layers + 1, layers + 1]``: what each exchange adds to the sum over the layers.

    A layer that has no such rate adds 0; ``possible`` tells.

    Args:
        table: ``[layers, k]``, damages or gains of the layers alone.
        settings: where the exchanges start.
    """
    here, rows = np.array(settings), np.arange(len(table))
    higher, lower = np.minimum(here + 1, table.shape[1] - 1), np.maximum(here - 1, 0)
    nobody = np.zeros((len(here), 1))
    up = np.hstack([table[rows, higher] - table[rows, here], nobody])
    down = np.hstack([table[rows, lower] - table[rows, here], nobody])
    return up[:, :, None] + down[:, None, :]


def possible(settings: Sequence[Setting], k: int) -> np.ndarray:
    """``[settings, layers + 1, layers + 1]`` bool: which exchanges lead to another setting."""
    here = np.array(settings)
    anybody = np.ones((len(here), 1), bool)
    up, down = np.hstack([here < k - 1, anybody]), np.hstack([here > 0, anybody])
    # Up and down again is where it was.
    return up[:, :, None] & down[:, None, :] & ~np.eye(up.shape[1], dtype=bool)


def best_exchanges(
    origins: Sequence[Setting], score: np.ndarray, count: int, known: Container[Setting] = ()
) -> list[Setting]:
    """Settings that the exchanges of the highest scores lead to, the best first.

    Args:
        origins: where they start.
        score: ``[origins, layers + 1, layers + 1]``; minus infinity is never chosen.
        count: how many at most.
        known: settings that are passed over.
    """
    chosen: dict[Setting, None] = {}
    for flat in np.argsort(-score, axis=None, kind="stable"):
        origin, more, less = np.unravel_index(flat, score.shape)
        if score[origin, more, less] == -np.inf or len(chosen) == count:
            break
        change = {int(more): 1, int(less): -1}
        setting = tuple(j + change.get(i, 0) for i, j in enumerate(origins[origin]))
        if setting not in known:
            chosen[setting] = None
    return list(chosen)
