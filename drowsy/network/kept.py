"""What modules keep, to be known again by what is built of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any


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
