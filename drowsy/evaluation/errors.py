"""Relative squared error: how far outputs of any form are from the awake network's, by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drowsy.evaluation.outputs import count_of, tensors


def squares(x: Tensor) -> Tensor:
    """float64 ``[N]``: sums of squares over all but the first axis."""
    return x.double().flatten(1).square().sum(1) if x.dim() > 1 else x.double().square()


def relative(error: Tensor, size: Tensor) -> Tensor:
    """``error / size``; of nothing, any error is a whole one."""
    return torch.where(size > 0, error / size.clamp_min(torch.finfo(size.dtype).tiny), error.sign())


def relative_error(outputs: Any, awake: Any) -> Tensor:
    """float64 ``[N]``: squared error over squared size, the mean of all floating-point tensors.

    Args:
        outputs, awake: as ``drowsy.evaluation.outputs.taken`` gives them.

    Raises:
        ValueError: outputs without floating-point tensors, or of another form than the awake ones.
    """
    if isinstance(outputs, list):
        return torch.cat(
            [relative_error(*map(_batched, p)) for p in zip(outputs, awake, strict=True)]
        )
    mine, theirs = tensors(outputs), tensors(awake)
    if not mine or [each.shape for each in mine] != [each.shape for each in theirs]:
        shapes, others = ([tuple(each.shape) for each in found] for found in (mine, theirs))
        raise ValueError(
            f"model: its floating-point outputs have shapes {shapes}, and {others} awake, allowed: "
            "the same ones; other outputs need a metric of their own"
        )
    each = [
        relative(squares(one.double() - other.double()), squares(other))
        for one, other in zip(mine, theirs, strict=True)
    ]
    assert len(each[0]) == count_of(outputs)
    return torch.stack(each).mean(0)


def _batched(entry: Any) -> Any:
    """One image's entry as a batch of one."""
    if isinstance(entry, Tensor):
        return entry[None]
    inner = entry.values() if isinstance(entry, dict) else ()
    return tuple(map(_batched, (each for each in inner if isinstance(each, (Tensor, dict)))))
