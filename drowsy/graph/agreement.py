"""Whether a network computes what its model does, beyond rounding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# Relative difference that folding a batch norm makes in deep networks, in the 2-norm of an output.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Of float32 products whose factors are rounded to ten bits, as cuDNN does by default.
_TF32, _TF32_EPS = 1e-2, 2.0**-11
# A network may amplify roundings: a difference within so many times that of a rounded input is one.
_AMPLIFIED = 32.0


def copied(values: Any) -> Any:
    """Arguments whose tensors a call may overwrite."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, values)


def disagreement(
    output: Any, expected: Any, rerun: Callable[[Callable[[Tensor], Tensor]], Any]
) -> str | None:
    """How a network's output differs from its model's beyond rounding; None where it does not.

    Args:
        output, expected: tensors, numbers and text in sequences, mappings and dataclasses.
        rerun: runs the model again, its floating-point inputs changed by a function.
    """
    found = _difference(output, expected, "output")
    if found is None or found[0] == 0:
        return None
    # What two runs of the model, on inputs a rounding apart, differ by is no fault of the network.
    noise = _difference(rerun(_rounded), expected, "output")
    if noise is not None and found[0] <= _AMPLIFIED * noise[0]:
        return None
    return found[1]


def _rounded(x: Tensor) -> Tensor:
    """Inputs a few roundings away."""
    size = 4 * (_TF32_EPS if _in_tf32(x) else torch.finfo(x.dtype).eps)
    generator = torch.Generator(x.device).manual_seed(0)
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32) - 0.5
    return (x * (1 + 2 * size * noise.to(x.dtype))).to(x.dtype)


def _in_tf32(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32


def _difference(one: Any, other: Any, where: str) -> tuple[float, str] | None:
    """The largest relative difference and what it is of; None where it is within rounding."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _of_tensors(one, other, where)
    parts = _parts(one), _parts(other)
    if parts[0] is not None and parts[1] is not None:
        if parts[0].keys() != parts[1].keys():
            return math.inf, f"{where}: has {list(parts[0])} and not {list(parts[1])}"
        found = [_difference(parts[0][key], parts[1][key], f"{where}[{key!r}]") for key in parts[0]]
        return max((each for each in found if each), key=lambda each: each[0], default=None)
    if type(one) is not type(other):
        return math.inf, f"{where}: is {type(one).__name__} and not {type(other).__name__}"
    if isinstance(one, bool | int | float | str | None) and not (one == other or one != one):
        return math.inf, f"{where}: is {one!r} and not {other!r}"
    return None


def _parts(value: Any) -> dict[Any, Any] | None:
    """What a structure holds, by place; None of what is none, or not known as one."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
    return None


def _of_tensors(one: Tensor, other: Tensor, where: str) -> tuple[float, str] | None:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return math.inf, (
            f"{where}: is {one.dtype} {tuple(one.shape)} and not {other.dtype} {tuple(other.shape)}"
        )
    if one.device.type == "meta" or one.numel() == 0:
        return None
    if not one.is_floating_point():
        share = (one != other).float().mean().item()
        return (share, f"{where}: {share:.1%} of its numbers differ") if share else None
    a, b = one.double(), other.double()
    # Infinity and NaN must be where they are in the model's.
    same = (a == b) | (a.isnan() & b.isnan())
    off = torch.where(same, 0.0, a - b)
    size = torch.where(b.isfinite(), b, 0.0).norm().item()
    error = off.norm().item()
    if error:
        error = error / size if size and math.isfinite(error) else math.inf
    allowed = _TF32 if _in_tf32(one) else _ROUNDING.get(one.dtype, 0.1)
    if error <= allowed:
        return None
    return error, f"{where}: differs by {error:.2g} of its size, where rounding makes {allowed:.0e}"
