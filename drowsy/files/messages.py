"""Names and values of strangers, as messages show them: short, on one line, without terminal codes.

What a folder or a file holds was named by somebody else. A name with a line break would write lines
into a log, one with an escape code would repaint a terminal, and a list of a million numbers would
bury the message that it stands in.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

# Longer paths than any system opens are shortened.
_PATH = 4096
_LISTED = 8


class _Short(reprlib.Repr):
    """``repr`` to a few elements, levels and characters; integers in full, if Python can."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = _LISTED
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:
        try:
            return repr(x)
        except ValueError:  # a few thousand digits, no more
            return f"an integer of {x.bit_length()} bits"

    def repr_Fraction(self, x: Fraction, level: int) -> str:
        parts = (x.numerator, x.denominator) if x.denominator > 1 else (x.numerator,)
        return "/".join(self.repr_int(part, level) for part in parts)


_SHORT = _Short()


def quoted(value: Any) -> str:
    """A value's ``repr``, shortened; it holds no line break and no terminal code."""
    return _SHORT.repr(value)


def legible(name: object) -> str:
    """A name, path or sentence as it is where every character of it prints, else ``quoted``."""
    text = str(name)
    plain = text.isprintable() and text == text.strip() and 0 < len(text) <= _PATH
    return text if plain else quoted(text)


def listed(names: Iterable[str]) -> str:
    """The first few names in sorted order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _LISTED
    return ", ".join(map(legible, ordered[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def counted(count: int, name: str) -> str:
    """So many of something: ``1 image``, ``2,000 images``."""
    return f"{count:,} {name}" + "s" * (count != 1)
