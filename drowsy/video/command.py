"""``drowsy video``: a network on a clip or camera, frame by frame, and a table against rivals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from drowsy._optional import require
from drowsy.files.atomic import replacing
from drowsy.files.tables import align
from drowsy.images.folders import normalise
from drowsy.images.frames import frame_rate, read_frames
from drowsy.images.preprocess import Preprocess
from drowsy.network.net import DrowsyNet
from drowsy.video.areas import REFRESH
from drowsy.video.cuts import DEFAULT_CUT
from drowsy.video.shading import shaded
from drowsy.video.stream import Look, Stream
from drowsy.video.ways import Player, Way

# How high the line of text is for each pixel of the picture.
_TEXT = 1 / 14


def watch(
    net: DrowsyNet,
    preprocess: Preprocess,
    clip: str | os.PathLike[str],
    *,
    refresh: str = "bands",
    rate: float | Fraction = Fraction(1, 2),
    cut: float | None = DEFAULT_CUT,
    most: int | None = None,
    every: int = 1,
    out: str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    show: Callable[[str], None] | None = None,
) -> str:
    """Run a stream over a clip, beside the awake network, every refresh and skipped frames.

    Args:
        net: a converted network.
        preprocess: what it expects of a frame.
        clip: a file, or a camera such as ``/dev/video0``.
        refresh, rate, cut: of the stream that is shown (``drowsy.Stream``).
        most: frames to look at; a camera is looked at for 250 if it is None.
        every: look at every so many frames only.
        out: a clip to write (``.mp4``): the frames, what sleeps darkened, with the answer, the work
            and the milliseconds of each.
        names: of classes, for answers of classifiers.
        show: called with a line for each frame.

    Returns:
        a table: a line for the awake network, for frames skipped, and for every refresh that has
        the rate; mean and largest share of the multiplications of a frame, mean milliseconds, and
        agreement (the class, or the class of every pixel) and relative error of the outputs
        against the awake network's; of the frames after the first.

    Raises:
        ValueError: a clip, refresh, rate or cut that is not allowed.
        ImportError: PyAV is not installed, or, for ``out``, Pillow.
    """
    shown = Stream(net, refresh=refresh, rate=rate, cut=cut)
    if most is None and str(clip).startswith("/dev/"):
        most = 250
    others = {name: kind for name, kind in REFRESH.items() if name != refresh}
    ways = {refresh: _Timed(shown)}
    for name in others:
        try:
            ways[name] = _Timed(Stream(net, refresh=name, rate=rate, cut=cut))
        except ValueError:  # this refresh has no such rate
            continue
    awake = _Timed(net)
    if shown.rate:
        n = round(1 / (1 - shown.rate))
        ways[f"dense every {n}"] = _Timed(Player(net, Way(every=n), cut=cut))
    like = next(net.parameters())
    rows = {name: _Row() for name in ("awake", *ways)}
    writer = _writer(out, frame_rate(clip) / every, preprocess.crop)
    with torch.inference_mode(), writer as write:
        for pixels in read_frames(clip, preprocess, most=most, every=every):
            frame = normalise(pixels[None], preprocess).to(like)
            want = awake(frame)
            rows["awake"].note(want, want, awake.ms, 1.0)
            for name, way in ways.items():
                got, look = way(frame), _look(way)
                rows[name].note(got, want, way.ms, look.work)
                if name == refresh:
                    line = _line(got, look, way.ms, names)
                    write(pixels, look, line)
                    if show is not None:
                        show(f"frame {rows['awake'].count}: {line}")
    header = ["way", "work", "peak", "ms", "agreement", "error"]
    return align([header, *([name, *row.cells()] for name, row in rows.items())])


class _Timed:
    """A network or stream, and how long its last call took."""

    def __init__(self, call: Any) -> None:
        self.call, self.ms = call, 0.0

    def __call__(self, frame: Tensor) -> Any:
        start = time.perf_counter()
        output = self.call(frame)
        if frame.is_cuda:
            torch.cuda.synchronize()
        self.ms = (time.perf_counter() - start) * 1e3
        return output


class _Row:
    """A line of the table."""

    def __init__(self) -> None:
        self._figures: list[tuple[float, float, float, float]] = []

    @property
    def count(self) -> int:
        return len(self._figures)

    def note(self, got: Any, want: Any, ms: float, work: float) -> None:
        mine, theirs = _main(got).float(), _main(want).float()
        agreement = (mine.argmax(1) == theirs.argmax(1)).float().mean()
        error = (mine - theirs).norm() / theirs.norm().clamp_min(1e-12)
        self._figures.append((work, ms, float(agreement), float(error)))

    def cells(self) -> list[str]:
        # The first frame is dense in every way.
        work, ms, agreement, error = zip(*(self._figures[1:] or self._figures), strict=True)
        told = f"{mean(work):.2f}", f"{max(work):.2f}", f"{mean(ms):.1f}"
        return [*told, f"{mean(agreement):.1%}", f"{mean(error):.3f}"]


def _main(output: Any) -> Tensor:
    """The output that is looked at: the first tensor ``[1, C, ...]``."""
    found = [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.dim() > 1]
    if not found:
        raise ValueError("net: puts out no tensor of two dimensions or more, allowed: one")
    return found[0]


def _look(way: _Timed) -> Look:
    (look,) = way.call.looks
    assert look is not None, "it has looked at a frame"
    return look


def _line(output: Any, look: Look, ms: float, names: Sequence[str] | None) -> str:
    """What is told of a frame."""
    answer = _main(output)
    told = ""
    if answer.dim() == 2:
        best = int(answer[0].argmax())
        name = names[best] if names is not None and best < len(names) else f"class {best}"
        told = f"{name} {float(answer[0].float().softmax(0)[best]):.0%}, "
    return f"{told}work {look.work:.0%} ({look.why}), {ms:.1f} ms"


@contextmanager
def _writer(
    out: str | os.PathLike[str] | None, rate: float, side: int
) -> Iterator[Callable[[Tensor, Look, str], None]]:
    """What writes a frame with its areas and line; nothing where there is nowhere to write to."""
    if out is None:
        yield lambda *_: None
        return
    av, draw = require("av", "video"), require("PIL.ImageDraw", "video")
    pictures = require("PIL.Image", "video")
    # Encoders want even sides.
    band = max(int(side * _TEXT), 14) // 2 * 2
    width, height = side + side % 2, side + side % 2 + band
    with replacing(out) as temporary:
        # The format by the name that was asked for, not by that of the temporary file.
        kind = Path(out).suffix.removeprefix(".") or "mp4"
        with av.open(str(temporary), "w", format=kind) as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"

            def write(pixels: Tensor, look: Look, line: str) -> None:
                canvas = np.zeros((height, width, 3), np.uint8)
                canvas[:side, :side] = shaded(pixels, look)
                picture = pictures.fromarray(canvas)
                draw.Draw(picture).text((2, height - band + 1), line, fill=(255, 255, 255))
                frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
                container.mux(stream.encode(frame))

            yield write
            container.mux(stream.encode())
