"""Weights from safetensors files, checked against the network before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from drowsy.files.messages import legible, listed
from drowsy.files.tensors import read_tensors

# The counter of training batches in a batch norm; many files leave it out and inference ignores it.
_COUNTER = "num_batches_tracked"


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a network the weights of a safetensors file, which must fit it exactly.

    The network's parameters are replaced, so it may be on the meta device. Batch norms' counters
    of training batches may be absent from the file; they are then 0.

    Raises:
        ValueError: names that are missing or unexpected, shapes that differ, tensors that are not
            floating point or not finite in float32; of each the first few are listed. The network
            is as it was.
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
        "NaN or infinity in": [
            name for name in wanted.keys() & tensors.keys() if not tensors[name].isfinite().all()
        ],
    }
    lines = [f"  {what}: {listed(names)}" for what, names in problems.items() if names]
    if lines:
        raise ValueError("\n".join([f"weights: {legible(path)} does not fit the network", *lines]))
    model.load_state_dict(tensors, assign=True)
