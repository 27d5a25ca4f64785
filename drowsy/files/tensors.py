"""Tensors from safetensors files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from drowsy._optional import require


def read_tensors(path: Path, what: str = "weights") -> dict[str, Tensor]:
    """Read a safetensors file into memory, floating tensors of any width as float32.

    ``what`` names it in errors.

    Raises:
        FileNotFoundError: no file there.
        ImportError: safetensors is not installed.
        ValueError: a file that is truncated or of another format.
    """
    safetensors = require("safetensors", "models")
    load_file = require("safetensors.torch", "models").load_file
    if not path.is_file():
        raise FileNotFoundError(f"{what}: no file {path}")
    try:
        tensors = load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{what}: {path} is not a whole safetensors file; it is truncated or of another "
            f"format ({error})"
        ) from error
    # A copy, since the tensors of a float32 file are views of it.
    return {
        name: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in tensors.items()
    }
