"""What a result belongs to: weights and images by fingerprint, and all else that decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What a result depends on besides the rates.

    Args:
        weights: ``fingerprint_state`` of the network.
        data: ``fingerprint_data`` of images and labels.
        configuration: JSON-able: k, and each layer's source, grain and fill, its stream and phase
            where they are not those that ``convert`` gave it, and a fingerprint of the table that
            its fill reads, if any.
        seed: of the sleep maps.
    """

    weights: str
    data: str
    configuration: Mapping[str, Any]
    seed: int


def fingerprint_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values; device and memory format do not count."""
    digest = hashlib.sha256()
    for name in sorted(state):
        _update(digest, name, state[name])
    return digest.hexdigest()


def fingerprint_data(images: Tensor, labels: Tensor | None) -> str:
    """SHA-256 over the images as the network sees them, and their labels."""
    digest = hashlib.sha256()
    _update(digest, "images", images)
    if labels is not None:
        _update(digest, "labels", labels)
    return digest.hexdigest()


def _update(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    # In parts, so that a large set of images is not copied whole into the order that counts.
    for part in tensor.detach().split(64) if tensor.dim() else [tensor.detach()]:
        data = part.cpu().contiguous().flatten()
        digest.update(data.view(torch.uint8).numpy() if data.numel() else b"")
