"""What a network is shown of a picture: how much of its middle, at how many pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from drowsy.files.messages import quoted
from drowsy.files.versioned import check_keys
from drowsy.images.scaling import INTERPOLATIONS, Size, crop_images, scale_images
from drowsy.images.structures import mapped


@dataclass(frozen=True)
class View:
    """The middle of a picture, scaled down.

    Args:
        full: ``(H, W)`` of the pictures it was made for. Of others it takes the same parts.
        middle: ``(H, W)`` in pixels of what is taken of their middle; ``full`` is the whole.
        size: ``(H, W)`` in pixels that this is scaled to (antialiased); no more than ``middle``.
        interpolation: ``bicubic`` or ``bilinear``.

    Raises:
        ValueError: a size outside of what is listed here.
    """

    full: Size
    middle: Size
    size: Size
    interpolation: str = INTERPOLATIONS[0]

    def __post_init__(self) -> None:
        for name, within in (("full", None), ("middle", self.full), ("size", self.middle)):
            value = getattr(self, name)
            whole = (
                isinstance(value, tuple)
                and len(value) == 2
                and all(type(side) is int and side >= 1 for side in value)
            )
            if not whole or (within and any(a > b for a, b in zip(value, within, strict=True))):
                most = f" up to {within}" if within else ""
                raise ValueError(
                    f"view: {name}: got {quoted(value)}, allowed: (H, W) in pixels{most}"
                )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"view: interpolation: got {quoted(self.interpolation)}, "
                f"allowed: {', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def whole(cls, full: Size) -> View:
        """Pictures as they are."""
        return cls(full, full, full)

    @classmethod
    def of(cls, full: Size, size: Size, middle: float = 1.0) -> View:
        """``size`` pixels of this part of each side, or of more where ``size`` is more."""
        sides = zip(full, size, strict=True)
        return cls(full, _pair(max(round(middle * side), few) for side, few in sides), size)

    def __str__(self) -> str:
        told = _side(self.size)
        if self.is_whole:
            return told
        share = self.middle[0] / self.full[0]
        return told if self.middle == self.full else f"{told} of the middle {share:.2f}"

    @property
    def is_whole(self) -> bool:
        """Whether pictures are shown as they are."""
        return self.full == self.middle == self.size

    @property
    def covers(self) -> bool:
        """Whether all of a picture is shown."""
        return self.full == self.middle

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` as the network is shown them, in their dtype."""
        if self.is_whole:
            return images
        there: Size = (images.shape[-2], images.shape[-1])
        middle = self.middle if there == self.full else self._scaled(self.middle, there)
        size = self.size if there == self.full else self._scaled(self.size, there)
        return scale_images(crop_images(images, middle), size, self.interpolation)

    def restored(self, outputs: Any, there: Size, whole: Any) -> Any:
        """Outputs for images that this view covers, as large as they would be for all pixels.

        Maps ``[N, C, h, w]`` and ``[N, h, w]`` are scaled to the size that they have in ``whole``,
        wherever they lie in lists, tuples, mappings and objects. Of a list of dictionaries with
        ``boxes``, one an image, as detectors give it, ``boxes`` and ``keypoints`` are in pixels and
        are multiplied, and ``masks`` are scaled to the picture's size.

        Args:
            outputs: of the network, for what this view made of images.
            there: ``(H, W)`` of the images before.
            whole: its outputs for such images as they are, of any number of them; only shapes
                count, so tensors may be on the meta device.
        """
        if self.is_whole:
            return outputs
        seen = self.size if there == self.full else self._scaled(self.size, there)
        if isinstance(outputs, list) and all(map(_has_boxes, outputs)):
            up, across = (all_ / part for all_, part in zip(there, seen, strict=True))
            return [self._found(each, there, (across, up)) for each in outputs]
        return mapped(self._restored, outputs, whole)

    def _restored(self, y: Tensor, whole: Tensor) -> Tensor:
        size = _pair(whole.shape[-2:]) if whole.dim() > 1 else (0, 0)
        if y.dim() == 3 and all(a != b for a, b in zip(y.shape[1:], size, strict=True)):
            return F.interpolate(y[:, None], size, mode=self.interpolation)[:, 0]
        # Sequences, of which one axis alone grows, are no maps.
        if y.dim() != 4 or tuple(y.shape[-2:]) == size:
            return y
        return F.interpolate(y, size, mode=self.interpolation)

    def _found(self, entry: Any, there: Size, times: tuple[float, float]) -> Any:
        """What a detector found in one image."""
        changed = {"boxes": entry["boxes"] * entry["boxes"].new_tensor([*times, *times])}
        if isinstance(points := entry.get("keypoints"), Tensor):
            changed["keypoints"] = points * points.new_tensor([*times, 1.0])
        masks = entry.get("masks")
        if isinstance(masks, Tensor) and masks.dim() == 4:
            # Shares of belonging, which no bicubic overshoot may leave.
            few = masks.new_empty(0, masks.shape[1], *there)
            changed["masks"] = F.interpolate(masks, there, mode="bilinear") if len(masks) else few
        return {**entry, **changed}

    def _scaled(self, part: Size, there: Size) -> Size:
        """What ``part`` of ``full`` is of pictures of another size."""
        sides = zip(part, self.full, there, strict=True)
        return _pair(max(round(mine * side / full), 1) for mine, full, side in sides)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        sizes = {"full": list(self.full), "middle": list(self.middle), "size": list(self.size)}
        return {**sizes, "interpolation": self.interpolation}

    @classmethod
    def from_dict(cls, data: Any, where: str = "view") -> View:
        """Read the JSON form; ``where`` names it in errors."""
        check_keys(data, {"full", "middle", "size", "interpolation"}, where)
        sizes = {
            name: tuple(value) if isinstance(value := data[name], list) else value
            for name in ("full", "middle", "size")
        }
        try:
            return cls(**sizes, interpolation=data["interpolation"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _has_boxes(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("boxes"), Tensor)


def _pair(sides: Any) -> Size:
    height, width = sides
    return height, width


def _side(size: Size) -> str:
    return f"{size[0]} px" if size[0] == size[1] else f"{size[0]} x {size[1]} px"
