"""What modules keep, to be known again by what is built of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any

from torch import nn

from drowsy.network.net import DrowsyNet


class Kept:
    """What lies in dictionaries.

    Attributes:
        things: all of it; held, so that nothing else can come to lie where it does.
    """

    def __init__(self, places: Iterable[dict[Any, Any]]) -> None:
        """Know what lies there now."""
        places = list(places)
        self._empty = [place for place in places if not place]
        self._filled = [place for place in places if place]
        self.things = list(self._now())

    def holds(self) -> bool:
        """Whether the same things lie there; nothing is asked about what is in them."""
        now = list(self._now())
        same = len(now) == len(self.things) and all(map(is_, now, self.things))
        return same and not any(self._empty)

    def _now(self) -> Iterator[Any]:
        return chain.from_iterable(place.values() for place in self._filled)


def constant_modules(net: DrowsyNet) -> list[nn.Module]:
    """Modules of a network whose attributes no call changes.

    Torch's own without children, and what layers ask for norms and activations: the code of others
    may change what it keeps.
    """
    found = [m for m in net.parts.values() if type(m).__module__.startswith("torch.nn.")]
    found = [module for module in found if not module._modules]
    for layer in net.layers.values():
        asked = [each for each in (layer.norm, layer.applied) if each is not None]
        found += (part for each in asked for part in each.modules())
    return list({id(module): module for module in found}.values())
