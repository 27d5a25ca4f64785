"""Read folders of images, labelled or not, as the tensors a network takes."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy.files.messages import legible, quoted
from drowsy.files.versioned import read_json
from drowsy.images.listing import check_label, check_regular, list_images
from drowsy.images.preprocess import Preprocess, check_preprocess
from drowsy.images.reading import read_images, read_rgb

_CIFAR_IMAGES, _CIFAR_LABELS = "test_batch.png", "labels.json"
LAYOUTS = (
    "a folder with a subfolder per class; images with a labels CSV (columns file,label) beside or "
    f"above them; {_CIFAR_IMAGES} with {_CIFAR_LABELS}; or a plain folder of images without labels"
)


def check_folder(root: Path, allowed: str) -> None:
    """Raise FileNotFoundError or NotADirectoryError where ``data`` names no folder."""
    if root.is_file():
        raise NotADirectoryError(f"data: {legible(root)} is a file, allowed: {allowed}")
    if not root.is_dir():
        raise FileNotFoundError(f"data: no folder {legible(root)}; allowed: {allowed}")


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
        if isinstance(places, slice):
            chosen: Sequence[int] = range(len(self))[places]
        else:
            chosen = _integers("places", places)
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
    skip_bad: bool = False,
    progress: bool = False,
) -> ImageSet:
    """Read a folder.

    Files are sorted by name, so that ``indices`` mean the same images everywhere. Folders, formats
    and pixels are those of torchvision's ``ImageFolder``: images of a class may lie in folders
    within its own, EXIF turns no image, transparency is dropped. Beyond it, hidden files and
    folders (``.*``, ``__MACOSX``) are passed over, greys of 16 bits are scaled to 8, and what would
    number classes by chance is refused.

    Args:
        folder: a folder with a subfolder per class (classes numbered by sorted name; where
            ``classes`` tells that none is missing, some may be empty); a folder with ``labels.csv``
            (columns ``file,label``) and the files beside it or under ``images/``; one with
            CIFAR-10's ``test_batch.png`` and ``labels.json``; or plain images.
        preprocess: what the network expects.
        labels: a labels CSV elsewhere.
        classes: how many the network tells apart. Labels must lie in ``0 .. classes - 1``, and a
            folder with a subfolder per class must have as many. None: not known.
        indices: which images, by place; all of them if None.
        skip_bad: leave out images that cannot be read or are too small. A warning tells how many,
            ``names`` which are left; ``indices`` count all.
        progress: show a progress bar (needs tqdm).

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder, or a file that the CSV names is
            missing.
        ValueError: no image, one that cannot be read or is too small, a bad label or table, an
            index that does not exist, or folders that leave it open which class is which. The
            message names the file.
        TypeError: no ``Preprocess``, or indices that are no integers in a sequence.

    Warns:
        UserWarning: images were left out; images are passed over, since files of their format are
            not read; images ask to be turned.
    """
    root = Path(folder)
    check_preprocess(preprocess)
    indices = None if indices is None else _integers("indices", indices)
    if classes is not None and (type(classes) is not int or classes < 1):
        raise ValueError(f"classes: got {classes!r}, allowed: an integer, 1 or more")
    check_folder(root, LAYOUTS)
    if labels is None and (root / _CIFAR_IMAGES).exists():
        return _load_cifar(root, preprocess, classes, indices)
    files = list_images(root, None if labels is None else Path(labels), classes)
    if not files:
        raise ValueError(f"data: no image in {legible(root)}; allowed: {LAYOUTS}")
    files = [files[i] for i in _check_indices(indices, len(files), root)]
    for path, label in files:
        check_label(label, classes, path)
    paths = [path for path, _ in files]
    pixels, places = read_images(paths, preprocess, skip_bad=skip_bad, progress=progress)
    files = [files[i] for i in places]
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


def _load_cifar(
    root: Path,
    preprocess: Preprocess,
    classes: int | None,
    indices: Sequence[int] | None,
) -> ImageSet:
    """CIFAR-10's test images: one PNG, a row of 32 x 32 pixels an image."""
    image_file, label_file = root / _CIFAR_IMAGES, root / _CIFAR_LABELS
    image, _ = read_rgb(image_file)
    pixels = torch.from_numpy(np.array(image))
    if pixels.shape[1] != 32 * 32 or preprocess.crop != 32:
        raise ValueError(
            f"data: {legible(image_file)} is {pixels.shape[1]} wide for images of "
            f"{preprocess.crop} pixels a side, allowed: rows of 32 x 32 = 1024 pixels and a "
            "network for 32"
        )
    where = f"labels: {legible(label_file)}"
    try:
        check_regular(label_file, "labels")
        values = read_json(label_file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} cannot be read ({legible(error)})") from error
    if not isinstance(values, list):
        raise ValueError(f"{where} holds no list, allowed: a list of integers")
    if len(values) != len(pixels):
        raise ValueError(f"{where} has {len(values)} for {len(pixels)} images")
    for value in values:
        if type(value) is not int:
            raise ValueError(f"{where} holds {quoted(value)}, allowed: integers")
        check_label(value, classes, label_file)
    chosen = list(_check_indices(indices, len(pixels), image_file))
    return ImageSet(
        normalise(pixels.view(-1, 32, 32, 3)[chosen], preprocess),
        torch.tensor(values)[chosen],
        tuple(f"{_CIFAR_IMAGES}#{i}" for i in chosen),
    )


def _integers(name: str, given: Any) -> Sequence[int]:
    """Integers of a range, a sequence, an array or a tensor; no truth values, which mean others."""
    if isinstance(given, range):
        return given  # As it is: it may be longer than any memory.
    found = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        try:
            if not any(isinstance(each, bool | np.bool_) for each in found):
                return [operator.index(each) for each in found]
        except TypeError:
            pass
    raise TypeError(f"{name}: got {quoted(given)}, allowed: a range, or integers in a sequence")


def _check_indices(indices: Sequence[int] | None, count: int, where: Path) -> Sequence[int]:
    if indices is None:
        return range(count)
    outside = next((i for i in indices if not 0 <= i < count), None)
    if outside is not None or not len(indices):
        raise ValueError(
            f"indices: got {'none' if outside is None else outside} for {legible(where)}, "
            f"allowed: 0 to {count - 1}"
        )
    return indices
