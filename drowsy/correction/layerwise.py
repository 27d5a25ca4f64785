"""One layer asleep: how far its pre-activations are from those it has awake, and its correction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.correction.least_squares import Moments, Spread, ridge
from drowsy.network.calibration import Correction
from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import activate, padded_input, sleep
from drowsy.sleep import expand_cells, levels, scale

# Positions that a reconstruction sees: so many, or this many for each weight of a neuron.
_POSITIONS, _POSITIONS_PER_WEIGHT = 16_000, 5
# The share of the images that choose the ridge.
_HELD_OUT = 0.25
# Layers of more groups get the affine correction: a group has few weights to change.
_MAX_GROUPS = 8


def chunk_size(images: int, batch: int) -> int:
    """Into how many images to split so many, ``batch`` at most: four chunks where there can be."""
    return min(batch, max(images // 4, 1))


@dataclass(frozen=True)
class Wanted:
    """What a layer's pre-activations should be while it sleeps: those of the network awake.

    Attributes:
        spread: of the neurons that are awake in the layer's map.
        finite: whether all of them are.
        shapes: of each chunk.
        fitted: by chunk, positions ``(image * OH + y) * OW + x`` and the pre-activations there,
            ``[rows, OC]``; empty where nothing is reconstructed.
    """

    spread: Spread
    finite: bool
    shapes: list[torch.Size]
    fitted: list[tuple[Tensor, Tensor]]


@dataclass
class Call:
    """One call of one layer on all images, by chunks of these; without a correction so far.

    Attributes:
        name, layer: of the network.
        images: how many there are in all chunks.
        seed, threshold: of the layer's sleep.
        weight, bias: what the layer computes with, without a correction; float32.
        inputs: ``[N, C, H, W]``.
        batched: whether the layer was given batches, and not ``[C, H, W]``.
        sums: pre-activations ``[N, OC, OH, OW]``, float32.
        levels: of its cells (``drowsy.sleep.levels``), of which those below ``threshold`` sleep;
            empty where nobody does.
    """

    name: str
    layer: DrowsyConv2d
    images: int
    seed: int
    threshold: int
    weight: Tensor
    bias: Tensor
    inputs: list[Tensor]
    batched: bool
    sums: list[Tensor]
    levels: list[Tensor]

    @classmethod
    def of(
        cls,
        name: str,
        layer: DrowsyConv2d,
        threshold: int,
        inputs: Sequence[Tensor],
        *,
        starts: Iterable[int],
        images: int,
        seed: int,
        detail: Tensor | None,
    ) -> Call:
        """A call on these inputs, chunks of ``images`` images that begin at ``starts``.

        Args:
            detail: of all images, for sources that see it (``DrowsyNet.detail_of``).
        """
        given, bias = layer.parameters_in_effect()
        weight = given.float()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.float()
        batched = inputs[0].dim() == 4
        xs = [x if batched else x[None] for x in inputs]
        sums = [_convolve(layer, x, weight, bias) for x in xs]
        # Drawn once for all that asks who is awake.
        drawn = zip(starts, sums, strict=True) if threshold else ()
        cells = [_levels(layer, seed, start, z, detail) for start, z in drawn]
        return cls(name, layer, images, seed, threshold, weight, bias, xs, batched, sums, cells)

    def on(self, inputs: Sequence[Tensor]) -> Call:
        """The call on other inputs, or this one where they are the same."""
        xs = [x if self.batched else x[None] for x in inputs]
        if all(map(torch.equal, self.inputs, xs)):
            return self
        sums = [_convolve(self.layer, x, self.weight, self.bias) for x in xs]
        return replace(self, inputs=xs, sums=sums)

    # --- what comes out -----------------------------------------------------------------------

    def output(self, chunk: int) -> Tensor:
        """What the layer puts out with nobody asleep; ``sums`` is overwritten."""
        layer, dtype = self.layer, self.inputs[chunk].dtype
        y = activate(self.sums[chunk], layer.activation, layer.slopes).to(dtype)
        return y if self.batched else y[0]

    def asleep(self, chunk: int, y: Tensor) -> Tensor:
        """An output ``y`` with its sleepers; itself where there are none."""
        if not self.threshold:
            return y
        layer = self.layer
        times = scale(self.threshold, layer.sleep.k, layer.fill)
        given = (self.levels[chunk], self.threshold, times, layer.sleep.grain, layer.fill)
        slept = sleep(y if self.batched else y[None], *given, layer.table)
        return slept if self.batched else slept[0]

    # --- the correction -----------------------------------------------------------------------

    def wanted(self, targets: Iterable[Tensor], reconstruct: bool) -> Wanted:
        """What ``targets`` are for this layer, by chunk shaped as ``sums``, where it is awake."""
        spread, finite, shapes = Spread(), True, []
        fitted: list[tuple[Tensor, Tensor]] = []
        generator = torch.Generator().manual_seed(self.seed)
        for chunk, target in enumerate(targets):
            spread.add(*self._awake(chunk, target))
            finite = finite and _finite(target)
            shapes.append(target.shape)
            if reconstruct and self.layer.groups <= _MAX_GROUPS:
                rows = self._rows(chunk, target, generator)
                fitted.append((rows, _positions(target)[rows]))
        return Wanted(spread, finite, shapes, fitted)

    def correct(self, wanted: Wanted) -> Correction:
        """Correct the layer for the inputs of this call, and tell how."""
        if not wanted.finite or not all(map(_finite, self.sums)):
            raise ValueError(
                f"layer {self.name}: its outputs are not finite, allowed: images on which they are"
            )
        before = Correction(torch.ones_like(self.bias), self.bias)
        # A chunk at least to fit, and one to hold out.
        if len(wanted.fitted) > 1:
            before = self._reconstructed(wanted)
            self.apply(before)
        own = Spread()
        for chunk, z in enumerate(self.sums):
            own.add(*self._awake(chunk, z))
        # A channel that is constant in the drowsy run has nothing to be scaled.
        mean, std = wanted.spread.mean, wanted.spread.std
        factor = torch.where(own.std > 1e-6 * std, std / own.std, 1.0).float()
        shift = (mean - factor * own.mean).float()
        self._scale(factor, shift)
        delta = None if before.delta is None else before.delta * factor[:, None, None, None]
        return Correction(factor, factor * before.bias + shift, delta)

    def apply(self, correction: Correction) -> None:
        """Correct the pre-activations, which are the layer's own so far."""
        if correction.delta is None:
            self._scale(correction.scale, correction.bias - correction.scale * self.bias)
        else:
            weight = self.weight * correction.scale[:, None, None, None] + correction.delta
            self.sums = [_convolve(self.layer, x, weight, correction.bias) for x in self.inputs]

    def _scale(self, factor: Tensor, shift: Tensor) -> None:
        factor, shift = factor.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        self.sums = [torch.addcmul(shift, z, factor) for z in self.sums]

    def _awake(self, chunk: int, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """A map as ``[positions, C]`` with all that are awake, and which of these are.

        Where all channels share their positions, none else are there and None says so.
        """
        values = _positions(z)
        if not self.threshold:
            return values, None
        n, c, h, w = z.shape
        awake = self.levels[chunk] >= self.threshold
        if _shares_positions(awake, z):
            return values[awake.flatten()], None
        cells = expand_cells(awake, (n, c, h, w), self.layer.sleep.grain)
        return values, _positions(cells)

    # --- least squares ------------------------------------------------------------------------

    def _reconstructed(self, wanted: Wanted) -> Correction:
        if wanted.shapes != [z.shape for z in self.sums]:
            raise ValueError(
                f"layer {self.name}: its outputs have other shapes asleep than awake, allowed with "
                "reconstruct=True: the same"
            )
        groups = self.layer.groups
        fit = [Moments() for _ in range(groups)]
        held = [Moments() for _ in range(groups)]
        last = len(self.inputs) - max(round(_HELD_OUT * len(self.inputs)), 1)
        for chunk, (z, (rows, target)) in enumerate(zip(self.sums, wanted.fitted, strict=True)):
            inputs = patches(self.inputs[chunk].float(), self.layer, rows, z.shape[2:], groups)
            rest = target - _positions(z)[rows]
            if chunk == 0:
                centres = [patch.mean(0) for patch in inputs]
            for group, (a, b) in enumerate(zip(inputs, rest.chunk(groups, 1), strict=True)):
                # From near their mean, sums of squares keep their digits.
                (fit if chunk < last else held)[group].add(a.sub_(centres[group]), b)
        solved = []
        for one, other, centre in zip(fit, held, centres, strict=True):
            weight, constant = ridge(one, other)
            solved.append((weight, constant - centre @ weight))
        delta = torch.cat([weight.T for weight, _ in solved])
        kh, kw = self.weight.shape[2:]
        delta = delta.view(len(delta), kh, kw, -1).permute(0, 3, 1, 2)
        bias = self.bias + torch.cat([constant for _, constant in solved])
        return Correction(torch.ones_like(self.bias), bias, delta.contiguous())

    def _rows(self, chunk: int, z: Tensor, generator: torch.Generator) -> Tensor:
        """Positions ``(image * OH + y) * OW + x`` to fit, of those that are awake."""
        share = max(_POSITIONS, _POSITIONS_PER_WEIGHT * self.weight[0].numel()) / self.images
        pool = torch.arange(len(z) * z.shape[2] * z.shape[3])
        if self.threshold:
            awake = self.levels[chunk] >= self.threshold
            # Where channels differ in their positions there is no choice.
            if _shares_positions(awake, z):
                pool = awake.flatten().nonzero()[:, 0].cpu() if awake.any() else pool
        chosen = torch.randperm(len(pool), generator=generator)[: math.ceil(share * len(z))]
        return pool[chosen].sort().values.to(z.device)


def _finite(z: Tensor) -> bool:
    return not z.numel() or bool(torch.stack(z.aminmax()).isfinite().all())


def _positions(z: Tensor) -> Tensor:
    """``[N, C, H, W]`` as ``[N * H * W, C]``."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def _shares_positions(awake: Tensor, z: Tensor) -> bool:
    return awake.shape[1:] == (z.shape[2] * z.shape[3], 1)


def _convolve(layer: DrowsyConv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spec = layer.spec
    x = padded_input(x.float(), spec)
    return F.conv2d(x, weight, bias, spec.stride, 0, spec.dilation, spec.groups)


def _levels(layer: DrowsyConv2d, seed: int, start: int, y: Tensor, detail: Tensor | None) -> Tensor:
    n, channels, height, width = y.shape
    clock = torch.tensor([seed, start], device=y.device)
    own = None if detail is None else detail[start : start + n]
    return levels(layer.sleep, (n, channels, height, width), clock, own)


def patches(
    x: Tensor, layer: DrowsyConv2d, rows: Tensor, size: Sequence[int], groups: int
) -> list[Tensor]:
    """What neurons at these positions multiply, by group: ``[rows, KH * KW * IC / groups]``."""
    spec, (height, width) = layer.spec, size
    x = padded_input(x, spec).permute(0, 2, 3, 1).contiguous()
    flat = x.flatten(0, 2)
    image, place = rows // (height * width), rows % (height * width)
    top, left = place // width * spec.stride[0], place % width * spec.stride[1]
    corner = (image * x.shape[1] + top) * x.shape[2] + left
    taps = [
        flat[corner + ky * spec.dilation[0] * x.shape[2] + kx * spec.dilation[1]]
        for ky in range(layer.weight.shape[2])
        for kx in range(layer.weight.shape[3])
    ]
    # [taps, rows, channels]: one group's channels of every tap lie side by side.
    split = torch.stack(taps).chunk(groups, dim=2)
    return [part.permute(1, 0, 2).flatten(1) for part in split]
