"""Whether points hold on other images: what each loses there, beside what it was sold with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy.evaluation.arguments import gather
from drowsy.evaluation.evaluator import task_of
from drowsy.evaluation.guessing import check_targets, looked_at
from drowsy.evaluation.intervals import Interval, paired
from drowsy.evaluation.metrics import Counts
from drowsy.evaluation.tasks import NAMES
from drowsy.files.tables import Row, align
from drowsy.images.checks import check_batch
from drowsy.knob.metrics import METRICS
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.machine import Machine

_SEED = 0


@dataclass(frozen=True)
class Evaluated:
    """What a point does on images.

    Attributes:
        figures: of every metric that could be measured, its mean.
        loss: how much less of the objective than awake, on the same images, with its 95% interval.
    """

    figures: Mapping[str, float]
    loss: Interval


def losses(
    machine: Machine,
    contents: Contents,
    points: Sequence[OperatingPoint],
    images: Any,
    labels: Any,
    metric: Any,
    batch: int,
) -> list[Row]:
    """Rows of ``Knob.evaluate``, but for ``setting``, of these points; the first is awake."""
    images, labels = gather(machine.nets[None], images, labels)
    made, own = contents.made, contents.objective
    same = is_alike(own, made, labels is not None)
    objective, found = evaluate(
        machine,
        points,
        images,
        labels,
        task_named(made) if metric is None else metric,
        own if same else None,
        batch,
    )
    alike = same and objective == own
    return [
        {
            **each.figures,
            "loss": each.loss.mean,
            "loss_low": each.loss.low,
            "loss_high": each.loss.high,
            **sold(
                (point.loss, point.interval) if alike else (None, None),
                each.loss.mean,
                (each.loss.low, each.loss.high),
            ),
            "objective": objective,
        }
        for point, each in zip(points, found, strict=True)
    ]


def evaluate(
    machine: Machine,
    points: Sequence[OperatingPoint],
    images: Tensor,
    labels: Any,
    metric: Any,
    objective: str | None = None,
    batch: int = 50,
) -> tuple[str, list[Evaluated]]:
    """What points do on images, compared image by image with the network awake.

    Args:
        machine: runs them.
        points: in any order; the first is awake.
        images: ``[N, C, H, W]``, where the network is.
        labels, metric: as for ``drowsy.tune``.
        objective: the metric that is lost, where the task has it; else the task's own, with labels
            or without.
        batch: images per forward pass.

    Returns:
        the objective, and what was found of each point.

    Raises:
        TypeError, ValueError: images, labels or a metric that ``drowsy.tune`` does not take, or
            labels by which the network awake does no better than guessing.
    """
    check_batch(batch)
    net = machine.nets[None]
    task = task_of(net, images, labels, metric)
    labels = None if labels is None else task.check(labels, images)
    if objective not in task.objectives(labels is not None):
        objective = task.quality(labels is not None)
    found: list[Counts | None] = [None] * len(points)
    firsts: list[Tensor] = []
    for start in range(0, len(images), batch):
        shown = images[start : start + batch]
        targets = None if labels is None else labels[start : start + batch]
        awake: Any = None
        for n, point in enumerate(points):
            # The same maps in every evaluation, whatever the batch.
            machine.reseed(_SEED, start)
            outputs = task.take(machine.run(point, shown), shown)
            if awake is None:
                awake = outputs
                seen = looked_at(task, outputs, start)
                firsts += [] if seen is None else [seen]
            counts = task.count(outputs, awake, targets)
            before = found[n]
            found[n] = counts if before is None else before + counts
    whole = [each for each in found if each is not None]
    if labels is not None and objective == task.quality(True):
        check_targets(task, whole[0], torch.cat(firsts) if firsts else None, labels)
    values = [np.asarray(each.values[objective], np.float64) for each in whole]
    return objective, [
        Evaluated(
            {name: rate for name, rate in each.rates().items() if rate is not None},
            paired(values[0], own),
        )
        for each, own in zip(whole, values, strict=True)
    ]


def task_named(made: Mapping[str, Any]) -> str:
    """The task that a knob was tuned for, by name.

    Raises:
        ValueError: it was a function, which no file holds, or the file does not tell.
    """
    told = str(made.get("task", "")).partition(" (")[0]
    if told not in NAMES:
        raise ValueError(
            f"metric: got none, and the knob was tuned by {told or 'one that is not known'}, "
            "allowed: the function that it was tuned by, or a task's name"
        )
    return told


def is_alike(objective: str, made: Mapping[str, Any], labelled: bool) -> bool:
    """Whether a knob's objective is the same thing here, with labels or without."""
    # Agreement is with the network awake, whether there are labels or not.
    return objective == "agreement" or made.get("labelled") == labelled


def sold(
    known: tuple[float | None, tuple[float, float] | None],
    here: float,
    spread: tuple[float, float] | None,
) -> Row:
    """What a point was sold with, and whether its loss elsewhere lies within.

    Args:
        known: the loss that it was sold with and its interval, as far as they say anything here.
        here, spread: its loss elsewhere, and the interval of that; None of too few images.

    Returns:
        ``sold_loss``, ``sold_low``, ``sold_high``; ``holds``, whether the loss here is at most
        ``sold_high``; ``surely``, whether its whole interval lies on one side of that.
    """
    loss, interval = known
    row: Row = {"sold_loss": loss, "sold_low": None, "sold_high": None}
    if loss is None or interval is None:
        return {**row, "holds": None, "surely": None}
    low, high = interval
    return {
        **row,
        "sold_low": low,
        "sold_high": high,
        "holds": here <= high,
        "surely": spread is not None and (spread[0] > high or spread[1] <= high),
    }


def table(rows: Sequence[Row], objective: str) -> str:
    """Rows of ``Knob.evaluate`` as aligned text."""
    metric = METRICS[objective]
    scale, digits = (100, 1) if metric.is_fraction else (1, 2)

    def number(value: float | None) -> str:
        return "" if value is None else f"{round(scale * value, 6) + 0.0:.{digits}f}"

    def span(row: Row, start: str) -> str:
        low, high = row[f"{start}_low"], row[f"{start}_high"]
        return "" if low is None else f"{number(low)} to {number(high)}"

    # Where it says nothing of this, what points were sold with has no columns.
    compared = any(row["holds"] is not None for row in rows)
    head = ["setting", metric.axis, f"{metric.lost} here", "95% interval"]
    lines = [[*head, *["sold with", "holds"] * compared]]
    for row in rows:
        own = [row["setting"], number(row[objective]), number(row["loss"]), span(row, "loss")]
        lines.append([*own, *[span(row, "sold"), verdict(row)] * compared])
    return align(lines)


def verdict(row: Row) -> str:
    """Whether a point holds, in a word or two."""
    if row["holds"] is None:
        return ""
    if row["holds"]:
        return "yes" if row["surely"] else "yes, as far as this can tell"
    return "no" if row["surely"] else "no, or by chance"
