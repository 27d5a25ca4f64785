"""A knob beside its rivals: one table and one picture, in milliseconds, with intervals.

A row is a point: ``series`` (``knob``, or a rival's name), ``setting`` in words, ``levers`` that
are turned, ``saved`` (fraction of the time awake), ``latency_ms`` a batch, ``images_per_s``, the
objective, ``loss`` and its 95% interval ``loss_low`` to ``loss_high``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.files.atomic import write_json, write_text
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align, csv_text
from drowsy.images.structures import alike
from drowsy.images.view import View
from drowsy.knob.costs import network_cost
from drowsy.knob.metrics import METRICS
from drowsy.knob.point import OperatingPoint
from drowsy.study.losses import check_drawable, plot_losses
from drowsy.tuning.evaluate import evaluate, task_named
from drowsy.tuning.knob import Knob
from drowsy.tuning.levers import LEVERS
from drowsy.tuning.machine import Machine
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.resolution import resolution_for, shadow
from drowsy.tuning.table import cell
from drowsy.tuning.timing import in_turns

KNOB, SMALLER, PAPER = "knob", "a smaller image", "the paper's neuron"
# Savings of multiplications that the rivals are measured at.
SAVINGS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
_SECONDS = 20.0


def knob_rows(
    knob: Knob, images: Tensor | None = None, labels: Any = None, *, metric: Any = None
) -> list[Row]:
    """The points of a knob, awake first: as they were sold, or on other images.

    Args:
        knob: its milliseconds are as they were last measured.
        images, labels, metric: as for ``Knob.evaluate``; no images for the figures that the knob
            has.
    """
    points = [knob.awake, *(p for p in knob.points if p is not knob.awake)]
    told = knob.rows() if images is None else knob.evaluate(images, labels, metric=metric)
    objective = knob.objective if images is None else told[0]["objective"]

    def levers_of(point: OperatingPoint) -> str:
        return " + ".join(n for n in LEVERS if n in knob.turned(point)) or "awake"

    return [
        _row(knob, KNOB, found["setting"], levers_of(point), point.latency_ms, found, objective)
        for point, found in zip(points, told, strict=True)
    ]


def rival_rows(
    knob: Knob,
    model: nn.Module,
    images: Tensor,
    labels: Any = None,
    *,
    metric: Any = None,
    savings: Sequence[float] = SAVINGS,
    asleep: Sequence[int] = (1, 2),
    seconds: float = _SECONDS,
) -> list[Row]:
    """What a user has without a knob: the whole picture at fewer pixels; and the paper's neuron.

    Fewer pixels also in the number format of the knob's fastest point, where it has one. All are
    timed beside the network awake, in turns, and told in the knob's milliseconds.

    Args:
        knob: what they are rivals of.
        model: that it was tuned for.
        images: ``[N, C, H, W]`` to measure losses on; the first ones are the batch that is timed.
        labels, metric: as for ``Knob.evaluate``.
        savings: of the multiplications, by a smaller image; sizes that a network cannot take, or
            at which its outputs have another shape, are left out.
        asleep: rates of the paper's neuron (``bernoulli``, single neurons), in eighths.
        seconds: for the milliseconds of all of them together.
    """
    contents, full = knob.contents, (images.shape[-2], images.shape[-1])
    fastest = min(
        (knob.awake, *knob.points), key=lambda point: point.latency_ms or 0.0
    ).number_format
    formats = list(dict.fromkeys((None, fastest)))
    example = images[:1].to(next(model.parameters()))
    machine = Machine(model, example, Sleep("paper"), set(formats), {}, {}, contents.restores)
    net = machine.nets[None]
    counted = shadow(net, (images.shape[1], *full))

    def multiplies(size: tuple[int, int]) -> int:
        return network_cost(counted, (images.shape[1], *size)).convolutions.multiplies

    def at(rate: int, **turned: Any) -> OperatingPoint:
        setting = tuple(0 if name in net.resting else rate for name in net.layers)
        return OperatingPoint(net.schedule_of(setting), 0.0, **turned)

    rivals = [("awake", "", at(0))]
    sizes = [resolution_for(saving, multiplies, full) for saving in savings]
    views = [View(full, full, size) for size in sizes if size is not None and size != full]
    whole = machine.run(at(0), images[:1])
    views = [view for view in views if alike(machine.run(at(0, view=view), images[:1]), whole)]
    for name in formats:
        series = SMALLER if name is None else f"{SMALLER}, {name}"
        rivals += [(series, str(view), at(0, view=view, number_format=name)) for view in views]
    rivals += [(PAPER, f"{rate}/{net.k} asleep", at(rate)) for rate in asleep]
    points = [point for _, _, point in rivals]
    task = task_named(contents.made) if metric is None else metric
    objective, found = evaluate(machine, points, images, labels, task, knob.objective)
    shown = images[: knob.batch]
    runs = {str(n): lambda p=p: machine.run(p, shown) for n, p in enumerate(points)}  # type: ignore[misc]
    taken = in_turns(runs, seconds, cuda=images.is_cuda)
    rows = []
    for n, ((series, setting, _), each) in enumerate(zip(rivals, found, strict=True)):
        pace = torch.tensor(taken[str(n)]).div(torch.tensor(taken["0"])).median().item()
        told = {**each.figures, "loss": each.loss.mean}
        told |= {"loss_low": each.loss.low, "loss_high": each.loss.high}
        ms = knob.awake.latency_ms and knob.awake.latency_ms * pace
        rows.append(_row(knob, series, setting, series, ms, told, objective))
    return rows[1:]


def _row(
    knob: Knob, series: str, setting: str, levers: str, ms: float | None, found: Row, objective: str
) -> Row:
    whole = knob.awake.latency_ms
    return {
        "series": series,
        "setting": setting,
        "levers": levers,
        "saved": 1 - ms / whole if ms and whole else None,
        "latency_ms": ms,
        "images_per_s": ms and 1e3 * knob.batch / ms,
        objective: found[objective],
        **{name: found[name] for name in ("loss", "loss_low", "loss_high")},
    }


def table(rows: Sequence[Row], objective: str, batch: int, rule: str = "") -> str:
    """Rows as aligned text; with ``rule`` ``|``, as a table of Markdown."""
    metric = METRICS[objective]
    scale, digits = (100, 1) if metric.is_fraction else (1, 2)
    lines = [["", "setting", f"ms/{batch}", "images/s", metric.axis, metric.lost, "95% interval"]]
    for row in rows:
        names = (objective, "loss", "loss_low", "loss_high")
        good, loss, low, high = (cell(row[name], f".{digits}f", scale) for name in names)
        times = cell(row["latency_ms"], ".1f"), cell(row["images_per_s"], ".0f")
        span = f"{low} to {high}" if low else ""
        lines.append([row["series"], row["setting"], *times, good, loss, span])
    if not rule:
        return align(lines)
    lines.insert(1, ["---", "---", *["---:"] * 4, "---"])
    return "\n".join(f"{rule} {f' {rule} '.join(line)} {rule}" for line in lines)


def record(
    knob: Knob,
    rows: Sequence[Row],
    stem: str | os.PathLike[str],
    title: str,
    about: dict[str, Any] | None = None,
) -> list[Path]:
    """Write the table (``.csv``), the picture (``.png``) and where both come from (``.json``).

    Args:
        knob: that the rows are of.
        rows: of ``knob_rows`` and ``rival_rows``.
        stem: path without an ending.
        title: heads the picture.
        about: further facts for the record.

    Raises:
        ValueError: rows that ``drowsy.study.losses`` cannot draw; nothing is then written.
    """
    objective = next(name for name in METRICS if name in rows[0])
    paths = [Path(f"{os.fspath(stem)}.{ending}") for ending in ("csv", "json", "png")]
    check_drawable(rows)
    write_text(paths[0], csv_text(rows))
    contents = knob.contents
    facts = {
        "title": title,
        "objective": objective,
        "cost": contents.cost,
        "batch": knob.batch,
        "levers": dict(contents.levers),
        "tuned": dict(contents.made),
        **(about or {}),
        **provenance(),
        "rows": list(rows),
    }
    write_json(paths[1], facts)
    plot_losses(rows, objective, knob.batch, paths[2], title)
    return paths
