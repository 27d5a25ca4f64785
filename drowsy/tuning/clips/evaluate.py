"""Whether points of a knob for video hold on other clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drowsy.evaluation.evaluator import task_of
from drowsy.files.tables import Row
from drowsy.network.net import DrowsyNet
from drowsy.tuning.clips.file import VideoContents
from drowsy.tuning.clips.footage import Footage, gather
from drowsy.tuning.clips.point import VideoPoint
from drowsy.tuning.evaluate import is_alike, sold, task_named


def losses(
    net: DrowsyNet,
    contents: VideoContents,
    points: Sequence[VideoPoint],
    clips: Any,
    labels: Any,
    metric: Any,
) -> list[Row]:
    """Rows of ``VideoKnob.evaluate``, of these points; the first is awake."""
    stretches = gather(clips, labels, next(net.parameters()), cut=False)
    first = stretches[0]
    if tuple(first.frames.shape[1:]) != contents.image:
        raise ValueError(
            f"clips: got frames of {tuple(first.frames.shape[1:])}, allowed: {contents.image}, as "
            "the knob was tuned on"
        )
    few = first.part(0, 4)
    task = task_of(
        net, few.frames, few.labels, task_named(contents.made) if metric is None else metric
    )
    footage, labelled = Footage(net, stretches, task), labels is not None
    alike = is_alike(contents.objective, contents.made, labelled)
    objective = contents.objective if alike else None
    if objective not in task.objectives(labelled):
        objective, alike = task.quality(labelled), False
    if objective == task.quality(True):
        footage.check_targets()
    awake = footage.seen(points[0].way)
    rows = []
    for point in points:
        seen = footage.seen(point.way)
        loss, interval = footage.lost(awake, seen, objective)
        low, high = (None, None) if interval is None else interval
        known = (point.loss, point.interval) if alike else (None, None)
        rows.append(
            {
                "setting": str(point.way),
                **seen.figures(),
                "work": seen.work,
                "peak": seen.peak,
                "loss": loss,
                "loss_low": low,
                "loss_high": high,
                **sold(known, loss, interval),
                "objective": objective,
            }
        )
    return rows
