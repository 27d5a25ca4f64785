"""Cuts: frames that have nothing to do with the one before."""

from __future__ import annotations

import math
from collections import deque

import torch.nn.functional as F
from torch import Tensor

from drowsy.files.messages import quoted

DEFAULT_CUT = 0.8


class Cuts:
    """Finds cuts in one camera's frames by a cheap difference of tiny pictures.

    The difference of two frames is the mean absolute difference of their 16 x 16 pictures, in units
    of the later one's contrast (its mean absolute deviation from its own mean), so neither exposure
    nor a network's preprocessing changes what it means: unrelated pictures differ by about 1. One
    street differs from another by less, and a car that passes close to the camera by more, but
    that grows from frame to frame: so a smaller difference is a cut where it is a leap.

    Args:
        least: the difference from which on a frame is a cut, above 0; three eighths of it are
            enough where the differences of the four frames before were at most a third of it.
        rest: frames after a cut in which no other is found, so that the mean work stays bounded
            whatever a camera shows.
    """

    SIDE = 16
    LEAP, AT_LEAST, BEFORE = 3.0, 0.375, 4

    def __init__(self, least: float = DEFAULT_CUT, rest: int = 8) -> None:
        self.least, self.rest = check_cut(least), rest
        self._before: Tensor | None = None
        self._resting = 0
        self._differences: deque[float] = deque(maxlen=self.BEFORE)

    def found(self, frame: Tensor) -> bool:
        """Whether this frame ``[C, H, W]`` is a cut; the first is none."""
        first, usual = self._before is None, max(self._differences, default=math.inf)
        difference = self.difference(frame)
        if not first:
            self._differences.append(difference)
        if self._resting:
            self._resting -= 1
            return False
        leaps = difference >= max(self.AT_LEAST * self.least, self.LEAP * usual)
        if difference < self.least and not leaps:
            return False
        self._resting = self.rest
        return True

    def difference(self, frame: Tensor) -> float:
        """How much the frame differs from the one before; 0 for the first."""
        step = max(min(frame.shape[1:]) // (4 * self.SIDE), 1)
        tiny = F.adaptive_avg_pool2d(frame[:, ::step, ::step].float().mean(0)[None], self.SIDE)
        before, self._before = self._before, tiny
        if before is None:
            return 0.0
        contrast = (tiny - tiny.mean()).abs().mean()
        # A frame without contrast, all black, differs from one with contrast as much as can be.
        contrast = contrast.maximum((before - before.mean()).abs().mean()).clamp_min(1e-6)
        return float((tiny - before).abs().mean() / contrast)


def check_cut(least: float) -> float:
    """Raise unless it is a number above 0."""
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not least > 0:
        raise ValueError(f"cut: got {quoted(least)}, allowed: a number above 0, or None for none")
    return float(least)
