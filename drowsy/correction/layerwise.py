"""The network awake and asleep, side by side, layer by layer: what each layer's correction is."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from drowsy._optional import require
from drowsy.correction.least_squares import Moments, Spread, ridge
from drowsy.graph.running import Executor
from drowsy.network.calibration import Correction
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.neuron import activate, padded_input, sleep
from drowsy.sleep import expand_cells, levels, scale

# Positions that a reconstruction sees: so many, or this many for each weight of a neuron.
_POSITIONS, _POSITIONS_PER_WEIGHT = 16_000, 5
# The share of the images that choose the ridge.
_HELD_OUT = 0.25
# Layers of more groups get the affine correction: a group has few weights to change.
_MAX_GROUPS = 8
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class _Lane:
    """A run of the network over all images, one node at a time."""

    def __init__(self, executor: Executor, chunks: Sequence[Tensor]) -> None:
        self._executor = executor
        self._states = [executor.start(images.clone()) for images in chunks]

    def step(self, node: fx.Node) -> None:
        for state in self._states:
            state[node] = self._executor.compute(node, state)

    def values(self, node: fx.Node) -> list[Tensor]:
        return [state[node] for state in self._states]

    def put(self, node: fx.Node, chunk: int, value: Tensor) -> None:
        self._states[chunk][node] = value

    def has(self, node: fx.Node) -> bool:
        return node in self._states[0]

    def drop(self, node: fx.Node) -> None:
        for state in self._states:
            self._executor.drop(node, state)


@torch.no_grad()
def layer_corrections(
    net: DrowsyNet, images: Tensor, reconstruct: bool, seed: int, batch: int, progress: bool
) -> dict[str, Correction]:
    """Corrections at the setting in force, which the network computes without any so far."""
    size = min(batch, max(len(images) // 4, 1))
    chunks, starts = images.split(size), range(0, len(images), size)
    layers, thresholds = net.layers, net.control.settings
    executor = Executor(net)
    awake, drowsy = _Lane(executor, chunks), _Lane(executor, chunks)
    found: dict[str, Correction | None] = {}
    bar = require("tqdm", "search").tqdm if progress else iter
    for node in bar(executor.nodes):
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if layer is None:
            awake.step(node)
            drowsy.step(node)
        else:
            asleep = thresholds[layer.index]
            task = _task(node, layer, awake, drowsy, starts, len(images), seed, asleep)
            name = str(node.target)
            if name not in found:
                found[name] = task.correct(reconstruct) if task.differs else None
            elif (known := found[name]) is not None:
                # The network has one correction for all calls of a layer.
                task.apply(known)
            task.run()
        for lane in (awake, drowsy):
            lane.drop(node)
    return {name: each for name, each in found.items() if each is not None}


@dataclass
class _Task:
    """One call of one layer in both runs, by chunks of images.

    Attributes:
        node, layer: the call.
        awake, drowsy: the two runs.
        images: how many there are in all chunks.
        seed, threshold: of the drowsy run.
        weight, bias: what the layer computes with, without a correction; float32.
        inputs: of the drowsy run.
        wanted: pre-activations of the run awake.
        own: pre-activations of the drowsy run.
        differs: whether these are other tensors than those awake, and not the same ones.
        levels: of its cells (``drowsy.sleep.levels``), of which those below ``threshold`` sleep;
            empty where nobody does.
    """

    node: fx.Node
    layer: DrowsyConv2d
    awake: _Lane
    drowsy: _Lane
    images: int
    seed: int
    threshold: int
    weight: Tensor
    bias: Tensor
    inputs: list[Tensor]
    wanted: list[Tensor]
    own: list[Tensor]
    differs: bool
    levels: list[Tensor]

    def run(self) -> None:
        """Let both runs go on with the layer's outputs; the drowsy one with its sleep."""
        layer = self.layer
        for chunk, (z, wanted) in enumerate(zip(self.own, self.wanted, strict=True)):
            dtype = self.inputs[chunk].dtype
            # Activations work in place.
            y = activate(z if self.differs else z.clone(), layer.activation).to(dtype)
            if self.threshold:
                times = scale(self.threshold, layer.sleep.k, layer.fill)
                grain, fill, table = layer.sleep.grain, layer.fill, layer.table
                y = sleep(y, self.levels[chunk], self.threshold, times, grain, fill, table)
            self.drowsy.put(self.node, chunk, y)
            self.awake.put(self.node, chunk, activate(wanted, layer.activation).to(dtype))

    def correct(self, reconstruct: bool) -> Correction:
        """Correct the layer for the drowsy inputs of this call, and tell how."""
        bounds = [bound for z in (*self.own, *self.wanted) for bound in z.aminmax()]
        if not torch.stack(bounds).isfinite().all():
            raise ValueError(
                f"layer {self.node.target}: its outputs are not finite, allowed: images on which "
                "they are"
            )
        before = Correction(torch.ones_like(self.bias), self.bias)
        if reconstruct and self.layer.groups <= _MAX_GROUPS:
            before = self._reconstructed()
            self.apply(before)
        own, wanted = Spread(), Spread()
        for chunk, (z, target) in enumerate(zip(self.own, self._targets(), strict=True)):
            (drowsy, awake), keep = self._awake(chunk, z, target)
            own.add(drowsy, keep)
            wanted.add(awake, keep)
        # A channel that is constant in the drowsy run has nothing to be scaled.
        factor = torch.where(own.std > 1e-6 * wanted.std, wanted.std / own.std, 1.0).float()
        shift = (wanted.mean - factor * own.mean).float()
        self._scale(factor, shift)
        delta = None if before.delta is None else before.delta * factor[:, None, None, None]
        return Correction(factor, factor * before.bias + shift, delta)

    def apply(self, correction: Correction) -> None:
        """Correct the drowsy pre-activations, which are the layer's own so far."""
        if correction.delta is None:
            self._scale(correction.scale, correction.bias - correction.scale * self.bias)
        else:
            weight = self.weight * correction.scale[:, None, None, None] + correction.delta
            self.own = [_convolve(self.layer, x, weight, correction.bias) for x in self.inputs]
            self.differs = True

    def _scale(self, factor: Tensor, shift: Tensor) -> None:
        factor, shift = factor.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        self.own = [torch.addcmul(shift, z, factor) for z in self.own]
        self.differs = True

    def _targets(self) -> Iterator[Tensor]:
        """What each chunk's drowsy pre-activations should be."""
        other = self._summand()
        for chunk, wanted in enumerate(self.wanted):
            if other is not None:
                lost = self.awake.values(other)[chunk] - self.drowsy.values(other)[chunk]
                # What is broadcast over positions cannot be made up for at one of them.
                if lost.shape == wanted.shape:
                    wanted = wanted + lost.float()
            yield wanted

    def _summand(self) -> fx.Node | None:
        """What is added to the layer's output, where that is all that becomes of it."""
        users = list(self.node.users)
        if self.layer.activation != "none" or len(users) != 1:
            return None
        (user,) = users
        if user.op != "call_function" or user.target not in _ADDITIONS or user.kwargs:
            return None
        others = [arg for arg in user.args if arg is not self.node]
        if len(others) != 1 or not isinstance(others[0], fx.Node):
            return None
        return others[0] if self.awake.has(others[0]) else None

    def _awake(self, chunk: int, *maps: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Maps as ``[positions, C]`` with all that are awake, and which of these are.

        Where all channels share their positions, none else are there and None says so.
        """
        values = [z.permute(0, 2, 3, 1).flatten(0, 2) for z in maps]
        if not self.threshold:
            return values, None
        n, c, h, w = maps[0].shape
        awake = self.levels[chunk] >= self.threshold
        if self._shares_positions(awake, maps[0]):
            return [each[awake.flatten()] for each in values], None
        cells = expand_cells(awake, (n, c, h, w), self.layer.sleep.grain)
        return values, cells.permute(0, 2, 3, 1).flatten(0, 2)

    @staticmethod
    def _shares_positions(awake: Tensor, z: Tensor) -> bool:
        return awake.shape[1:] == (z.shape[2] * z.shape[3], 1)

    # --- least squares ------------------------------------------------------------------------

    def _reconstructed(self) -> Correction:
        groups = self.layer.groups
        fit = [Moments() for _ in range(groups)]
        held = [Moments() for _ in range(groups)]
        generator = torch.Generator().manual_seed(self.seed)
        last = len(self.inputs) - max(round(_HELD_OUT * len(self.inputs)), 1)
        depth = self.weight[0].numel()
        share = max(_POSITIONS, _POSITIONS_PER_WEIGHT * depth) / self.images
        for chunk, (z, target) in enumerate(zip(self.own, self._targets(), strict=True)):
            rows = self._rows(chunk, z, math.ceil(share * len(z)), generator)
            inputs = patches(self.inputs[chunk].float(), self.layer, rows, z.shape[2:], groups)
            rest = (target - z).permute(0, 2, 3, 1).flatten(0, 2)[rows]
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

    def _rows(self, chunk: int, z: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Positions ``(image * OH + y) * OW + x`` to fit: ``count`` of those that are awake."""
        pool = torch.arange(len(z) * z.shape[2] * z.shape[3])
        if self.threshold:
            awake = self.levels[chunk] >= self.threshold
            # Where channels differ in their positions there is no choice.
            if self._shares_positions(awake, z):
                pool = awake.flatten().nonzero()[:, 0].cpu() if awake.any() else pool
        chosen = torch.randperm(len(pool), generator=generator)[:count]
        return pool[chosen].sort().values.to(z.device)


def _task(
    node: fx.Node,
    layer: DrowsyConv2d,
    awake: _Lane,
    drowsy: _Lane,
    starts: Sequence[int],
    images: int,
    seed: int,
    threshold: int,
) -> _Task:
    """Compute the layer's pre-activations in both runs, without a correction, and its levels."""
    (source,) = node.all_input_nodes
    given, bias = layer.parameters_in_effect()
    weight = given.float()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.float()
    clean, inputs = awake.values(source), drowsy.values(source)
    differs = any(not torch.equal(a, b) for a, b in zip(clean, inputs, strict=True))
    wanted = [_convolve(layer, x, weight, bias) for x in clean]
    own = [_convolve(layer, x, weight, bias) for x in inputs] if differs else wanted
    # Drawn once for all that asks who is awake.
    drawn = zip(starts, wanted, strict=True) if threshold else ()
    cells = [_levels(layer, seed, start, z) for start, z in drawn]
    return _Task(
        node, layer, awake, drowsy, images, seed, threshold,
        weight, bias, inputs, wanted, own, differs, cells,
    )  # fmt: skip


def _convolve(layer: DrowsyConv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spec = layer.spec
    x = padded_input(x.float(), spec)
    return F.conv2d(x, weight, bias, spec.stride, 0, spec.dilation, spec.groups)


def _levels(layer: DrowsyConv2d, seed: int, start: int, y: Tensor) -> Tensor:
    clock = torch.tensor([seed, start], device=y.device)
    return levels(layer.sleep, (y.shape[0], y.shape[1], y.shape[2], y.shape[3]), clock)


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
