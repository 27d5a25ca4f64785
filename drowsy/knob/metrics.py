"""What is measured of a network's answers: one entry a metric, known everywhere by its name.

How a metric is counted is told where networks are evaluated, by task
(``drowsy.evaluation.classification`` and its neighbours); tables, files, frontiers and pictures
take all else from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure of a network on images: the mean over them of what it is of each.

    Args:
        name: in arguments, tables and files.
        title: on axes.
        unit: ``%`` if figures are fractions, 0 to 1, that pictures show in per cent; empty for
            plain numbers.
        higher_is_better: whether a frontier can be optimal in it.
        needs_labels: whether it cannot be counted without them.
    """

    name: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True
    needs_labels: bool = False

    @property
    def axis(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def loss_unit(self) -> str:
        """Of a loss: points of a fraction, else the metric's own, which may be empty."""
        return "points" if self.is_fraction else self.unit

    @property
    def lost(self) -> str:
        """The head of a column of losses: ``lost (points)``, or ``lost`` of plain numbers."""
        return f"lost ({self.loss_unit})" if self.loss_unit else "lost"

    @property
    def is_fraction(self) -> bool:
        """Whether figures lie between 0 and 1."""
        return self.unit == "%"

    def told(self, figure: float) -> str:
        """A figure in its unit: ``top1 71.3%``, ``psnr 31.52 dB``, ``score -0.25``."""
        value = f"{figure:.1%}" if self.is_fraction else f"{figure:.4g} {self.unit}"
        return f"{self.name} {value}".rstrip()

    def check(self, figure: float) -> None:
        """Raise ValueError for what cannot be a figure of this metric."""
        if self.is_fraction and not 0 <= figure <= 1:
            raise ValueError(f"{self.name}: got {figure}, allowed: 0 to 1")
        if not math.isfinite(figure):
            raise ValueError(f"{self.name}: got {figure}, allowed: a finite number")

    def check_loss(self, name: str, most: float) -> None:
        """Raise ValueError for a bound of losses, called ``name``, that no loss can exceed."""
        if self.is_fraction and most > 1:
            raise ValueError(
                f"{name}: got {most}, allowed: up to 1, as {self.name} is a fraction: "
                f"{most} points are {most / 100:g}"
            )


# By name, in the order of columns.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1 accuracy", needs_labels=True),
        Metric("top5", "top-5 accuracy", needs_labels=True),
        Metric("agreement", "agreement"),
        Metric("divergence", "divergence", "nats", higher_is_better=False),
        Metric("miou", "mean intersection over union"),
        Metric("psnr", "PSNR", "dB"),
        Metric("ssim", "SSIM", ""),
        Metric("f1", "F1 of boxes"),
        Metric("score", "score", ""),
        Metric("error", "relative squared error", "", higher_is_better=False),
    )
}


def objectives(labelled: bool = True) -> list[str]:
    """Metrics of all tasks that a frontier can be optimal in; without labels, that need none."""
    return [
        metric.name
        for metric in METRICS.values()
        if metric.higher_is_better and (labelled or not metric.needs_labels)
    ]


def judged_by(measured: Iterable[str]) -> list[str]:
    """Objectives among what was measured: those that labels decide, or all where there are none."""
    there = set(measured)
    found = [name for name in objectives() if name in there]
    return [name for name in found if METRICS[name].needs_labels] or found
