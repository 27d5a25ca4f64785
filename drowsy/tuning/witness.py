"""What a network computes, told by what comes out of it: by that a knob's file knows its network.

Equal weights are not enough: with another activation, stride, epsilon, way of padding or forward
the same ``state_dict`` computes something else. A fingerprint of the code would tell every such
change, and refuse the right network under another version of Python or of a library that names or
orders its attributes anew. So the network is run on a few images that are always the same, and what
its convolutions and itself put out there is kept.

It runs in float64, where no device's, library's or number format's rounding comes near
``TOLERANCE``; what moves by a rounding of the images (noise, boxes that are sorted by score) tells
nothing and is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.evaluation.errors import relative, squares
from drowsy.graph.convert import inside
from drowsy.images.structures import tensors_in

# Relative differences, in the 2-norm. In float64 machines and versions differ by some 1e-13, and
# what is kept is rounded to float32; float32 in TF32 and half formats differ by some 1e-2.
TOLERANCE, TOLERANCE_OWN = 1e-5, 0.05
# Squares of one colour of so many pixels a side, of numbers up to so much: fine grain, what is like
# pictures, and what drives activations to their ends.
_IMAGES = ((1, 1.0), (4, 3.0), (16, 30.0))
# Of an output, means of so many stretches.
_KEPT = 4096


@dataclass(frozen=True)
class Witness:
    """What a network puts out for the images that are always the same.

    Attributes:
        exact: whether it ran in float64; where it cannot, it ran in its own format.
        found: float32 ``[3, ...]`` by place, in the order of execution: of every convolution its
            channels' root mean squares, of every output means of its stretches. Empty where nothing
            repeats.
    """

    exact: bool = True
    found: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, image: tuple[int, int, int]) -> Witness:
        """Of a model and the ``(C, H, W)`` of its images.

        Raises:
            RuntimeError: the model does not take such images.
        """
        exact, (found, again) = _run(model, image, nudged=True)
        least = (TOLERANCE if exact else TOLERANCE_OWN) / 10
        kept = {
            name: y.float()
            for name, y in found.items()
            if y.float().isfinite().all() and name in again and _difference(again[name], y) <= least
        }
        return cls(exact, kept)

    def contradiction(self, model: nn.Module, image: tuple[int, int, int]) -> str | None:
        """Where a model computes something else, in words; None where it does not.

        Raises:
            RuntimeError: the model does not take such images.
        """
        exact, (found,) = _run(model, image)
        allowed = TOLERANCE if self.exact and exact else TOLERANCE_OWN
        for name, y in found.items():
            if name not in self.found:
                continue
            error = _difference(y, self.found[name])
            # NaN is no small difference.
            if not error <= allowed:
                return f"{name} differs by {error:.1g} of its size"
        missing = [name for name in self.found if name not in found]
        return f"there is no {missing[0]}" if missing else None


def fixed_images(image: tuple[int, int, int]) -> Tensor:
    """float64 ``[3, C, H, W]``: the same everywhere, as the bits of a PCG64 stream are."""
    channels, height, width = image
    each = []
    for seed, (cell, size) in enumerate(_IMAGES):
        rows, columns = -(-height // cell), -(-width // cell)
        bits = np.random.PCG64(seed).random_raw(channels * rows * columns)
        numbers = torch.from_numpy((bits >> 11).astype(np.float64) * 2.0**-52 - 1)
        grid = size * numbers.view(channels, rows, columns)
        grid = grid.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        each.append(grid[:, :height, :width])
    return torch.stack(each)


def _run(
    model: nn.Module, image: tuple[int, int, int], nudged: bool = False
) -> tuple[bool, list[dict[str, Tensor]]]:
    """Whether a model runs in float64, else in its own format, and what comes out.

    With ``nudged`` also for images that are a rounding away.
    """
    model = copy.deepcopy(inside(model))
    like = next(model.parameters())
    device, own = like.device, like.dtype
    images = fixed_images(image)
    noise = fixed_images((1, *image[1:]))[:1]
    for dtype in (torch.float64, own):
        try:
            model.to(dtype)
            sizes = (0.0, 4 * torch.finfo(dtype).eps) if nudged else (0.0,)
            pictures = (images * (1 + size * noise) for size in sizes)
            found = [_outputs(model, each.to(dtype).to(device)) for each in pictures]
            return dtype == torch.float64, found
        except (RuntimeError, TypeError):  # made for one format, or a device without this one
            if dtype == own:
                raise
    raise AssertionError("in its own format it returns or raises")


def _outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a model and its convolutions put out for images: float64, by place."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, y: Tensor) -> None:
            # Of windows or boxes there may be other ones the next time.
            if y.dim() == 4 and len(y) == len(images):
                squared = y.detach().cpu().double().square()
                found[f"the output of {name}"] = squared.mean((2, 3)).sqrt()

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            outputs = model(images)
    finally:
        for handle in handles:
            handle.remove()
    # A list has an entry for each image, of as many boxes as there happen to be.
    tensors = [] if isinstance(outputs, list) else tensors_in(outputs)
    for n, y in enumerate(tensors):
        if y.is_floating_point() and y.dim() and len(y) == len(images):
            found[f"output {n}"] = _stretches(y.detach().cpu().double())
    return found


def _stretches(y: Tensor) -> Tensor:
    rows = y.flatten(1) if y.dim() > 1 else y[:, None]
    return rows if rows.shape[1] <= _KEPT else F.adaptive_avg_pool1d(rows, _KEPT)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest relative difference of an image."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    return float(relative(squares(one - other), squares(other)).max().sqrt())
