"""What a network is shown of a picture: how much of its middle, at how many pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from drowsy.files.messages import quoted
from drowsy.files.versioned import check_keys
from drowsy.images.scaling import INTERPOLATIONS, Size, crop_images, scale_images


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

    def restored(self, outputs: Any, there: Size) -> Any:
        """Outputs for images that this view covers, as large as they would be for all pixels.

        Maps ``[N, C, h, w]`` are scaled up, wherever they lie in lists, tuples and dictionaries;
        ``boxes`` of a list of dictionaries, one an image, are in pixels and are multiplied.

        Args:
            outputs: of the network, for what this view made of images.
            there: ``(H, W)`` of the images before.
        """
        if self.is_whole:
            return outputs
        seen = self.size if there == self.full else self._scaled(self.size, there)
        up, across = (whole / part for whole, part in zip(there, seen, strict=True))

        def restore(y: Tensor) -> Tensor:
            if y.dim() != 4:
                return y
            size = [max(round(up * y.shape[2]), 1), max(round(across * y.shape[3]), 1)]
            return F.interpolate(y, size, mode=self.interpolation)

        if isinstance(outputs, list) and all(map(_has_boxes, outputs)):
            times = torch.tensor([across, up, across, up])
            return [{**each, "boxes": each["boxes"] * times.to(each["boxes"])} for each in outputs]
        return tree_map_only(Tensor, restore, outputs)

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
