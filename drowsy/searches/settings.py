"""Settings that every study tries."""

from __future__ import annotations

import itertools

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
