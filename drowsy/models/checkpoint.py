"""Weights from safetensors files, checked against the network before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from drowsy._optional import require

# The counter of training batches in a batch norm; many files leave it out and inference ignores it.
_COUNTER = "num_batches_tracked"
_LISTED = 8


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


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a network the weights of a safetensors file, which must fit it exactly.

    The network's parameters are replaced, so it may be on the meta device. Batch norms' counters
    of training batches may be absent from the file; they are then 0.

    Raises:
        ValueError: names that are missing or unexpected, shapes that differ, tensors that are not
            floating point; all are listed. The network is as it was.
    """
    tensors = read_tensors(path)
    wanted = model.state_dict()
    for name in wanted:
        if name.endswith(_COUNTER):
            tensors.setdefault(name, torch.tensor(0))
    problems = {
        "missing": wanted.keys() - tensors.keys(),
        "unexpected": tensors.keys() - wanted.keys(),
        "wrong shape": [
            f"{name} (got {list(tensors[name].shape)}, want {list(wanted[name].shape)})"
            for name in wanted.keys() & tensors.keys()
            if tensors[name].shape != wanted[name].shape
        ],
        "not floating point": [
            f"{name} ({tensors[name].dtype})"
            for name in wanted.keys() & tensors.keys()
            if tensors[name].dtype != wanted[name].dtype
        ],
    }
    lines = [f"  {what}: {_listed(names)}" for what, names in problems.items() if names]
    if lines:
        raise ValueError("\n".join([f"weights: {path} does not fit the network", *lines]))
    model.load_state_dict(tensors, assign=True)


def _listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _LISTED
    return ", ".join(ordered[:_LISTED]) + (f" and {more} more" if more > 0 else "")
