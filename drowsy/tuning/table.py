"""A knob's points as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from drowsy.files.tables import Row, align
from drowsy.knob.metrics import METRICS


def points_table(rows: Sequence[Row], objective: str, batch: int) -> str:
    """Rows of ``Knob.rows`` as text, a star before the one in force."""
    metric = METRICS[objective]
    scale, digits = (100, 1) if metric.is_fraction else (1, 2)
    unit = "points" if metric.is_fraction else metric.unit
    has_joules = any(row["joules"] is not None for row in rows)
    head = ["", "setting", "saved", f"ms/{batch}", "images/s"]
    head += ["J/image"] * has_joules
    head += [metric.axis, f"lost ({unit})", "95% interval"]
    lines = [head]
    for row in rows:
        line = ["*" if row["in_force"] else "", row["setting"], f"{row['saved']:.0%}"]
        line += [_cell(row["latency_ms"], ".2f"), _cell(row["images_per_s"], ".0f")]
        line += [_cell(row["joules"], ".4g")] * has_joules
        line.append(_cell(row[objective], f".{digits}f", scale))
        line.append(_cell(row["loss"], f".{digits}f", scale))
        ends = [_cell(row[each], f".{digits}f", scale) for each in ("loss_low", "loss_high")]
        line.append(" to ".join(ends) if row["loss_low"] is not None else "")
        lines.append(line)
    return align(lines)


def _cell(value: float | None, form: str, scale: float = 1.0) -> str:
    # Adding 0 turns -0.0 into 0.0.
    return "" if value is None else format(round(value * scale, 6) + 0.0, form)
