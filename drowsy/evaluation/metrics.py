"""How well a setting does, in sums over images, by metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from drowsy.knob.metrics import METRICS

Sums = Mapping[str, float | None]
"""Metric's name -> its sum over images; None where it was not measured."""

# The fields of ``Counts``, by metric.
_FIELDS = {"top1": "top1", "top5": "top5", "agreement": "agree", "divergence": "divergence"}


@dataclass(frozen=True)
class Counts:
    """Sums over the images of one evaluation; None was not measured.

    ``top1`` and ``top5`` are None without labels. ``agree`` counts images whose first choice is
    that of the baseline, the network at rate 0; ``divergence`` sums KL(baseline || this) in nats.
    ``others`` has the sums of every other metric, by name.
    """

    images: int
    top1: int | None = None
    top5: int | None = None
    agree: int | None = None
    divergence: float | None = None
    others: Sums = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, images: int, sums: Sums) -> Counts:
        """Counts that have these sums."""
        own: dict[str, Any] = {each: sums.get(name) for name, each in _FIELDS.items()}
        others = {name: value for name, value in sums.items() if name not in _FIELDS}
        return cls(images, **own, others=others)

    @property
    def sums(self) -> Sums:
        """What was summed, by metric."""
        return {name: getattr(self, each) for name, each in _FIELDS.items()} | dict(self.others)

    def __add__(self, other: Counts) -> Counts:
        """Counts over the images of both."""
        one, more = self.sums, other.sums
        sums: dict[str, float | None] = {}
        for name in dict.fromkeys((*one, *more)):
            mine, theirs = one.get(name), more.get(name)
            sums[name] = None if mine is None or theirs is None else mine + theirs
        return Counts.of(self.images + other.images, sums)

    def rates(self) -> dict[str, float | None]:
        """Every metric's figure, the mean of what was summed."""
        return {name: None if v is None else v / self.images for name, v in self.sums.items()}


@dataclass(frozen=True)
class Task:
    """What networks are for: what their outputs and labels are, and how metrics are counted.

    Args:
        read: ``(outputs, baseline, labels)`` -> what metrics are counted from. ``baseline`` are the
            outputs that agreement and divergence compare with. Raises ValueError for labels that
            the outputs do not allow.
        counting: of every metric of the task, by its name in ``drowsy.knob.metrics``: what was read
            -> the sum over the images.
    """

    read: Callable[[Tensor, Tensor, Tensor | None], Any]
    counting: dict[str, Callable[[Any], float]]

    def count(self, outputs: Tensor, baseline: Tensor, labels: Tensor | None) -> Counts:
        """Every metric's sum over images ``[N, ...]``, where there is what it needs."""
        read = self.read(outputs, baseline, labels)
        sums = {
            name: None if METRICS[name].needs_labels and labels is None else count(read)
            for name, count in self.counting.items()
        }
        return Counts.of(len(outputs), sums)
