"""What a network's sources see of it: the picture that a call is about."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def picture(tensors: Sequence[Tensor]) -> Tensor:
    """The one of a call's tensors that is a batch of images ``[N, C, H, W]``.

    Without any, the one that is an image ``[C, H, W]``, as a batch.

    Raises:
        ValueError: there is none, or there are several.
    """
    real = [tensor for tensor in tensors if not tensor.is_complex()]
    found = [each for each in real if each.dim() == 4] or [
        each[None] for each in real if each.dim() == 3
    ]
    if len(found) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
        raise ValueError(
            f"net: a layer sleeps by what is in the picture (source detail); got tensors {shapes}, "
            "allowed: exactly one [N, C, H, W], or [C, H, W]"
        )
    return found[0]
