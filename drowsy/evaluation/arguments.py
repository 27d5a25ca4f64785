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

from drowsy.images.checks import check_images, check_labels
from drowsy.knob.control import check_seed
from drowsy.knob.costs import NetworkCost, network_cost
from drowsy.network.net import DrowsyNet

# Items of a data set that are read at a time.
_BATCH = 64


def gather(net: DrowsyNet, images: Any, labels: Any = None) -> tuple[Tensor, Tensor | None]:
    """Images and labels as checked tensors, the images where the network is.

    Args:
        net: the network that takes them.
        images: a tensor ``[N, C, H, W]``; a loader of such batches, alone or in front of their
            labels; or a data set of ``(image, label)``. All are read into memory.
        labels: integers, as a tensor, an array or a list; None for those of a loader or data set.

    Raises:
        TypeError: images in another form, or labels that are no integers.
        ValueError: images or labels of other shapes or not finite, images on another device than
            the network, or labels beside those of a loader or data set.
    """
    weight = next(iter(net.layers.values())).weight
    if not isinstance(images, (Tensor, np.ndarray)):
        images, own = _read(images)
        if own is not None and labels is not None:
            raise ValueError("labels: got some beside those of images, allowed: one of both")
        images, labels = images.to(weight.device), own if labels is None else labels
    if isinstance(images, Tensor) and images.device != weight.device:
        raise ValueError(
            f"images: lie on {images.device}, the network on {weight.device}, allowed: one device"
        )
    check_images(images)
    labels = _as_integers(labels)
    check_labels(labels, images)
    return images, labels


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


def _read(images: Any) -> tuple[Tensor, Tensor | None]:
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
    return torch.cat(pixels), torch.cat([_as_integers(batch[1]) for batch in batches])


def _as_integers(labels: Any) -> Any:
    """Labels as int64 where they are integers of any width; else as they are."""
    if isinstance(labels, (list, tuple, range, np.ndarray)):
        array = np.asarray(labels)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"labels: got {array.dtype} in a list, allowed: integers, the classes")
        labels = torch.as_tensor(array.astype(np.int64))
    if isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex()):
        return labels if labels.dtype == torch.bool else labels.long()
    return labels


def _refused(images: Any) -> TypeError:
    return TypeError(
        f"images: got {type(images).__name__}, allowed: a floating-point tensor [N, C, H, W], a "
        "loader of such batches or of (batch, labels), or a data set of (tensor, label)"
    )
