"""Example pictures: as they are, as a view shows them, and where the network sleeps in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.reporting.markup import tag
from drowsy.tuning.knob import Knob
from drowsy.video.areas import WHOLE, Box

# Pixels of a side that a picture is sent with, at most; smaller ones are shown square by square.
_LARGEST, _SMALL = 256, 64
# Of sleep's colour, in both schemes; as strong where all work sleeps.
NIGHT, _STRENGTH = (126, 58, 220), 0.85


class Album:
    """Example pictures, each of which is in a page once.

    Args:
        images: ``[N, C, H, W]`` as the network takes them.
        mean, std: by which they were normalised, a channel each; None shows every picture from its
            darkest to its brightest value.
    """

    def __init__(
        self,
        images: Tensor,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.images, self._mean, self._std = images, mean, std
        self._size = images.shape[-1], images.shape[-2]

    def store(self) -> Element:
        """What holds the pictures; it shows none itself."""
        held = [
            _image(_uri(self._visible(image)), (0, 0), self._size, id=f"picture{n}")
            for n, image in enumerate(self.images)
        ]
        return tag("svg", tag("defs", held), width=0, height=0, class_="store", aria_hidden="true")

    def framed(self, view: View, n: int = 0) -> Element:
        """A picture with the frame of a view drawn in it."""
        return self._frame(n, [*self._outside(view), self._border(view)], "what the view takes")

    def shown(self, view: View, n: int = 0) -> Element:
        """What a view makes of a picture, as large as the picture."""
        picture = _uri(self._visible(view(self.images[n : n + 1])[0]))
        width, height = self._size
        inside = _image(picture, (0, 0), (width, height), class_="pixels")
        return _svg(self._size, [inside], "what the network is given")

    def asleep(self, knob: Knob, point: OperatingPoint) -> list[Element]:
        """Every picture with what sleeps at a point laid over it."""
        view = point.view or View.whole((self._size[1], self._size[0]))
        drawn = []
        for n, share in enumerate(knob.sleep_map(self.images, point)):
            start, size = self._place(view)
            night = _image(_uri(_night(share)), start, size, class_="pixels")
            night.set("preserveAspectRatio", "none")
            inside = [*self._outside(view), night]
            drawn.append(self._frame(n, inside, f"{float(share.mean()):.0%} asleep"))
        return drawn

    def partly(self, n: int, boxes: Sequence[Box], title: str) -> Element:
        """A picture in which all sleeps but these boxes."""
        width, height = self._size
        whole = f"M0 0h{width}v{height}h{-width}Z"
        night = tag("path", d=whole + _outlines(boxes, self._size), class_="night")
        return self._frame(n, [] if boxes == (WHOLE,) else [night], title)

    def _frame(self, n: int, over: Sequence[Element], title: str) -> Element:
        return _svg(self._size, [tag("use", href=f"#picture{n}"), *over], title)

    def _place(self, view: View) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the middle that a view takes begins in a picture, and its size, in pixels."""
        width, height = self._size
        parts = view.middle[1] / view.full[1], view.middle[0] / view.full[0]
        size = (width * parts[0], height * parts[1])
        return ((width - size[0]) / 2, (height - size[1]) / 2), size

    def _outside(self, view: View) -> list[Element]:
        """A veil over what a view leaves out."""
        if view.covers:
            return []
        (left, top), (across, down) = self._place(view)
        width, height = self._size
        hole = f"M{left:.2f} {top:.2f}h{across:.2f}v{down:.2f}h{-across:.2f}Z"
        whole = f"M0 0h{width}v{height}h{-width}Z"
        return [tag("path", d=whole + hole, class_="veil")]

    def _border(self, view: View) -> Element:
        (left, top), (across, down) = self._place(view)
        line = max(self._size) / 90
        return tag(
            "rect",
            x=left + line / 2,
            y=top + line / 2,
            width=across - line,
            height=down - line,
            stroke_width=line,
            class_="frame",
        )

    def _visible(self, image: Tensor) -> Any:
        """An image ``[C, H, W]`` as Pillow's; without three channels, the mean of them in grey."""
        pixels = image.detach().float().cpu()
        if self._mean is not None and self._std is not None:
            mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self._mean, self._std))
            pixels = pixels * std + mean
        else:
            low, high = pixels.aminmax()
            pixels = (pixels - low) / (high - low).clamp_min(1e-12)
        if len(pixels) != 3:
            pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
        values = (255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0)
        return _pillow().fromarray(values.contiguous().numpy(), "RGB")


