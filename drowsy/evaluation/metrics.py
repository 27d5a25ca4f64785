"""How well a setting does, by metric: of every image, and in sums over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from drowsy.evaluation import outputs as forms
from drowsy.knob.metrics import METRICS

Sums = Mapping[str, float | None]
"""Metric's name -> its sum over images; None where it was not measured."""

Values = Mapping[str, np.ndarray]
"""Metric's name -> float32 ``[images]``, what it is of each; in the images' order."""


class NotFinite(ValueError):
    """What a network puts out has no finite figure: it is NaN or infinity somewhere."""


# The fields of ``Counts``, by metric.
_FIELDS = {"top1": "top1", "top5": "top5", "agreement": "agree", "divergence": "divergence"}


@dataclass(frozen=True)
class Counts:
    """Sums over the images of one evaluation; None was not measured.

    ``top1`` and ``top5`` are None without labels. ``agree`` counts images whose first choice is
    that of the baseline, the network at rate 0 (of maps, it sums the shares of their pixels);
    ``divergence`` sums KL(baseline || this) in nats. ``others`` has the sums of every other metric,
    by name.

    ``values`` has every measured metric's value of each image, where these were kept; two
    ``Counts`` are equal by their sums.
    """

    images: int
    top1: int | None = None
    top5: int | None = None
    agree: float | None = None
    divergence: float | None = None
    others: Sums = field(default_factory=dict, hash=False)
    values: Values = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, images: int, sums: Sums, values: Values | None = None) -> Counts:
        """Counts that have these sums, and values of the images."""
        own: dict[str, Any] = {each: sums.get(name) for name, each in _FIELDS.items()}
        others = {name: value for name, value in sums.items() if name not in _FIELDS}
        return cls(images, **own, others=others, values=values or {})

    @property
    def sums(self) -> Sums:
        """What was summed, by metric."""
        return {name: getattr(self, each) for name, each in _FIELDS.items()} | dict(self.others)

    def __add__(self, other: Counts) -> Counts:
        """Counts over the images of both, this one's first."""
        one, more = self.sums, other.sums
        sums: dict[str, float | None] = {}
        for name in dict.fromkeys((*one, *more)):
            mine, theirs = one.get(name), more.get(name)
            sums[name] = None if mine is None or theirs is None else mine + theirs
        values = {
            name: np.concatenate([self.values[name], other.values[name]])
            for name in self.values
            if name in other.values
        }
        return Counts.of(self.images + other.images, sums, values)

    def rates(self) -> dict[str, float | None]:
        """Every metric's figure, the mean of what was summed."""
        return {name: None if v is None else v / self.images for name, v in self.sums.items()}


@dataclass(frozen=True)
class Task:
    """What networks are for: what their outputs and targets are, and how metrics are counted.

    Args:
        name: what it is called.
        take: ``(output, images)`` -> a network's output for a batch of images, in a form that
            batches are joined and cut in (``drowsy.evaluation.outputs``). Raises TypeError and
            ValueError for what no network of this task puts out.
        check: ``(targets, images)`` -> what the outputs should be, as ``read`` takes them; raises
            TypeError and ValueError for what they cannot be. Only called where there are some.
        read: ``(outputs, awake, targets)`` -> what metrics are counted from. ``awake`` are the
            outputs that they compare with; targets may be None. Raises ValueError for targets that
            the outputs do not allow.
        counting: of every metric of the task, by its name in ``drowsy.knob.metrics``: what was read
            -> what each image adds to it, ``[N]``, or in parts ``[N, ...]``.
        principal: the metric that quality is reported in, higher is better; with targets, and
            without.
        damage: the metric that searches go by: lower is better, 0 awake, no targets needed, and
            finer than whether an image is right.
        told: JSON-able; what else decides its results, by which stores keep them apart. None for
            classification, as which everything was stored that does not say.
        why: what it was chosen by, where it was not asked for.
    """

    name: str
    take: Callable[[Any, Tensor], Any]
    check: Callable[[Any, Tensor], Any]
    read: Callable[[Any, Any, Any], Any]
    counting: dict[str, Callable[[Any], Tensor]]
    principal: tuple[str, str]
    damage: str = "error"
    told: Any = None
    why: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.told is None and self.name != "classification":
            raise ValueError(
                f"told: got None for {self.name}, allowed: what decides its results, since a store "
                "would take them for a classification's"
            )

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name

    @property
    def graded(self) -> bool:
        """Whether quality is a matter of degree for a single image, and not of right or wrong."""
        return self.name != "classification"

    def quality(self, labelled: bool) -> str:
        """The metric that is reported, with targets or without."""
        return self.principal[0 if labelled else 1]

    def objectives(self, labelled: bool) -> list[str]:
        """Its metrics that a frontier can be optimal in, with targets or without."""
        known = (METRICS[name] for name in self.counting)
        return [
            metric.name
            for metric in known
            if metric.higher_is_better and (labelled or not metric.needs_labels)
        ]

    def count(self, outputs: Any, awake: Any, targets: Any) -> Counts:
        """Every metric's values and their sums over images, where there is what it needs."""
        read = self.read(outputs, awake, targets)
        sums: dict[str, float | None] = {}
        values = {}
        for name, count in self.counting.items():
            if METRICS[name].needs_labels and targets is None:
                sums[name] = None
                continue
            parts = count(read)
            # All parts at once: a sum of floats depends on the order.
            sums[name] = parts.sum().item()
            each = parts.flatten(1).sum(1) if parts.dim() > 1 else parts
            values[name] = each.float().cpu().numpy()
        return Counts.of(forms.count_of(outputs), sums, values)
