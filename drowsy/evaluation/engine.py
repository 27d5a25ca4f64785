"""Where settings are evaluated: in this process, or on a Ray cluster (``RayEngine``).

An engine is given settings and yields each result as soon as it is known; ``Measurer`` writes it
into the store before it takes the next one. So whatever dies, what was yielded is kept and the rest
is evaluated again: nothing is lost and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from drowsy.evaluation import outputs as forms
from drowsy.evaluation.classification import CLASSIFICATION
from drowsy.evaluation.evaluator import MAP_CACHE, Evaluator
from drowsy.evaluation.metrics import Counts, Task
from drowsy.knob.schedule import Setting
from drowsy.network.net import DrowsyNet

Result = tuple[int, Setting, Counts]
"""The seed of the sleep maps, the setting, and what was counted at it."""


@dataclass(frozen=True)
class Workload:
    """What settings are evaluated on; arguments as for ``Evaluator``."""

    net: DrowsyNet
    images: Tensor
    labels: Any
    batch: int
    first: int = 0
    baseline: Any = None
    map_cache: int = MAP_CACHE
    task: Task = CLASSIFICATION

    def evaluator(self, seed: int) -> Evaluator:
        """An evaluator of this work, for one seed of sleep maps."""
        return Evaluator(
            self.net,
            self.images,
            self.labels,
            seed=seed,
            batch=self.batch,
            first=self.first,
            baseline=self.baseline,
            map_cache=self.map_cache,
            task=self.task,
        )

    def part(self, places: range) -> Workload:
        """The same on some of the images, under the sleep maps that they have among all."""
        chosen = slice(places.start, places.stop)
        return replace(
            self,
            images=self.images[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            first=self.first + places.start,
            baseline=None if self.baseline is None else forms.part(self.baseline, chosen),
        )


class Engine(Protocol):
    """Evaluates settings somewhere.

    One whose results are not those of an ``Evaluator`` of the network as it is has a mapping
    ``facts``, JSON-able, by which the store keeps them apart.
    """

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        """Yield the result of every setting of every seed once, in any order.

        Args:
            work: the network as it is now, and the images.
            settings: by seed of the sleep maps.
        """
        ...


class InProcess:
    """Evaluates one setting after another in this process."""

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        """See ``Engine``; results come in the order of the walk."""
        for seed, todo in settings.items():
            for setting, counts in work.evaluator(seed).walk(todo):
                yield seed, setting, counts
