"""Integers from outside: options of sources, numbers of specifications."""

from __future__ import annotations


def is_integer(value: object) -> bool:
    """Whether it is an integer and no truth value, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_integer(name: str, value: object, least: int, most: int) -> None:
    """Raise unless it is an integer from ``least`` to ``most``.

    Raises:
        TypeError: no integer.
        ValueError: out of range.
    """
    if not is_integer(value):
        raise TypeError(f"{name}: got {value!r}, allowed: an integer")
    if not least <= value <= most:  # type: ignore[operator]
        raise ValueError(f"{name}: got {value}, allowed: {least} to {most}")
