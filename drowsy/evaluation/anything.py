"""Networks of any outputs: judged by a callable of one's own, or by how near to awake they stay."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drowsy.evaluation.computation import fingerprint_value
from drowsy.evaluation.errors import relative_error
from drowsy.evaluation.metrics import NotFinite, Task
from drowsy.evaluation.outputs import count_of, taken, tensors

Metric = Callable[[Any, Any, Any], Any]
_MOST = 2.0**64
"""``(outputs, awake_outputs, targets)`` -> a finite number of each image, higher is better.

All three are copies, which it may write into. Outputs are as ``drowsy.evaluation.outputs`` tells;
targets as they were given, a tensor where the images are, or None.
"""


@dataclass(frozen=True)
class _Judged:
    """Outputs, those awake, and targets as they were given."""

    outputs: Any
    awake: Any
    targets: Any

    def near(self) -> Tensor:
        return 1 - self.error().clamp_max(1)

    def error(self) -> Tensor:
        return relative_error(self.outputs, self.awake)


def _take(output: Any, images: Tensor) -> Any:
    return taken(output, len(images))


def _no_targets(targets: Any, images: Tensor) -> Any:
    raise ValueError(
        "labels: got some, allowed: none, as outputs of this form are compared with the network "
        "awake; what they should be is told by metric, a name or a function"
    )


def _as_given(targets: Any, images: Tensor) -> Any:
    if not hasattr(targets, "__len__") or len(targets) != len(images):
        count = len(targets) if hasattr(targets, "__len__") else type(targets).__name__
        raise ValueError(f"labels: got {count} for {len(images)} images, allowed: one of each")
    if isinstance(targets, Tensor):
        return targets.detach().to(images.device)
    return targets if isinstance(targets, list) else list(targets)


def _score(judged: _Judged, metric: Metric) -> Tensor:
    """What a callable gives, float64 ``[N]``."""
    # Copies: it may write into what it is given, and others are judged by the same.
    found = metric(*copy.deepcopy((judged.outputs, judged.awake, judged.targets)))
    wanted = count_of(judged.outputs)
    if isinstance(found, Sequence):
        found = np.array([float(each) for each in found])
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(found)
    if not isinstance(found, Tensor) or found.is_complex() or tuple(found.shape) != (wanted,):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"metric: gave {got} for {wanted} images, allowed: a number of each")
    found = found.detach().double()
    # Beyond that a knob's file would not take it.
    bad = (~(found.abs() <= _MOST)).nonzero()
    if len(bad):
        whole = all(y.isfinite().all() for y in tensors(judged.outputs))
        cause = "whose outputs are finite" if whole else "as the network puts out NaN or infinity"
        raise (ValueError if whole else NotFinite)(
            f"metric: gave {float(found[bad[0]])} for image {int(bad[0])} of {wanted}, {cause}, "
            "allowed: a finite number of each, up to 2**64"
        )
    return found


# The relative error is that of all outputs; the score what is left of 1.
OUTPUTS = Task(
    "outputs",
    _take,
    _no_targets,
    _Judged,
    {"score": _Judged.near, "error": _Judged.error},
    principal=("score", "score"),
    told=["outputs"],
)


def custom(metric: Metric) -> Task:
    """A task whose quality a callable tells.

    Stores keep its results by its name and code, and by the values that it holds.
    """
    return Task(
        "custom",
        _take,
        _as_given,
        _Judged,
        {"score": functools.partial(_score, metric=metric), "error": _Judged.error},
        principal=("score", "score"),
        told=["custom", fingerprint_value(metric)],
    )
