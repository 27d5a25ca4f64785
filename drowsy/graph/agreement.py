"""Whether a network computes what its model does, beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
        output, expected: tensors, numbers and text in sequences, mappings and objects.
        rerun: runs the model again, its floating-point inputs changed by a function.
    """
    found = dict(_differences(output, expected, "output"))
    if not found:
        return None
    # What two runs of the model, on inputs a rounding apart, differ by is no fault of the network.
    noise = dict(_differences(rerun(_rounded), expected, "output"))
    beyond = {
        where: (error, told)
        for where, (error, told) in found.items()
        if error > _AMPLIFIED * _noise_at(where, noise)
    }
    return max(beyond.values())[1] if beyond else None


_Difference = tuple[float, str]
"""A relative size, and in words."""


def _noise_at(where: str, noise: Mapping[str, _Difference]) -> float:
    """How much an output differs by itself; of one of another structure all of its parts do."""
    return max((error for place, (error, _) in noise.items() if where.startswith(place)), default=0)


def _rounded(x: Tensor) -> Tensor:
    """Inputs a few roundings away."""
    size = 4 * (_TF32_EPS if _in_tf32(x) else torch.finfo(x.dtype).eps)
    generator = torch.Generator(x.device).manual_seed(0)
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32) - 0.5
    return (x * (1 + 2 * size * noise.to(x.dtype))).to(x.dtype)


def _in_tf32(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32


def _differences(one: Any, other: Any, where: str) -> Iterator[tuple[str, _Difference]]:
    """What differs beyond rounding, each by its place."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        found = _of_tensors(one, other)
    elif (parts := _parts(one)) is not None and (others := _parts(other)) is not None:
        if parts.keys() == others.keys():
            for key in parts:
                yield from _differences(parts[key], others[key], f"{where}[{key!r}]")
            return
        found = math.inf, f"has {list(parts)} and not {list(others)}"
    else:
        found = _of_values(one, other)
    if found is not None:
        yield where, (found[0], f"{where}: {found[1]}")


def _of_values(one: Any, other: Any) -> _Difference | None:
    if type(one) is not type(other):
        return math.inf, f"is {type(one).__name__} and not {type(other).__name__}"
    if isinstance(one, float) and not math.isclose(one, other, rel_tol=_ROUNDING[torch.float32]):
        if math.isnan(one) and math.isnan(other):
            return None
        size = abs(one - other) / abs(other) if other and math.isfinite(one - other) else math.inf
        return size, f"is {one!r} and not {other!r}"
    if isinstance(one, bool | int | str | None) and one != other:
        return math.inf, f"is {one!r} and not {other!r}"
    return None


def _parts(value: Any) -> dict[Any, Any] | None:
    """What a structure holds, by place; None of what is none, or not known as one."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return dict(enumerate(value))
    if isinstance(value, type | nn.Module | Tensor) or callable(value):
        return None
    return dict(vars(value)) if hasattr(value, "__dict__") else None


def _of_tensors(one: Tensor, other: Tensor) -> _Difference | None:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return math.inf, (
            f"is {one.dtype} {tuple(one.shape)} and not {other.dtype} {tuple(other.shape)}"
        )
    if one.device.type == "meta" or one.numel() == 0:
        return None
    if not one.is_floating_point():
        share = (one != other).float().mean().item()
        return (share, f"{share:.1%} of its numbers differ") if share else None
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
    return error, f"differs by {error:.2g} of its size, where rounding makes {allowed:.0e}"
