"""What networks put out, in one form: tensors and structures of them, with a row an image.

Networks return a tensor, several in a tuple or by name, or one entry an image, as detectors do.
Here a tensor ``[N, ...]`` stays one, a mapping or object of tensors becomes ``Named``, a sequence
of them a tuple, and what has one entry an image a list. Such outputs of batches are put one after
another, and cut into stretches, whatever their form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Where libraries keep what a network is for, beside other outputs: Hugging Face, torchvision.
_MAIN = ("logits", "out")


class Named(dict[str, Any]):
    """Outputs by name, as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def taken(output: Any, count: int, where: str = "its output") -> Any:
    """A network's output for so many images, in the form that this module tells of.

    Parts that are None are left out.

    Raises:
        TypeError: a part that is no tensor.
        ValueError: a tensor without a row for each image.
    """
    if isinstance(output, Tensor):
        if not output.dim() or len(output) != count:
            raise ValueError(
                f"model: {where} has shape {tuple(output.shape)} for {count} images, allowed: "
                "a row for each image"
            )
        return output
    if isinstance(output, Sequence) and not isinstance(output, (str, bytes)):
        if _one_an_image(output, count):
            return [_copied(each, f"{where}[{i}]") for i, each in enumerate(output)]
        return tuple(taken(each, count, f"{where}[{i}]") for i, each in enumerate(output))
    if not isinstance(output, Mapping) and hasattr(output, "__dict__"):
        output = vars(output)
    if not isinstance(output, Mapping):
        raise TypeError(f"model: {where} is {type(output).__name__}, allowed: tensors")
    return Named(
        (name, taken(each, count, f"{where}[{name!r}]"))
        for name, each in output.items()
        if each is not None
    )


def main(output: Any) -> Tensor | None:
    """The tensor that a network is for: its only output, or ``logits`` or ``out`` among several."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Sequence) and len(output) == 1 and isinstance(output[0], Tensor):
        return output[0]
    for name in _MAIN:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    return None


def joined(batches: Sequence[Any]) -> Any:
    """Outputs of batches, as ``taken`` gives them, one after another."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches))
    if isinstance(first, list):
        return [each for batch in batches for each in batch]
    if isinstance(first, tuple):
        return tuple(map(joined, zip(*batches, strict=True)))
    return Named((name, joined([batch[name] for batch in batches])) for name in first)


def part(outputs: Any, chosen: slice) -> Any:
    """Those of some of the images."""
    if isinstance(outputs, (Tensor, list)):
        return outputs[chosen]
    return _each(outputs, lambda inner: part(inner, chosen))


def placed(outputs: Any, device: torch.device | str) -> Any:
    """The same with all tensors on a device."""
    if isinstance(outputs, Tensor):
        return outputs.to(device)
    return _each(outputs, lambda inner: placed(inner, device))


def count_of(outputs: Any) -> int:
    """Of how many images these are."""
    if isinstance(outputs, (Tensor, list)):
        return len(outputs)
    inner = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
    return count_of(inner)


def tensors(outputs: Any) -> list[Tensor]:
    """All floating-point tensors in these, in their order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    inner = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for each in inner for tensor in tensors(each)]


def described(outputs: Any) -> str:
    """Their form in words, ``N`` for the images."""
    if isinstance(outputs, Tensor):
        return f"[{', '.join(['N', *map(str, outputs.shape[1:])])}]"
    if isinstance(outputs, list):
        inner = outputs[0]
        names = ", ".join(inner) if isinstance(inner, Mapping) else type(inner).__name__
        return f"a list with {names} of each image"
    if isinstance(outputs, Mapping):
        return ", ".join(f"{name} {described(each)}" for name, each in outputs.items())
    return f"({', '.join(map(described, outputs))})"


def _one_an_image(output: Sequence[Any], count: int) -> bool:
    """Whether a sequence has an entry for each image, and not one for all of them."""
    if len(output) != count:
        return False
    if all(isinstance(each, Mapping) for each in output):
        return True
    return all(isinstance(each, Tensor) for each in output) and any(
        not each.dim() or len(each) != count for each in output
    )


def _copied(entry: Any, where: str) -> Any:
    """One image's entry, in memory of its own."""
    if isinstance(entry, Tensor):
        return entry.detach().clone()
    if isinstance(entry, Mapping):
        return Named((name, _copied(each, f"{where}[{name!r}]")) for name, each in entry.items())
    if isinstance(entry, (int, float, str, type(None))):
        return entry
    raise TypeError(f"model: {where} is {type(entry).__name__}, allowed: tensors")


def _each(outputs: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure of what is changed in it; numbers and text stay."""
    if isinstance(outputs, Mapping):
        return Named((name, change(each)) for name, each in outputs.items())
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(map(change, outputs))
    return outputs
