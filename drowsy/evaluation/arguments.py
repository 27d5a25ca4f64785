"""What measurers and searches take, as users hold it, and what they refuse."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from drowsy.images.checks import as_tensor, check_images
from drowsy.knob.control import check_seed
from drowsy.knob.costs import NetworkCost, network_cost
from drowsy.network.net import DrowsyNet

# Items of a data set that are read at a time.
_BATCH = 64


def gather(net: DrowsyNet, images: Any, labels: Any = None) -> tuple[Tensor, Any]:
    """Images as a checked tensor where the network is, and their labels, which a task checks.

    Args:
        net: the network that takes them.
        images: a tensor or array ``[N, C, H, W]``; a loader of such batches, alone or in front of
            their labels; or a data set of ``(image, label)``. All are read into memory.
        labels: what the network should put out: a tensor, an array or a list with a row or entry
            for each image; None for those of a loader or data set.

    Raises:
        TypeError: images in another form.
        ValueError: images of another shape or not finite, or on another device than the network, or
            labels beside those of a loader or data set.
    """
    weight = next(iter(net.layers.values())).weight
    if isinstance(images, np.ndarray):
        images = _of_array(images).to(weight)
    if not isinstance(images, Tensor):
        images, own = _read(images)
        if own is not None and labels is not None:
            raise ValueError("labels: got some beside those of images, allowed: one of both")
        images, labels = images.to(weight.device), own if labels is None else labels
    if images.device != weight.device:
        raise ValueError(
            f"images: lie on {images.device}, the network on {weight.device}, allowed: one device"
        )
    check_images(images)
    return images, as_tensor(labels)


def costs_on(net: DrowsyNet, images: Tensor) -> NetworkCost:
    """``network_cost`` of one of the images; ValueError where the network does not take it."""
    try:
        return network_cost(net, images.shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"images: got shape {tuple(images.shape)}, allowed: what the network takes ({error})"
        ) from error


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds as Python's integers; raises unless there is one or more, each once."""
    try:
        found = tuple(map(operator.index, seeds))
    except TypeError as error:
        raise TypeError(
            f"seeds: got {seeds!r}, allowed: integers in a list, at least one, each once"
        ) from error
    for seed in seeds:
        check_seed("seeds", seed if isinstance(seed, bool) else operator.index(seed))
    if not found or len(set(found)) != len(found):
        raise ValueError(f"seeds: got {found}, allowed: at least one, each once")
    return found


def check_count(name: str, value: Any, allowed: str = "1 or more") -> None:
    """Raise unless this is an integer from 1 on."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: got {value!r}, allowed: an integer, {allowed}")
    if value < 1:
        raise ValueError(f"{name}: got {value}, allowed: {allowed}")


def _of_array(images: np.ndarray) -> Tensor:
    """An array's floating-point numbers as a tensor of its own."""
    if images.dtype.kind != "f":
        raise TypeError(
            f"images: got an array of {images.dtype}, allowed: floating-point numbers, as the "
            "network takes them"
        )
    # Of any byte order and strides; torch has nothing wider than float64.
    return torch.from_numpy(np.array(images, f"=f{min(images.dtype.itemsize, 8)}", order="C"))


def _read(images: Any) -> tuple[Tensor, Any]:
    """All of a loader or a data set."""
    given = images
    if isinstance(images, Dataset):
        images = DataLoader(images, _BATCH)
    if not isinstance(images, Iterable) or isinstance(images, (str, bytes, Mapping)):
        raise _refused(given)
    if isinstance(getattr(images, "sampler", None), RandomSampler):
        warnings.warn(
            "images: the loader shuffles them, so that a store will not know them the next time",
            stacklevel=5,
        )
    try:
        batches = [tuple(each) if isinstance(each, (tuple, list)) else (each,) for each in images]
    except TypeError as error:
        if "collate" not in str(error):
            raise
        raise _refused(given) from error  # of pictures, say
    pixels = [batch[0] for batch in batches if batch]
    if not pixels or not all(isinstance(each, Tensor) and each.dim() == 4 for each in pixels):
        raise _refused(given)
    if any(len(batch) < 2 for batch in batches):
        return torch.cat(pixels), None
    labels = [as_tensor(batch[1]) for batch in batches]
    if all(isinstance(each, Tensor) for each in labels):
        return torch.cat(pixels), torch.cat(labels)
    if not all(isinstance(each, (list, tuple)) for each in labels):
        kinds = sorted({type(each).__name__ for each in labels})
        raise TypeError(f"labels: got {', '.join(kinds)} of a batch, allowed: tensors, or lists")
    return torch.cat(pixels), [each for batch in labels for each in batch]


def _refused(images: Any) -> TypeError:
    return TypeError(
        f"images: got {type(images).__name__}, allowed: a floating-point tensor or array "
        "[N, C, H, W], a loader of such batches or of (batch, labels), or a data set of (tensor, "
        "label)"
    )
