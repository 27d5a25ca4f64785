"""Tables as text: aligned columns to read, CSV to keep."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""A table's row: values by column."""


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, under a header of their columns.

    Args:
        rows: at least one, all of the first one's keys. Floats (numpy's double too) get six
            significant digits, None an empty cell; text that holds commas or quotes is quoted.

    Raises:
        IndexError: no rows.
        ValueError: a row with a key that the first has not.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows
    )
    return text.getvalue()


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns two spaces apart, with a rule under the first row, the header.

    Args:
        rows: at least one, of equal length; cells without line breaks.

    Returns:
        the lines, none of which ends in spaces.

    Raises:
        IndexError, ValueError: no rows, or rows of unequal length.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
