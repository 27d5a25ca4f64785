"""Frames of a clip or camera as the pixels of a network's input (extra ``video``: PyAV)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.files.messages import legible
from drowsy.images.preprocess import Preprocess

_CAMERA = "/dev/video"
# How clips are called, mostly; whatever FFmpeg reads is one, too.
_CLIPS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv", ".y4m")


def is_clip(path: str | os.PathLike[str]) -> bool:
    """Whether what a path names is a clip, by its name."""
    return os.path.splitext(path)[1].lower() in _CLIPS and not os.path.isdir(path)


def read_frames(
    path: str | os.PathLike[str], preprocess: Preprocess, *, most: int | None = None, every: int = 1
) -> Iterator[Tensor]:
    """The frames of a clip, or of a camera (``/dev/video0``), decoded as they are asked for.

    Args:
        path: of a file that FFmpeg reads, or of a camera.
        preprocess: frames are scaled to ``resize`` (up too; ``crop`` where it is None) along their
            shorter side, and the square of ``crop`` is cut from their middle.
        most: frames to give, 1 or more; None: all.
        every: give every so many frames only, 1 or more.

    Yields:
        uint8 ``[S, S, 3]``, RGB.

    Raises:
        ValueError: no video can be read there, a single picture is all there is, or numbers that
            are not allowed.
        ImportError: PyAV is not installed.
    """
    for name, number in (("most", most), ("every", every)):
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{name}: got {number!r}, allowed: an integer, 1 or more")
    given = seen = 0
    with _opened(path) as container:
        for frame in _decoded(container, path):
            if seen % every == 0:
                yield _cut(frame, preprocess)
                given += 1
                if given == most:
                    return
            seen += 1
    if seen < 2:
        told = "one frame, as a picture does" if seen else "no frame"
        raise ValueError(f"clip: {legible(path)} holds {told}, allowed: two or more")


def frame_rate(path: str | os.PathLike[str]) -> float:
    """Frames a second, as the file tells; 25 where it does not.

    Raises:
        ValueError: no video can be read there.
    """
    with _opened(path) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else 25.0


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    av = require("av", "video")
    if os.path.isdir(path):
        raise ValueError(f"clip: {legible(path)} is a folder, allowed: a clip, such as one in it")
    kind = "v4l2" if str(path).startswith(_CAMERA) else None
    try:
        container = av.open(str(path), format=kind)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"clip: {legible(path)} cannot be read as a video ({legible(error)})"
        ) from error
    with container:
        if not container.streams.video:
            raise ValueError(f"clip: {legible(path)} has no pictures")
        yield container


def _decoded(container: Any, path: str | os.PathLike[str]) -> Iterator[Any]:
    av = require("av", "video")
    try:
        yield from container.decode(video=0)
    except av.FFmpegError as error:
        raise ValueError(f"clip: {legible(path)} breaks off ({legible(error)})") from error


def _cut(frame: Any, preprocess: Preprocess) -> Tensor:
    side, crop = preprocess.resize or preprocess.crop, preprocess.crop
    ratio = max(side, crop) / min(frame.width, frame.height)
    width, height = (max(round(n * ratio), crop) for n in (frame.width, frame.height))
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    left, top = (width - crop) // 2, (height - crop) // 2
    pixels = scaled.to_ndarray()[top : top + crop, left : left + crop]
    return torch.from_numpy(pixels.copy())
