"""Restoration: outputs are images ``[N, 1 or 3, H, W]``, targets are what they should be."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.evaluation.errors import relative_error
from drowsy.evaluation.metrics import Task
from drowsy.evaluation.segmentation import check_maps

# Decibels of images that are equal to ten digits: more are not told apart, nor is there infinity.
MOST_DB = 100.0
# Luma of red, green and blue by ITU-R BT.601, in its narrow range: by it restoration is reported.
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
# The window of SSIM and its constants are those of Wang et al., IEEE TIP 13 (2004) 600-612.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def check_pictures(targets: Any, images: Tensor) -> Tensor:
    """Targets in float32; raises TypeError or ValueError for what is no batch of images."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"labels: got {kind}, allowed: a floating-point tensor, the right images")
    if targets.dim() != 4 or len(targets) != len(images):
        raise ValueError(
            f"labels: got shape {tuple(targets.shape)} for {len(images)} images, allowed: "
            f"({len(images)}, C, H, W)"
        )
    if not targets.isfinite().all():
        raise ValueError("labels: got NaN or infinity, allowed: finite numbers")
    return targets.float()


def find_peak(pictures: Tensor) -> float:
    """The range of the numbers that these images are written in: 1, 2 (from -1) or 255.

    Raises:
        ValueError: none of these.
    """
    low, high = (float(each) for each in pictures.aminmax())
    # Networks put out a little more than their targets hold; some of these are bright.
    for peak, least, most in ((1.0, -0.5, 1.5), (2.0, -1.5, 1.5), (255.0, -64.0, 320.0)):
        if least < low and peak / 4 < high < most:
            return peak
    raise ValueError(
        f"metric: images from {low:.4g} to {high:.4g}, whose range is not known, allowed: 0 to 1, "
        "-1 to 1, 0 to 255, or drowsy.evaluation.restoration.restoration(peak=...)"
    )


class Pictures:
    """Images that a network put out, those awake, and the right ones where these are known.

    Args:
        outputs, awake, targets: ``[N, C, H, W]``.
        peak, luma, border: as for ``restoration``.

    Raises:
        ValueError: targets of another shape than the outputs, or ``luma`` of images without three
            channels.
    """

    def __init__(
        self,
        outputs: Tensor,
        awake: Tensor,
        targets: Tensor | None,
        peak: float = 1.0,
        luma: bool = False,
        border: int = 0,
    ) -> None:
        if targets is not None and targets.shape != outputs.shape:
            raise ValueError(
                f"labels: got shape {tuple(targets.shape)} for outputs {tuple(outputs.shape)}, "
                "allowed: the outputs' shape"
            )
        if luma and outputs.shape[1] != 3:
            raise ValueError(
                f"luma: got outputs of {outputs.shape[1]} channels, allowed: 3, red, green and blue"
            )
        if 2 * border >= min(outputs.shape[2:]):
            raise ValueError(
                f"border: got {border}, allowed: less than half of the outputs' "
                f"{tuple(outputs.shape[2:])} pixels"
            )
        self.outputs, self.awake, self.peak = outputs, awake, peak
        right = awake if targets is None else targets.to(outputs.device)
        self._pairs = tuple(_compared(each, luma, border) for each in (outputs, right))

    def psnr(self) -> Tensor:
        """float64 ``[N]``: peak signal-to-noise ratio in dB, ``MOST_DB`` at most."""
        outputs, right = self._pairs
        noise = (outputs.double() - right.double()).flatten(1).square().mean(1)
        least = 10 ** (-MOST_DB / 10)
        return -10 * (noise / self.peak**2).clamp_min(least).log10()

    def ssim(self) -> Tensor:
        """float64 ``[N]``: structural similarity, the mean of channels and windows.

        Windows lie within the image; of an image smaller than one, the window is what fits.
        """
        # One image at a time: five maps of each are in float64.
        pairs = zip(*self._pairs, strict=True)
        return torch.stack([_ssim(one, other, self.peak) for one, other in pairs])

    def error(self) -> Tensor:
        """float64 ``[N]``: squared error over squared size, to the images awake."""
        return relative_error(self.outputs, self.awake)


def _compared(images: Tensor, luma: bool, border: int) -> Tensor:
    """What of images is compared."""
    if luma:
        weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(3, 1, 1)
        images = (images * weights).sum(1, keepdim=True)
    height, width = images.shape[2:]
    return images[..., border : height - border, border : width - border]


def _ssim(one: Tensor, other: Tensor, peak: float) -> Tensor:
    """Of two images ``[C, H, W]``."""
    x, y = one.double(), other.double()
    # A sum of squares is smoothed, so small differences of large numbers are what is left.
    means = _smooth(torch.stack([x, y, x * x, y * y, x * y]))
    mx, my, xx, yy, xy = means
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    alike = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    whole = (mx * mx + my * my + c1) * (xx - mx * mx + yy - my * my + c2)
    return (alike / whole).mean()


def _smooth(maps: Tensor) -> Tensor:
    """``[M, C, H, W]`` by the Gaussian window, where it lies within."""
    lines = maps.flatten(0, 1)[:, None]
    for axis in (2, 3):
        size = min(_WINDOW, lines.shape[axis])
        places = torch.arange(size, dtype=maps.dtype, device=maps.device) - (size - 1) / 2
        weights = (-(places**2) / (2 * _SIGMA**2)).exp()
        shape = [1, 1, 1, 1]
        shape[axis] = size
        lines = F.conv2d(lines, (weights / weights.sum()).view(shape))
    return lines.view(*maps.shape[:2], *lines.shape[-2:])


def restoration(peak: float, *, luma: bool = False, border: int = 0) -> Task:
    """The task of networks that put out images.

    Args:
        peak: the range of the numbers that these are written in, as 1 or 255.
        luma: whether PSNR and SSIM are those of the luma of red, green and blue, as papers report
            them, and not of all channels.
        border: pixels at every edge that do not count to them.
    """
    if isinstance(peak, bool) or not isinstance(peak, (int, float)):
        raise TypeError(f"peak: got {peak!r}, allowed: a number above 0")
    if not 0 < peak < math.inf:
        raise ValueError(f"peak: got {peak}, allowed: a finite number above 0")
    if isinstance(border, bool) or not isinstance(border, int) or border < 0:
        raise ValueError(f"border: got {border!r}, allowed: an integer, 0 or more")
    return Task(
        "restoration",
        functools.partial(check_maps, allowed="one tensor of images [N, C, H, W]"),
        check_pictures,
        functools.partial(Pictures, peak=float(peak), luma=luma, border=border),
        {"psnr": Pictures.psnr, "ssim": Pictures.ssim, "error": Pictures.error},
        # Awake, decibels to itself are only what is told apart; similarity is 1.
        principal=("psnr", "ssim"),
        told=["restoration", float(peak), bool(luma), border],
    )
