"""Frames in which it can be seen what a stream let sleep."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from drowsy.video.stream import Look

# How dark what sleeps is shown.
_ASLEEP = 0.5


def shaded(pixels: Tensor, look: Look) -> Any:
    """A frame, uint8 ``[S, S, 3]``, as an array in which what sleeps is dark."""
    image = pixels.numpy()
    made = (image * _ASLEEP).astype(np.uint8)
    for box in look.boxes:
        top, bottom, left, right = box.at((image.shape[0], image.shape[1]))
        made[top:bottom, left:right] = image[top:bottom, left:right]
    return made
