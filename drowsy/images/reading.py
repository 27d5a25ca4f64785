"""One image file as the pixels of a network's input."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.files.messages import legible
from drowsy.images.listing import check_regular
from drowsy.images.preprocess import Preprocess

# Tags of EXIF and TIFF, and their values.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ORIENTATION, _UPRIGHT = 274, 1
# Whose greys Pillow has in 32 bits, scaled to 16.
_SIXTEEN_BIT = ("PNG", "PPM")


def read_images(
    paths: Sequence[Path], preprocess: Preprocess, *, skip_bad: bool = False, progress: bool = False
) -> tuple[Tensor, list[int]]:
    """Read files, several at a time.

    Args:
        paths: at least one.
        preprocess: how images are scaled and cropped; values stay 0 to 255.
        skip_bad: leave out what cannot be read or is too small, and warn of how many.
        progress: show a progress bar (needs tqdm).

    Returns:
        ``(pixels, places)``: uint8 ``[N, S, S, 3]``, and where in ``paths`` each of them is.

    Raises:
        ValueError: a file that cannot be read or is too small; with ``skip_bad``, if all are. A
            ``preprocess`` that scales images down to less than it cuts from them.
    """
    if preprocess.resize is not None and preprocess.resize < preprocess.crop:
        raise ValueError(
            f"resize: got {preprocess.resize}, allowed: {preprocess.crop} (crop) or more"
        )

    def attempt(path: Path) -> tuple[Tensor, bool] | ValueError:
        try:
            image, upright = read_rgb(path)
            return _cut(image, preprocess, path), upright
        except ValueError as error:
            if skip_bad:
                return error
            raise

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tried: Iterable[Any] = pool.map(attempt, paths)
        if progress:
            tried = require("tqdm", "search").tqdm(tried, total=len(paths), desc="reading images")
        read = list(tried)
    bad = [str(each).removeprefix("data: ") for each in read if isinstance(each, ValueError)]
    good = {i: each for i, each in enumerate(read) if not isinstance(each, ValueError)}
    if not good:
        raise ValueError(f"data: none of {len(paths)} images can be read, the first: {bad[0]}")
    if bad:
        _tell(len(bad), paths, "cannot be read and are left out", bad[0])
    if turned := [paths[i] for i, (_, upright) in good.items() if not upright]:
        what = "ask to be turned (EXIF) and are taken as they are stored"
        _tell(len(turned), paths, what, legible(turned[0]))
    return torch.stack([pixels for pixels, _ in good.values()]), list(good)


def _tell(count: int, paths: Sequence[Path], what: str, first: str) -> None:
    # Of the line that called load_images.
    warnings.warn(f"data: {count} of {len(paths)} images {what}, the first: {first}", stacklevel=4)


def read_rgb(path: Path) -> tuple[Any, bool]:
    """An image as Pillow's RGB, and whether it is stored upright.

    It is what ``PIL.Image.open(path).convert("RGB")`` gives, and so what torchvision's
    ``ImageFolder`` reads: of several pages the first, not turned as EXIF asks for, the colours
    under transparent pixels as they are stored. Only greys of more than 8 bits are scaled to 8,
    which Pillow would clip.

    Raises:
        ValueError: not a regular file, or one that cannot be read as an image; names it.
    """
    pillow = require("PIL.Image", "data")
    where = f"data: {legible(path)}"
    check_regular(path, "data")
    try:
        with pillow.open(path) as file:
            return _to_rgb(file), _is_upright(file)
    # Decoders stumble over broken bytes in ways of every kind; all are about this file.
    except Exception as error:
        raise ValueError(f"{where} cannot be read as an image ({legible(error)})") from error


def _to_rgb(file: Any) -> Any:
    # Colours stay what they are; told of transparency, Pillow warns that it drops it.
    file.info.pop("transparency", None)
    if file.mode == "F" or (file.mode == "I" and file.format not in _SIXTEEN_BIT):
        raise ValueError(f"got pixels of mode {file.mode}, allowed: integers of up to 16 bits")
    if not file.mode.startswith("I"):
        return file.convert("RGB")
    tags = getattr(file, "tag_v2", {})
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    grey = (np.asarray(file) >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return require("PIL.Image", "data").fromarray(grey).convert("RGB")


def _is_upright(file: Any) -> bool:
    try:
        return file.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
    except Exception:  # broken EXIF asks for nothing
        return True


def _cut(image: Any, preprocess: Preprocess, path: Path) -> Tensor:
    """An image scaled and cropped: uint8 ``[S, S, 3]``."""
    side, crop = preprocess.resize, preprocess.crop
    width, height = image.size
    if side is not None and min(width, height) > side:
        ratio = side / min(width, height)
        width, height = round(width * ratio), round(height * ratio)
        bilinear = require("PIL.Image", "data").Resampling.BILINEAR
        image = image.resize((width, height), bilinear)
    if min(width, height) < crop:
        raise ValueError(
            f"data: {legible(path)} is {width} x {height}, allowed: at least {crop} pixels a side"
        )
    left, top = (width - crop) // 2, (height - crop) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + crop, top + crop))))
