"""``load``: a knob of either kind from its file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import nn

from drowsy.graph.convert import check_model, inside
from drowsy.tuning import knob

if TYPE_CHECKING:
    from drowsy.tuning.clips.knob import VideoKnob


def load(path: str | os.PathLike[str], model: nn.Module) -> knob.Knob | VideoKnob:
    """The knob in a file, for the model that it was tuned for: a ``Knob``, or a ``VideoKnob``.

    Warns where its milliseconds and joules are of another machine: ``knob.measure()`` measures
    here.

    Args:
        path: as ``Knob.save`` or ``VideoKnob.save`` wrote it.
        model: with the same weights, in eval mode; shares nothing with the knob.

    Raises:
        FileNotFoundError: no such file.
        ImportError: safetensors is not installed.
        TypeError: no path, or no model.
        ValueError: not a whole knob file of this version, or a model with other weights.
    """
    video = is_video_knob(path)
    check_model(inside(model))
    if video:
        # Imported here: what streams are made of must not slow down programs without video.
        from drowsy.tuning.clips import knob as clips

        return clips.load(path, model)
    return knob.load(path, model)


def is_video_knob(path: str | os.PathLike[str]) -> bool:
    """Whether a knob's file is one for video, which is text, or one for images, which is not.

    Raises:
        OSError: it cannot be read.
        TypeError: no path. A file that is open already, by its number, is left as it is.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"knob: got {type(path).__name__}, allowed: the path of a file")
    with open(path, "rb") as file:
        return file.read(1) == b"{"
