"""A picture as the page shows it: over it who sleeps, and what the network is not shown."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.images.view import View
from drowsy.reporting.pictures import NIGHT
from drowsy.video.shading import shaded
from drowsy.video.stream import Look

# Pixels of a side on the page, about; a whole number of them for each of the network's.
_SIDE = 448
# How strong sleep's colour is where all sleeps, and how dark what is not shown.
_STRENGTH, _HIDDEN = 0.7, 0.3


def of_knob(pixels: Tensor, view: View | None, share: Tensor | None) -> str:
    """A picture with sleep's colour over it, and dark where the view leaves it out.

    Args:
        pixels: uint8 ``[S, S, 3]``.
        view: what of it the network is shown; None for all.
        share: ``[h, w]`` over what it is shown, of each place what sleeps, 0 to 1; None for nobody.

    Returns:
        an address that holds the picture.
    """
    large = _enlarged(pixels)
    top, bottom, left, right = _taken(view, len(large))
    shown = torch.full((len(large), len(large), 1), _HIDDEN)
    shown[top:bottom, left:right] = 1
    made = large * shown
    if share is not None:
        asleep = _nearest(share, (bottom - top, right - left))[..., None] * _STRENGTH
        inside = made[top:bottom, left:right]
        inside.mul_(1 - asleep).add_(asleep * torch.tensor(NIGHT, dtype=torch.float32))
    return _address(made)


def of_stream(pixels: Tensor, look: Look) -> str:
    """A picture in which the areas that sleep are dark; as ``of_knob`` otherwise."""
    return _address(_enlarged(torch.from_numpy(shaded(pixels, look))))


def _enlarged(pixels: Tensor) -> Tensor:
    times = max(round(_SIDE / len(pixels)), 1)
    size = times * pixels.shape[1], times * pixels.shape[0]
    image = _pillow().fromarray(pixels.numpy()).resize(size, _pillow().Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).float()


def _taken(view: View | None, side: int) -> tuple[int, int, int, int]:
    """``(top, bottom, left, right)`` of what a view takes of a square picture's middle."""
    if view is None:
        return 0, side, 0, side
    down, across = (round(side * view.middle[i] / view.full[i]) for i in (0, 1))
    top, left = (side - down) // 2, (side - across) // 2
    return top, top + down, left, left + across


def _nearest(share: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(share[None, None], size, mode="nearest-exact")[0, 0]


def _address(picture: Tensor) -> str:
    file = io.BytesIO()
    values = picture.round().clamp(0, 255).byte().contiguous().numpy()
    _pillow().fromarray(values).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _pillow() -> Any:
    return require("PIL.Image", "data")
