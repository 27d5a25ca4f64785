"""What networks put out, tensor by tensor, in the structure that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def mapped(change: Callable[..., Tensor], outputs: Any, *others: Any) -> Any:
    """The same structure with every tensor changed.

    Args:
        change: of a tensor, and of those in the same place of ``others``.
        outputs: a tensor, or any structure of lists, tuples, mappings and objects with attributes,
            which stays as it is; its copy is of the same types. What is none of these stays.
        others: of the same structure.
    """
    if isinstance(outputs, Tensor):
        return change(outputs, *others)
    leaves, spec = tree_flatten(outputs)
    if not spec.is_leaf():
        inner = zip(leaves, *map(tree_leaves, others), strict=True)
        return tree_unflatten([mapped(change, *each) for each in inner], spec)
    # What torch has no way into.
    if isinstance(outputs, MutableMapping):
        copied = copy.copy(outputs)
        for name, each in outputs.items():
            copied[name] = mapped(change, each, *(other[name] for other in others))
        return copied
    if hasattr(outputs, "__dict__") and not isinstance(outputs, type):
        copied = copy.copy(outputs)
        for name, each in vars(outputs).items():
            changed = mapped(change, each, *(vars(other)[name] for other in others))
            # A frozen dataclass, too.
            object.__setattr__(copied, name, changed)
        return copied
    return outputs


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors of such a structure, in its order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(note, outputs)
    return found


def alike(outputs: Any, others: Any) -> bool:
    """Whether tensors have the same shapes, or are boxes, of which any number may be found."""
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], Mapping):
        return True
    one, other = map(tensors_in, (outputs, others))
    return [y.shape for y in one] == [y.shape for y in other]
