"""What a network expects of an image, as plain data; reading images is left to the caller."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from drowsy.files.messages import quoted


@dataclass(frozen=True)
class Preprocess:
    """How to make a network's input from an RGB image with values 0 to 255.

    In this order: scale, crop, divide by 255, subtract ``mean``, divide by ``std``.

    Args:
        resize: shortest side in pixels to scale a larger image down to, keeping its aspect ratio.
            An image that is smaller already is not enlarged. None: never scale.
        crop: side in pixels of the square cut from the centre.
        mean, std: one value for each of R, G and B, on the scale 0 to 1; ``std`` above 0.

    Raises:
        ValueError: an argument outside of what is listed here.
    """

    resize: int | None
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if type(self.crop) is not int or self.crop < 1:
            raise ValueError(f"crop: got {self.crop!r}, allowed: an integer, 1 or more")
        if self.resize is not None and (type(self.resize) is not int or self.resize < 1):
            raise ValueError(
                f"resize: got {self.resize!r}, allowed: an integer, 1 or more, or None"
            )
        if not _three_finite(self.mean):
            raise ValueError(f"mean: got {self.mean!r}, allowed: three finite numbers")
        if not _three_finite(self.std) or min(self.std) <= 0:
            raise ValueError(f"std: got {self.std!r}, allowed: three finite numbers above 0")


def check_preprocess(preprocess: object) -> None:
    """Raise TypeError for what is no ``Preprocess``: a name, or a function as of torchvision."""
    if not isinstance(preprocess, Preprocess):
        raise TypeError(
            f"preprocess: got {quoted(preprocess)}, allowed: a drowsy.models.Preprocess"
        )


def _three_finite(values: Any) -> bool:
    if not isinstance(values, Iterable) or isinstance(values, str):
        return False
    values = tuple(values)
    numbers = [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    return len(values) == len(numbers) == 3


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Caffe subtracts the mean of ImageNet's pixels and leaves the scale at 0 to 255.
CAFFE_MEAN, CAFFE_STD = (122.6789 / 255, 116.6688 / 255, 104.0070 / 255), (1 / 255,) * 3
