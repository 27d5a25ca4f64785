"""Read folders of images, labelled or not, as the tensors a network takes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.images.preprocess import Preprocess

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
_CIFAR_IMAGES, _CIFAR_LABELS = "test_batch.png", "labels.json"
LAYOUTS = (
    "a folder with a subfolder per class; images with a labels CSV (columns file,label) beside or "
    f"above them; {_CIFAR_IMAGES} with {_CIFAR_LABELS}; or a plain folder of images without labels"
)


@dataclass(frozen=True)
class ImageSet:
    """Images as a network takes them.

    Attributes:
        images: float32 ``[N, 3, S, S]``, normalised, channels_last.
        labels: int64 ``[N]``, or None.
        names: file names relative to the folder, in order.
    """

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, places: slice | Sequence[int]) -> ImageSet:
        """The images of a slice, or at these places."""
        chosen = range(len(self))[places] if isinstance(places, slice) else list(places)
        index = places if isinstance(places, slice) else chosen
        return ImageSet(
            self.images[index],
            None if self.labels is None else self.labels[index],
            tuple(self.names[i] for i in chosen),
        )

    def shuffled(self) -> ImageSet:
        """The same images in a random order, which is always the same for as many images."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self[order.tolist()]


def load_images(
    folder: str | os.PathLike[str],
    preprocess: Preprocess,
    *,
    labels: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    indices: range | Sequence[int] | None = None,
    progress: bool = False,
) -> ImageSet:
    """Read a folder.

    Files are sorted by name, so that ``indices`` mean the same images everywhere.

    Args:
        folder: a folder with a subfolder per class (classes numbered by sorted name); a folder with
            ``labels.csv`` (columns ``file,label``) and the files beside it or under ``images/``;
            one with CIFAR-10's ``test_batch.png`` and ``labels.json``; or plain images.
        preprocess: what the network expects.
        labels: a labels CSV elsewhere.
        classes: labels must lie in ``0 .. classes - 1``.
        indices: which images, by place; all of them if None.
        progress: show a progress bar (needs tqdm).

    Raises:
        FileNotFoundError: no such folder, or a file that the CSV names is missing.
        ValueError: no image, one that cannot be read or is too small, a bad label, an index that
            does not exist. The message names the file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"data: no folder {root}; allowed: {LAYOUTS}")
    if labels is None and (root / _CIFAR_IMAGES).exists():
        return _load_cifar(root, preprocess, classes, indices)
    files = _list_files(root, None if labels is None else Path(labels))
    if not files:
        raise ValueError(f"data: no image in {root}; allowed: {LAYOUTS}")
    files = [files[i] for i in _check_indices(indices, len(files), root)]
    for path, label in files:
        _check_label(label, classes, path)
    read = _Reader(preprocess)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = pool.map(read, [path for path, _ in files])
        if progress:
            loaded = require("tqdm", "search").tqdm(loaded, total=len(files), desc="reading images")
        pixels = torch.stack(list(loaded))
    known = [label for _, label in files if label is not None]
    return ImageSet(
        normalise(pixels, preprocess),
        torch.tensor(known) if known else None,
        tuple(str(path.relative_to(root)) for path, _ in files),
    )


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 ``[N, H, W, 3]`` -> float32 ``[N, 3, H, W]`` (channels_last), normalised."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


class _Reader:
    """Read one image file: RGB, scaled and cropped; uint8 ``[S, S, 3]``."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self.image: Any = require("PIL.Image", "data")

    def __call__(self, path: Path) -> Tensor:
        try:
            with self.image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError, self.image.DecompressionBombError) as error:
            raise ValueError(f"data: {path} cannot be read as an image ({error})") from error
        side, crop = self.preprocess.resize, self.preprocess.crop
        width, height = image.size
        if side is not None and min(width, height) > side:
            ratio = side / min(width, height)
            size = (round(width * ratio), round(height * ratio))
            image = image.resize(size, self.image.Resampling.BILINEAR)
            width, height = size
        if min(width, height) < crop:
            raise ValueError(
                f"data: {path} is {width} x {height}, allowed: at least {crop} pixels a side"
            )
        left, top = (width - crop) // 2, (height - crop) // 2
        return torch.from_numpy(np.array(image.crop((left, top, left + crop, top + crop))))


