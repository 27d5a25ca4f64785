"""Tables as text."""

from __future__ import annotations

import numpy as np
import pytest

from drowsy.files.tables import align, csv_text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("layer", "rate"), ("a", "3/8"), ("longest", "")]
    assert align(rows).split("\n") == ["layer    rate", "-------  ----", "a        3/8", "longest"]
    assert align([("a", "bc")]) == "a  bc\n-  --"


def test_csv_of_every_kind_of_value() -> None:
    row = {"name": "a,b", "loss": 1 / 3, "double": np.float64(2e-7), "count": 12, "none": None}
    assert csv_text([row]) == 'name,loss,double,count,none\n"a,b",0.333333,2e-07,12,\n'


def test_rows_that_make_no_table_are_refused() -> None:
    for table in (align, csv_text):
        with pytest.raises(IndexError):
            table([])  # type: ignore[operator]
    with pytest.raises(ValueError, match="zip"):
        align([("a", "b"), ("a", "b", "c")])
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        csv_text([{"a": 1}, {"b": 1}])
