"""Clips made from pictures: a camera that shakes, pans or zooms, or a thing that moves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.files.messages import quoted

MOTIONS = ("still", "shake", "pan", "zoom", "thing")
# Of the picture's sides: how much of it a camera sees, and how large a thing is.
_SEEN, _THING = 0.8, 2 / 7


def moved(picture: Tensor, motion: str, frames: int, speed: float = 0.01) -> Tensor:
    """A clip of what a camera sees that moves over a picture.

    Args:
        picture: floating point ``[C, H, W]``.
        motion: ``still``; ``shake``, to and fro in both directions; ``pan``, sideways and back;
            ``zoom``, in and out; or ``thing``, a piece of the picture, upside down, that crosses it
            while the camera rests.
        frames: of the clip, 1 or more.
        speed: shares of a side a frame, 0 or more.

    Returns:
        ``[frames, C, H, W]``; the camera sees .8 of the picture's sides, scaled to its size.

    Raises:
        ValueError: another motion, picture, number or speed.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion: got {quoted(motion)}, allowed: {', '.join(MOTIONS)}")
    if picture.dim() != 3 or not picture.is_floating_point() or 0 in picture.shape:
        raise ValueError(
            f"picture: got {picture.dtype} {tuple(picture.shape)}, "
            "allowed: floating-point [C, H, W]"
        )
    if type(frames) is not int or frames < 1:
        raise ValueError(f"frames: got {quoted(frames)}, allowed: an integer, 1 or more")
    if not 0 <= speed < math.inf:
        raise ValueError(f"speed: got {quoted(speed)}, allowed: a number of 0 or more")
    return torch.stack([_seen(picture, motion, time * speed) for time in range(frames)])


def _seen(picture: Tensor, motion: str, way: float) -> Tensor:
    """What the camera sees after a way of so many sides."""
    room = 1 - _SEEN
    across = down = 0.0
    size = _SEEN
    if motion == "pan":
        across = _to_and_fro(way, room)
    elif motion == "shake":
        across, down = _to_and_fro(way, room / 2), _to_and_fro(1.7 * way, room / 2)
    elif motion == "zoom":
        size = _SEEN - _to_and_fro(way, room)
    # In sides of the picture, -1 to 1, as grids are given.
    rows = [[size, 0.0, across], [0.0, size, down]]
    theta = torch.tensor([rows], dtype=picture.dtype, device=picture.device)
    grid = F.affine_grid(theta, [1, *picture.shape], align_corners=False)
    seen = F.grid_sample(picture[None], grid, align_corners=False, padding_mode="border")[0]
    if motion == "thing":
        _, height, width = seen.shape
        tall, wide = (max(round(_THING * n), 1) for n in (height, width))
        top = (height - tall) // 2
        left = round(_to_and_fro(way, 1 - _THING) * width)
        thing = picture.flip(1)[:, :tall, :wide]
        seen[:, top : top + tall, left : left + wide] = thing
    return seen


def _to_and_fro(way: float, room: float) -> float:
    """Where one is after a way between two walls."""
    along = way % (2 * room)
    return min(along, 2 * room - along)