def _list_files(root: Path, labels: Path | None) -> list[tuple[Path, int | None]]:
    for table in [labels] if labels else [root / "labels.csv", root.parent / "labels.csv"]:
        if table is not None and table.exists():
            return _read_csv(table, root)
    if labels:
        raise FileNotFoundError(f"labels: no file {labels}")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    by_class = [
        (path, label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if by_class:
        return list(by_class)
    return [(p, None) for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES]


def _read_csv(table: Path, root: Path) -> list[tuple[Path, int | None]]:
    # "utf-8-sig": spreadsheets put a byte order mark before the first column's name.
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"labels: {table} cannot be read as CSV ({error})") from error
    if not {"file", "label"} <= set(columns):
        raise ValueError(f"labels: {table} has columns {columns}, allowed: file and label")
    label_of: dict[str, str] = {}
    for row in rows:
        if row["file"] in label_of:
            raise ValueError(f"labels: {table} names {row['file']} twice, allowed: once")
        label_of[row["file"]] = row["label"]
    found: list[tuple[Path, int | None]] = []
    for name, label in sorted(label_of.items()):
        path = next((p for p in (root / name, root / "images" / name) if p.exists()), None)
        if path is None:
            raise FileNotFoundError(f"labels: {table} names {name}, which is not in {root}")
        try:
            found.append((path, int(label)))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"labels: {table} gives {label!r} for {name}, allowed: an integer"
            ) from error
    return found


def _load_cifar(
    root: Path,
    preprocess: Preprocess,
    classes: int | None,
    indices: range | Sequence[int] | None,
) -> ImageSet:
    """CIFAR-10's test images: one PNG, a row of 32 x 32 pixels an image."""
    image_file, label_file = root / _CIFAR_IMAGES, root / _CIFAR_LABELS
    open_image: Callable[[Path], Any] = require("PIL.Image", "data").open
    try:
        pixels = torch.from_numpy(np.array(open_image(image_file).convert("RGB")))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"data: {image_file} cannot be read as an image ({error})") from error
    if pixels.shape[1] != 32 * 32 or preprocess.crop != 32:
        raise ValueError(
            f"data: {image_file} is {pixels.shape[1]} wide for images of {preprocess.crop} pixels "
            "a side, allowed: rows of 32 x 32 = 1024 pixels and a network for 32"
        )
    try:
        values = json.loads(label_file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"labels: {label_file} cannot be read ({error})") from error
    if not isinstance(values, list):
        raise ValueError(f"labels: {label_file} holds no list, allowed: a list of integers")
    if len(values) != len(pixels):
        raise ValueError(f"labels: {label_file} has {len(values)} for {len(pixels)} images")
    for value in values:
        if type(value) is not int:
            raise ValueError(f"labels: {label_file} holds {value!r}, allowed: integers")
        _check_label(value, classes, label_file)
    chosen = list(_check_indices(indices, len(pixels), image_file))
    return ImageSet(
        normalise(pixels.view(-1, 32, 32, 3)[chosen], preprocess),
        torch.tensor(values)[chosen],
        tuple(f"{_CIFAR_IMAGES}#{i}" for i in chosen),
    )


def _check_label(label: int | None, classes: int | None, where: Path) -> None:
    if label is not None and (label < 0 or (classes is not None and label >= classes)):
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise ValueError(f"labels: got {label} for {where}, allowed: {allowed}")


def _check_indices(
    indices: range | Sequence[int] | None, count: int, where: Path
) -> range | Sequence[int]:
    if indices is None:
        return range(count)
    outside = next((i for i in indices if not 0 <= i < count), None)
    if outside is not None or not len(indices):
        raise ValueError(
            f"indices: got {'none' if outside is None else outside} for {where}, "
            f"allowed: 0 to {count - 1}"
        )
    return indices
