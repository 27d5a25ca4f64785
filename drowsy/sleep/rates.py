"""Rates: multiples of ``1/k``."""

from __future__ import annotations

from fractions import Fraction

from drowsy.files.messages import quoted

MAX_K = 256
DEFAULT_K = 8


def threshold(rate: float | Fraction, k: int = DEFAULT_K) -> int:
    """The integer ``j`` with ``rate == j / k``.

    Raises:
        TypeError: no number.
        ValueError: rate outside [0, 1), or not a multiple of ``1/k`` (within 1e-9).
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)):
        raise TypeError(f"rate: got {quoted(rate)}, allowed: a number in [0, 1)")
    j = round(rate * k) if 0 <= rate < 1 else k
    if j >= k or abs(float(rate) - j / k) > 1e-9:
        raise ValueError(
            f"rate: got {quoted(rate)}, allowed: multiples of 1/{k} from 0 to {k - 1}/{k}"
        )
    return j
