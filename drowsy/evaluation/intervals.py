"""How sure a mean over images is: bootstrapped intervals, of one point and of two compared.

Images are drawn again, as many as there are, with replacement, ``RESAMPLES`` times; the interval
holds the middle 95% of the means (the percentile bootstrap: Efron and Tibshirani, An Introduction
to the Bootstrap, 1993, chapter 13). So much a mean would move if other images of the same kind had
been measured. It knows nothing of other kinds of images, and of a few images not enough: of 20, 91
to 94 of 100 intervals hold the true mean, from 100 on about 95. Of images that are all alike it has
no doubt, however few they are.

Two points are compared image by image: the interval is that of the mean difference, on images drawn
for both. Most of what makes images easy or hard falls out of it, so that it tells apart points
whose own intervals overlap.

Images that come in groups, as frames do in clips, are alike within one: ``grouped`` draws the
groups again, and in each of them its entries. Of a few groups it knows not enough.

Draws follow from the numbers of images and groups alone: the same values give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
# Standard errors, for what is next to impossible.
_FAR = 10.0
# Numbers drawn at a time.
_PART = 1 << 22


class Interval(NamedTuple):
    """A mean, and between what it lies with 95% confidence."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"


def interval(values: Any) -> Interval:
    """The mean of the images' values and its 95% interval.

    Args:
        values: ``[images]``, as ``Counts.values`` has them; of an accuracy 0 or 1. Or
            ``[seeds, images]``: the images' means over the seeds are what is drawn from.

    Raises:
        ValueError: no images, other shapes, or NaN or infinity.
    """
    each = _of_images("values", values)
    return _middle(float(each.mean()), _resampled(each))


def paired(values: Any, others: Any) -> Interval:
    """The mean of ``values - others`` on the same images, and its 95% interval.

    0 outside of it: the two differ by more than the choice of images explains.

    Args:
        values, others: as for ``interval``, of the same images in the same order.

    Raises:
        ValueError: as for ``interval``, or of other numbers of images.
    """
    mine, theirs = _of_images("values", values), _of_images("others", others)
    if mine.shape != theirs.shape:
        raise ValueError(f"others: got {len(theirs)} images, allowed: {len(mine)}, as of values")
    return interval(mine - theirs)


def as_good(values: np.ndarray, best: np.ndarray) -> bool:
    """Whether ``values`` are below others by no more than the standard error of that, on average.

    Args:
        values, best: ``[images]``, higher is better, of the same images in the same order.
    """
    lost = np.subtract(best, values, dtype=np.float64)
    return float(lost.mean()) <= float(lost.std()) / math.sqrt(len(lost))


def expected_loss(values: np.ndarray, best: np.ndarray) -> float:
    """What ``values`` are below others on average, as far as these images tell.

    That is the mean difference, if it is known that there is no gain: what few images show as one
    is chance. The mean over all images is taken for normal about theirs, with its standard error,
    and cut off at 0. Of two losses that look alike the surer one is so expected to be the smaller.

    Args:
        values, best: as for ``as_good``.
    """
    lost = np.subtract(best, values, dtype=np.float64)
    mean, error = float(lost.mean()), float(lost.std()) / math.sqrt(len(lost))
    if not error:
        return max(mean, 0.0)
    low = -mean / error
    if low > _FAR:
        # The quotient below is 0 / 0 there; its limit is.
        return error / low
    beyond = math.erfc(low / math.sqrt(2)) / 2
    return mean + error * math.exp(-(low**2) / 2) / math.sqrt(2 * math.pi) / beyond


def grouped(groups: Sequence[Any]) -> Interval:
    """The mean of values that come in groups, and its 95% interval.

    Args:
        groups: of each its values ``[entries]``; every entry weighs the same. Of one group it is
            ``interval``.

    Raises:
        ValueError: as for ``interval``, of a group; or no group.
    """
    if not groups:
        raise ValueError("groups: got none, allowed: one or more")
    each = [_of_images(f"group {n}", group) for n, group in enumerate(groups)]
    if len(each) == 1:
        return interval(each[0])
    sizes = np.array(list(map(len, each)))
    count, most = len(each), int(sizes.max())
    table = np.stack([np.pad(group, (0, most - len(group))) for group in each])
    rng = np.random.Generator(np.random.PCG64([count, int(sizes.sum())]))
    means = []
    rows = max(_PART // (count * most), 1)
    for start in range(0, RESAMPLES, rows):
        shape = (min(rows, RESAMPLES - start), count)
        drawn = rng.integers(count, size=shape)
        entries = rng.integers(sizes[drawn][..., None], size=(*shape, most))
        counts = np.arange(most) < sizes[drawn][..., None]
        total = (table[drawn[..., None], entries] * counts).sum(axis=(1, 2))
        means.append(total / sizes[drawn].sum(axis=1))
    return _middle(float(np.concatenate(each).mean()), np.concatenate(means))


def _middle(mean: float, means: np.ndarray) -> Interval:
    """A mean, and between what the middle of others lies."""
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(mean, float(low), float(high))


def _of_images(name: str, values: Any) -> np.ndarray:
    """float64 ``[images]``: means over the seeds, where there are several."""
    found = np.asarray(values, np.float64)
    if found.ndim not in (1, 2) or not found.size:
        raise ValueError(
            f"{name}: got shape {found.shape}, allowed: [images] or [seeds, images], 1 or more"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: got NaN or infinity, allowed: finite numbers")
    return found if found.ndim == 1 else found.mean(axis=0)


def _resampled(each: np.ndarray) -> np.ndarray:
    """``[RESAMPLES]``: means of images drawn again."""
    count = len(each)
    rng = np.random.Generator(np.random.PCG64(count))
    rows = max(_PART // count, 1)
    means = [
        each[rng.integers(count, size=(min(rows, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)
