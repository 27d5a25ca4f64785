"""What a network computes, told by what comes out of it: by that a knob's file knows its network.

Equal weights are not enough: with another activation, stride, epsilon, way of padding or forward
the same ``state_dict`` computes something else. A fingerprint of the code would tell every such
change, and refuse the right network under another version of Python or of a library that names or
orders its attributes anew. So the network is run on a few images that are always the same, and what
its convolutions and itself put out there is kept.

It runs in float64, where no device's, library's or number format's rounding comes near
``TOLERANCE``; what moves by a rounding of the images (noise) tells nothing and is left out. So that
a difference shows that only some sizes bring out (the edge of a pooling), it also sees an image of
every size that points are shown.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.evaluation.errors import relative, squares
from drowsy.graph.convert import inside
from drowsy.images.structures import tensors_in
from drowsy.knob.point import OperatingPoint

# Relative differences, in the 2-norm. In float64 machines and versions differ by some 1e-13, and
# what is kept is rounded to float32; float32 in TF32 and half formats differ by some 1e-2.
TOLERANCE, TOLERANCE_OWN = 1e-5, 0.05
# Squares of one colour of so many pixels a side, of numbers up to so much: fine grain, what is like
# pictures, and what drives activations to their ends.
_IMAGES = ((1, 1.0), (4, 3.0), (16, 30.0))
# Of an output, means of so many stretches; of what has no entry for each image, so many quantiles.
_KEPT, _QUANTILES = 4096, 64
# What is compared where both ran in float64 alone, as one rounding may decide it, by how its name
# begins: up to such a share of its elements may differ, or so much of its size.
_DECIDED = {"integers of": 0.01, "infinities of": 0.01, "quantiles of": 0.05}
Size = tuple[int, int]


@dataclass(frozen=True)
class Witness:
    """What a network puts out for the images that are always the same.

    Attributes:
        exact: whether it ran in float64; where it cannot, it ran in its own format.
        found: float32 ``[3, ...]`` by place, in the order of execution, and ``[1, ...]`` where its
            name tells a size or it has no entry for each image: of every convolution its channels'
            root mean squares, of every output means of its stretches, elements of integers, or
            quantiles. Empty where nothing repeats.
    """

    exact: bool = True
    found: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, image: tuple[int, int, int], sizes: Iterable[Size] = ()
    ) -> Witness:
        """Of a model, the ``(C, H, W)`` of its images, and other ``(H, W)`` that it is shown.

        Raises:
            RuntimeError: the model does not take such images.
        """
        exact, (found, again) = _run(model, image, sizes, nudged=True)
        least = (TOLERANCE if exact else TOLERANCE_OWN) / 10
        kept = {
            name: y.float()
            for name, y in found.items()
            if y.float().isfinite().all()
            and name in again
            and _difference(name, again[name], y) <= least
        }
        return cls(exact, kept)

    def contradiction(
        self, model: nn.Module, image: tuple[int, int, int], sizes: Iterable[Size] = ()
    ) -> str | None:
        """Where a model computes something else, in words; None where it does not.

        Args:
            model, image, sizes: as for ``of``.

        Raises:
            RuntimeError: the model does not take such images.
        """
        exact, (found,) = _run(model, image, sizes)
        exact = exact and self.exact
        for name, kept in self.found.items():
            decided = [each for start, each in _DECIDED.items() if name.startswith(start)]
            if decided and not exact:
                continue
            if name not in found:
                return f"there is no {name}"
            error = _difference(name, found[name], kept)
            # NaN is no small difference.
            if not error <= (decided or [TOLERANCE if exact else TOLERANCE_OWN])[0]:
                return f"{name} differs by {error:.1g} of its size"
        return None


def sizes_of(points: Iterable[OperatingPoint]) -> list[Size]:
    """What a network is shown at points."""
    return [point.view.size for point in points if point.view is not None]


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
    model: nn.Module, image: tuple[int, int, int], sizes: Iterable[Size], nudged: bool = False
) -> tuple[bool, list[dict[str, Tensor]]]:
    """Whether a model runs in float64, else in its own format, and what comes out.

    With ``nudged`` also for images that are a rounding away.
    """
    model = copy.deepcopy(inside(model))
    like = next(model.parameters())
    device, own = like.device, like.dtype
    nudges = (False, True) if nudged else (False,)
    for dtype in (torch.float64, own):
        try:
            model.to(dtype)
            found = [_outputs(model, _pictures(image, n, dtype).to(device)) for n in nudges]
            for size in sorted(set(sizes) - {image[1:]}):
                for each, n in zip(found, nudges, strict=True):
                    picture = _pictures((image[0], *size), n, dtype)[1:2].to(device)
                    each.update(_outputs_at(size, model, picture))
            return dtype == torch.float64, found
        except (RuntimeError, TypeError):  # made for one format, or a device without this one
            if dtype == own:
                raise
    raise AssertionError("in its own format it returns or raises")


def _pictures(image: tuple[int, int, int], nudged: bool, dtype: torch.dtype) -> Tensor:
    images = fixed_images(image)
    if nudged:
        images = images * (1 + 4 * torch.finfo(dtype).eps * fixed_images((1, *image[1:]))[:1])
    return images.to(dtype)


def _outputs_at(size: Size, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    try:
        found = _outputs(model, images)
    except RuntimeError:  # points have it fitted to that
        return {}
    return {f"{name} at {size[0]} x {size[1]}": each for name, each in found.items()}


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
    for n, y in enumerate(tensors_in(outputs)):
        y = (torch.view_as_real(y.resolve_conj()) if y.is_complex() else y).detach().cpu()
        # A list has an entry for each image, of as many boxes as there happen to be.
        if isinstance(outputs, list) or not y.dim() or len(y) != len(images):
            found[f"quantiles of output {n}"] = _quantiles(y.double())
        elif not y.is_floating_point():
            found[f"integers of output {n}"] = _some(y.double())
        else:
            y = y.double()
            infinite = ~(y.abs() <= torch.finfo(torch.float32).max)
            if infinite.any():
                signs = y.sign().nan_to_num(2) * infinite
                found[f"infinities of output {n}"] = _some(signs)
            found[f"output {n}"] = _stretches(y.masked_fill(infinite, 0))
    return found


def _some(y: Tensor) -> Tensor:
    rows = y.flatten(1) if y.dim() > 1 else y[:, None]
    return rows[:, :: max(1, -(-rows.shape[1] // _KEPT))]


def _quantiles(y: Tensor) -> Tensor:
    """How many numbers these are, and numbers of all their range, whatever their order."""
    ordered = y.flatten().nan_to_num().sort().values
    places = torch.linspace(0, max(len(ordered) - 1, 0), _QUANTILES).round().long()
    kept = ordered[places] if len(ordered) else torch.zeros(_QUANTILES, dtype=torch.float64)
    return torch.stack([torch.full_like(kept, len(ordered)), kept])


def _stretches(y: Tensor) -> Tensor:
    rows = y.flatten(1) if y.dim() > 1 else y[:, None]
    return rows if rows.shape[1] <= _KEPT else F.adaptive_avg_pool1d(rows, _KEPT)


def _difference(name: str, one: Tensor, other: Tensor) -> float:
    """The largest relative difference of a row; of what is no number, the share that differs."""
    if one.shape != other.shape:
        return float("inf")
    # Both as a file keeps them.
    one, other = one.float().double(), other.float().double()
    if name.startswith(("integers of", "infinities of")):
        return float((one != other).double().mean()) if one.numel() else 0.0
    return float(relative(squares(one - other), squares(other)).max().sqrt())
