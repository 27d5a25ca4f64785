"""A knob's points as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drowsy.files.messages import counted, legible
from drowsy.files.tables import Row, align
from drowsy.knob.frontier import SAVES
from drowsy.knob.metrics import METRICS
from drowsy.tuning.waiting import busy


def points_table(rows: Sequence[Row], objective: str, batch: int) -> str:
    """Rows of ``Knob.rows`` as text, a star before the one in force."""
    has_joules = any(row["joules"] is not None for row in rows)
    head = [f"ms/{batch}", "images/s", *["J/image"] * has_joules]
    lines = []
    for row in rows:
        line = [cell(row["latency_ms"], ".2f"), cell(row["images_per_s"], ".0f")]
        line += [cell(row["joules"], ".4g")] * has_joules
        lines.append(line)
    return _table(rows, objective, head, lines)


def clips_table(rows: Sequence[Row], objective: str) -> str:
    """Rows of ``VideoKnob.rows`` as text, a star before the one in force."""
    columns = {"latency_ms": "ms/frame", "slowest_ms": "slowest", "work": "work", "peak": "peak"}
    lines = [[cell(row[name], ".2f") for name in columns] for row in rows]
    head = list(columns.values())
    if any(row["joules"] is not None for row in rows):
        head.append("J/frame")
        lines = [[*line, cell(row["joules"], ".4g")] for line, row in zip(lines, rows, strict=True)]
    return _table(rows, objective, head, lines)


def described(table: str, cost: str, made: Mapping[str, Any], levers: Mapping[str, str]) -> str:
    """A table, below it what its columns mean, and a line of what came of every lever.

    Of milliseconds that were measured on a busy machine a line says so.

    Args:
        table: as the functions above make it.
        cost: what is saved.
        made: where the figures come from, of a file that may be a stranger's.
        levers: by name, in words.
    """
    seen = [
        counted(made[f"{kind}s"]["report"], kind)
        for kind in ("image", "clip", "frame")
        if isinstance(made.get(f"{kind}s"), Mapping) and type(made[f"{kind}s"].get("report")) is int
    ]
    on = f", on {' and '.join(seen)} that nothing was chosen on" if seen else ""
    marks = f"* in force; saved: of the {SAVES[cost]}; lost: against the network awake{on}"
    told = [f"{legible(lever)}: {legible(reason)}" for lever, reason in levers.items()]
    return "\n".join([table, marks, *busy(made), *told])


def _table(
    rows: Sequence[Row], objective: str, head: Sequence[str], spent: Sequence[Sequence[str]]
) -> str:
    """What every point is, ``spent``, and what it loses."""
    metric = METRICS[objective]
    scale, digits = (100, 1) if metric.is_fraction else (1, 2)
    lines = [["", "setting", "saved", *head, metric.axis, metric.lost, "95% interval"]]
    for row, cells in zip(rows, spent, strict=True):
        line = ["*" if row["in_force"] else "", row["setting"], f"{row['saved']:.0%}", *cells]
        names = (objective, "loss", "loss_low", "loss_high")
        good, loss, low, high = (cell(row[name], f".{digits}f", scale) for name in names)
        lines.append([*line, good, loss, f"{low} to {high}" if low else ""])
    return align(lines)


def cell(value: float | None, form: str, scale: float = 1.0) -> str:
    """A number in a table, times ``scale``; nothing where it is not known."""
    # Adding 0 turns -0.0 into 0.0.
    return "" if value is None else format(round(value * scale, 6) + 0.0, form)
