"""What would be optimal if layers' damages added up; what a point adds to a frontier."""

from __future__ import annotations

import numpy as np

from drowsy.knob.schedule import Setting
from drowsy.knob.tradeoffs import undominated


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
        keep = undominated(saved, harm)
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


def gain(
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
