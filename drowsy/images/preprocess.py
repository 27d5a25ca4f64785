"""What a network expects of an image, as plain data; reading images is left to the caller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """How to make a network's input from an RGB image with values 0 to 255.

    In this order: scale, crop, divide by 255, subtract ``mean``, divide by ``std``.

    Args:
        resize: shortest side in pixels to scale a larger image down to, keeping its aspect ratio.
            An image that is smaller already is not enlarged. None: never scale.
        crop: side in pixels of the square cut from the centre.
        mean, std: one value for each of R, G and B, on the scale 0 to 1.
    """

    resize: int | None
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Caffe subtracts the mean of ImageNet's pixels and leaves the scale at 0 to 255.
CAFFE_MEAN, CAFFE_STD = (122.6789 / 255, 116.6688 / 255, 104.0070 / 255), (1 / 255,) * 3
