"""Settings that every study tries, of the layers or groups of layers that may sleep."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from drowsy.knob.schedule import Setting


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


def spread(
    settings: Iterable[Setting], groups: Sequence[Sequence[int]], layers: int
) -> list[Setting]:
    """Settings of all layers from such of groups of them; who is in no group stays awake.

    >>> spread([(1, 0), (1, 2)], [[0, 3], [2]], 4)
    [(1, 0, 0, 1), (1, 0, 2, 1)]

    Args:
        settings: a rate for each group.
        groups: numbers of the layers that have one rate.
        layers: how many there are.
    """
    place = {layer: i for i, group in enumerate(groups) for layer in group}
    places = [place.get(layer) for layer in range(layers)]
    return [tuple(0 if i is None else setting[i] for i in places) for setting in settings]