def schema(view: View) -> Element:
    """A view without a picture: its frame in the whole, in proportion."""
    height, width = view.full
    down, across = view.middle
    line = max(view.full) / 24
    outer = tag("rect", x=0, y=0, width=width, height=height, class_="whole", stroke_width=line)
    inner = tag(
        "rect",
        x=(width - across) / 2,
        y=(height - down) / 2,
        width=across,
        height=down,
        class_="middle",
    )
    return _svg((width, height), [inner, outer], str(view), "schema")


def moments(frames: Sequence[Sequence[Box]], lever: str) -> Element:
    """Frames in a row without pictures: small squares, coloured where they are computed."""
    side, apart = 24, 4
    inside = []
    for n, boxes in enumerate(frames):
        across = n * (side + apart)
        inside.append(tag("rect", x=across, y=0, width=side, height=side, class_="base"))
        path = tag("path", d=_outlines(boxes, (side, side)), class_=f"on {lever}")
        path.set("transform", f"translate({across} 0)")
        inside.append(path)
    size = (len(frames) * (side + apart) - apart, side)
    return _svg(size, inside, f"{len(frames)} frames in a row", "moments")


def _outlines(boxes: Sequence[Box], size: tuple[int, int]) -> str:
    """A path around boxes in a picture of ``(W, H)``."""
    drawn = []
    for box in boxes:
        top, bottom, left, right = box.at((size[1], size[0]))
        across = right - left
        drawn.append(f"M{left} {top}h{across}v{bottom - top}h{-across}Z")
    return "".join(drawn)


def shrunk(view: View) -> Element:
    """A size without a picture: its pixels beside those of the whole, in proportion."""
    (height, width), (down, across) = view.full, view.size
    line = max(view.full) / 24
    outer = tag("rect", x=0, y=0, width=width, height=height, class_="whole", stroke_width=line)
    inner = tag("rect", x=0, y=height - down, width=across, height=down, class_="middle of-size")
    return _svg((width, height), [inner, outer], str(view), "schema")


def _night(share: Tensor) -> Any:
    """A map ``[h, w]`` of fractions asleep as a veil of one colour."""
    veil = torch.tensor([*NIGHT, 0], dtype=torch.float32).repeat(*share.shape, 1)
    veil[..., 3] = 255 * _STRENGTH * share
    return _pillow().fromarray(veil.round().byte().numpy(), "RGBA")


def _uri(picture: Any) -> str:
    """A picture as an address that holds it: PNG where it is small or a veil, else JPEG."""
    picture.thumbnail((_LARGEST, _LARGEST))
    exact = picture.mode == "RGBA" or max(picture.size) <= _SMALL
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True) if exact else picture.save(file, "JPEG", quality=88)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _image(
    href: str, start: tuple[float, float], size: tuple[float, float], **more: str
) -> Element:
    return tag("image", href=href, x=start[0], y=start[1], width=size[0], height=size[1], **more)


def _svg(
    size: tuple[int, int], inside: Sequence[Element], title: str, kind: str = "picture"
) -> Element:
    box = f"0 0 {size[0]} {size[1]}"
    return tag("svg", tag("title", title), inside, viewBox=box, class_=kind, role="img")


def _pillow() -> Any:
    return require("PIL.Image", "data")
