"""Names and values as messages show them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from drowsy.files.messages import legible, listed, quoted


@pytest.mark.parametrize("name", ["conv1", "layer1.0.β", "a b.png", "/data/set/a-1_2.png", "日本"])
def test_a_name_that_prints_is_shown_as_it_is(name: str) -> None:
    assert legible(name) == name
    assert legible(Path(name)) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "''"),
        (" a", "' a'"),
        ("a\nb", r"'a\nb'"),
        ("\x1b[2J", r"'\x1b[2J'"),
        ("a\u202eb", r"'a\u202eb'"),
        ("\udcff.png", r"'\udcff.png'"),
        ("a\u2028b", r"'a\u2028b'"),
    ],
)
def test_any_other_name_is_quoted(name: str, shown: str) -> None:
    assert legible(name) == shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("doze", "'doze'"),
        (0.5, "0.5"),
        (None, "None"),
        (Fraction(3, 8), "3/8"),
        (Fraction(3), "3"),
        (10**400, "1" + "0" * 400),
        (10**5000, "an integer of 16610 bits"),
        ([1, 2], "[1, 2]"),
        (list(range(99)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        ([[[[[[1]]]]]], "[[[[[...]]]]]"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_value_is_shown_in_short(value: Any, shown: str) -> None:
    assert quoted(value) == shown


def test_long_texts_and_deep_lists_are_shown_in_short() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert len(quoted(deep)) < 100
    assert len(quoted("a" * 10**6)) == 100
    assert len(legible("a" * 10**6)) == 100


def test_a_list_of_names_tells_how_many_more_there_are() -> None:
    assert listed(["b", "a\n"]) == r"'a\n', b"
    assert listed(map(str, range(12))) == "0, 1, 10, 11, 2, 3, 4, 5 and 4 more"
