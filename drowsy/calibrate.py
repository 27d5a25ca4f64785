"""Corrections for a network that sleeps, from unlabelled images, one set for each operating point.

Sleep shifts the statistics of everything behind it: a filled map is smoother than the one it stands
for, so the pre-activations of the next layer shrink, and the error grows from layer to layer. A
correction counters that where it arises. The drowsy network and the same network awake see the same
images, layer by layer, and every layer whose input differs is corrected for the drowsy input that
it really gets, the layers before it being corrected already:

- the *affine* correction gives the pre-activations of each channel's awake neurons the mean and the
  standard deviation that they have when all are awake: a factor on its weights and a new bias,
  nothing more to store or to run. (What sleepers would compute does not count: it is thrown away);
- *reconstruction* changes the weights themselves: by least squares, the pre-activations of the
  awake neurons come as close as they can to those of the network awake. A ridge holds the weights
  to what they were; images that the fit did not see choose how strongly, to the point that the
  bias alone changes, or nothing. (As layers are reconstructed after channels were pruned: He et
  al., "Channel pruning for accelerating very deep neural networks", ICCV 2017.) What least squares
  predict varies less than what they predict it of, and a network whose every layer shrinks is
  less sure of its answers; so the affine correction follows.

A layer that ends in a residual addition also makes up for what the other summand has lost. A
layer that runs several times is corrected for its first inputs, if these differ.
"""

from __future__ import annotations

import json
import math
import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from drowsy._optional import require
from drowsy.engine import Result, Workload
from drowsy.evaluate import Setting, check_images
from drowsy.files.atomic import replacing
from drowsy.files.versioned import check_header
from drowsy.knob.control import check_seed
from drowsy.knob.costs import layer_costs, layer_shares
from drowsy.knob.frontier import Frontier, OperatingPoint
from drowsy.knob.schedule import Schedule
from drowsy.layer import DrowsyConv2d
from drowsy.net import DrowsyNet, check_network
from drowsy.neuron import activate, padded_input, sleep
from drowsy.sleep import expand_cells, levels, scale
from drowsy.store import fingerprint_data

FORMAT, VERSION = "drowsy.calibration", 2
# Ridges in units of the mean second moment of the inputs; the last stands for no change of the
# weight; no change of the bias either is always the alternative.
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, math.inf)
# Positions that a reconstruction sees: so many, or this many for each weight of a neuron.
_POSITIONS, _POSITIONS_PER_WEIGHT = 16_000, 5
# The share of the images that choose the ridge.
_HELD_OUT = 0.25
# Layers of more groups get the affine correction: a group has few weights to change.
_MAX_GROUPS = 8
# Norms of weights this close, relatively, are of the same weights, if in another dtype.
_SAME_WEIGHTS = 0.01
# Calibrations that an engine keeps.
_KEPT = 8
_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True, eq=False)
class Correction:
    """What one layer computes with at an operating point; float32. Equal to itself alone.

    Attributes:
        scale: ``[OC]`` factor on the layer's weight.
        bias: ``[OC]``, instead of the layer's.
        delta: added to the weight, shaped as it is; None for nothing.
    """

    scale: Tensor
    bias: Tensor
    delta: Tensor | None = None


@dataclass
class Calibration:
    """Corrections of a network's layers by operating point. ``net.calibration`` takes one.

    Attributes:
        k: rates are multiples of ``1/k``.
        layers: names of the network's layers, in order of execution.
        shares: each layer's share of the network's multiplications.
        norms: L2 norm of each layer's weight, which tells trained networks apart in any dtype.
        points: settings, each with its layers' corrections.
        sleeps: for each of them ``DrowsyNet.sleeps``, which it was made for.
    """

    k: int
    layers: tuple[str, ...]
    shares: tuple[float, ...]
    norms: tuple[float, ...]
    points: dict[Setting, dict[str, Correction]] = field(default_factory=dict)
    sleeps: dict[Setting, tuple[str, ...]] = field(default_factory=dict)

    def nearest(self, setting: Setting) -> tuple[Setting, float]:
        """The calibrated setting nearest to another one, and how far it is.

        The distance is the share of the multiplications that sleep in one of the two only.
        """

        def distance(other: Setting) -> float:
            pairs = zip(setting, other, self.shares, strict=True)
            return sum(abs(a - b) / self.k * share for a, b, share in pairs)

        # Rate 0 is right as it is, without corrections.
        settings = [(0,) * len(self.layers), *self.points]
        best = min(settings, key=distance)
        return best, distance(best)

    def check(self, layers: Mapping[str, DrowsyConv2d], k: int) -> None:
        """Raise ValueError where this is not of a network of these layers: names, shapes or ``k``.

        Warns where they were trained otherwise.
        """
        if (self.k, self.layers) != (k, tuple(layers)):
            raise ValueError(
                f"calibration: is of {len(self.layers)} layers with k = {self.k} "
                f"({', '.join(self.layers[:3])} ...), the network has {len(layers)} with k = "
                f"{k} ({', '.join(list(layers)[:3])} ...)"
            )
        for setting, corrections in self.points.items():
            if len(setting) != len(layers) or not corrections.keys() <= layers.keys():
                raise ValueError(f"calibration: its point {setting} is of other layers than it has")
            for name, each in corrections.items():
                shape = layers[name].weight.shape
                wanted = {"scale": shape[:1], "bias": shape[:1], "delta": shape}
                for part, tensor in vars(each).items():
                    if tensor is not None and tensor.shape != wanted[part]:
                        raise ValueError(
                            f"calibration: layer {name}: {part}: got shape {tuple(tensor.shape)}, "
                            f"the network's layer has {tuple(wanted[part])}"
                        )
        for name, made, now in zip(layers, self.norms, weight_norms(layers), strict=True):
            if abs(now - made) > _SAME_WEIGHTS * made:
                warnings.warn(
                    f"calibration: was made for other weights: those of layer {name} have norm "
                    f"{now:.4g}, and had {made:.4g}",
                    stacklevel=4,
                )
                break

    def to(self, device: torch.device) -> Calibration:
        """The same with its tensors on a device."""

        def moved(correction: Correction) -> Correction:
            delta = correction.delta
            return Correction(
                correction.scale.to(device),
                correction.bias.to(device),
                None if delta is None else delta.to(device),
            )

        points = {
            setting: {name: moved(each) for name, each in corrections.items()}
            for setting, corrections in self.points.items()
        }
        return replace(self, points=points)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        save_file = require("safetensors.torch", "models").save_file
        tensors: dict[str, Tensor] = {}
        for number, corrections in enumerate(self.points.values()):
            for name, each in corrections.items():
                for part, tensor in vars(each).items():
                    if tensor is not None:
                        tensors[f"{number}/{name}/{part}"] = tensor.cpu().contiguous()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "k": self.k,
            "layers": self.layers,
            "shares": self.shares,
            "norms": self.norms,
            "settings": list(self.points),
            "sleeps": [self.sleeps[setting] for setting in self.points],
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"drowsy": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a safetensors file, or one without a calibration of this version.
        """
        safetensors = require("safetensors", "models")
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"calibration: no file {path}")
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("drowsy", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(
                f"calibration: {path} is not a whole calibration file; it is truncated or of "
                f"another format ({error})"
            ) from error
        check_header(about, FORMAT, VERSION, f"calibration: {path}")
        try:
            layers, shares, norms = (tuple(about[name]) for name in ("layers", "shares", "norms"))
            found = cls(about["k"], layers, shares, norms)
            parts: dict[Setting, dict[str, dict[str, Tensor]]] = {}
            settings = [tuple(setting) for setting in about["settings"]]
            for key, tensor in tensors.items():
                number, _, rest = key.partition("/")
                name, _, part = rest.rpartition("/")
                point = parts.setdefault(settings[int(number)], {})
                point.setdefault(name, {})[part] = tensor
            for setting, sleeps in zip(settings, about["sleeps"], strict=True):
                found.sleeps[setting] = tuple(sleeps)
                corrected = parts.get(setting, {})
                found.points[setting] = {name: Correction(**p) for name, p in corrected.items()}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"calibration: {path} holds something else ({error!r})") from error
        return found


def calibrate(
    net: DrowsyNet,
    images: Tensor | Iterable[Any],
    points: Frontier | Iterable[Schedule | OperatingPoint] | None = None,
    *,
    reconstruct: bool = False,
    seed: int = 0,
    batch: int = 32,
    progress: bool = False,
) -> Calibration:
    """Correct a network at its operating points; neither labels nor training are needed.

    From then on ``net.set`` puts the correction of the nearest calibrated point in force, and warns
    where that is not the very point, or where it was made for other sleepers (another grain, fill
    or source). Rate 0 is never corrected.

    Args:
        net: a converted network; its weights, rates and sleep maps stay as they are.
        images: ``[N, C, H, W]`` as the network takes them, or a loader of batches (a tensor, or a
            tuple that begins with it). A hundred is enough for the affine correction, and
            reconstruction gains from every one. All are held in memory, with the activations that
            are needed at one layer.
        points: a frontier, schedules or operating points; None for the setting in force.
        reconstruct: also change weights (see above): better, at the price of a copy of the weights
            for each point.
        seed: of the sleep maps that are drawn for the images, and of the positions that are fitted.
        batch: images per forward pass.
        progress: show a progress bar (needs tqdm).

    Returns:
        the calibration, which is also ``net.calibration``; ``save`` it beside the frontier.

    Raises:
        ValueError: no images, images that are not finite, fewer than 4 for ``reconstruct``, or a
            schedule that does not fit the network.
    """
    check_network(net)
    pixels = _gathered(images)
    check_images(pixels)
    if reconstruct and len(pixels) < 4:
        raise ValueError(f"images: got {len(pixels)}, allowed: 4 or more to reconstruct from")
    if batch < 1:
        raise ValueError(f"batch: got {batch}, allowed: 1 or more")
    check_seed("seed", seed)
    given = [net.schedule] if points is None else points
    if isinstance(given, Frontier):
        given = given.points
    schedules = [getattr(point, "schedule", point) for point in given]
    with _as_it_was(net):
        shares = layer_shares(layer_costs(net, pixels.shape[1:]))
        calibration = Calibration(
            net.k,
            tuple(net.layers),
            tuple(shares.get(name, 0.0) for name in net.layers),
            weight_norms(net.layers),
        )
        for schedule in schedules:
            net.set(schedule)
            setting = tuple(net.control.settings)
            if any(setting):
                calibration.sleeps[setting] = net.sleeps
                calibration.points[setting] = _corrections(
                    net, pixels, reconstruct, seed, batch, progress
                )
    net.calibration = calibration
    return calibration


def weight_norms(layers: Mapping[str, DrowsyConv2d]) -> tuple[float, ...]:
    """L2 norm of each layer's weight."""
    norms = [layer.weight.detach().float().norm() for layer in layers.values()]
    return tuple(torch.stack(norms).tolist())


@contextmanager
def _as_it_was(net: DrowsyNet) -> Iterator[None]:
    """A network without corrections, which gets its own back with its knob and its clock."""
    schedule, calibration, clock = net.schedule, net.calibration, net.control.clock.clone()
    sleeps = [(layer, layer.sleep) for layer in net.layers.values()]
    net.calibration = None
    try:
        yield
    finally:
        net.calibration = None
        # A schedule tells no streams where they are the layers' own.
        for layer, before in sleeps:
            layer.stage(stream=before.stream, phase=before.phase)
        net.set(schedule)
        net.control.clock.copy_(clock)
        net.calibration = calibration


@dataclass(frozen=True)
class Corrected:
    """An engine (``drowsy.engine``) that corrects the network at every setting it evaluates.

    A search then goes by what its settings lose once they are calibrated. Settings share no work,
    so that each costs a calibration and a whole evaluation; few images will do for the affine one.
    The last few calibrations are kept, for other seeds and other images.

    Args: as for ``calibrate``.
    """

    images: Tensor
    reconstruct: bool = False
    seed: int = 0
    _kept: dict[tuple[DrowsyNet, tuple[str, ...], Setting], Calibration] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def facts(self) -> dict[str, Any]:
        """What decides a result beside the setting; ``Measurer`` keeps results apart by it."""
        kind = "reconstructed" if self.reconstruct else "affine"
        return {"calibration": [kind, fingerprint_data(self.images, None), self.seed]}

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        """See ``drowsy.engine.Engine``; the network is given back as it was."""
        net = work.net
        with _as_it_was(net):
            if work.baseline is None:
                work = replace(work, baseline=work.evaluator(0).logits())
            for seed, todo in settings.items():
                # Of one seed, so that maps are drawn once for all settings.
                evaluator = work.evaluator(seed)
                for setting in todo:
                    net.calibration = None
                    net.set(net.schedule_of(setting))
                    net.calibration = self._calibration(net, setting)
                    yield seed, setting, evaluator.evaluate(setting)

    def _calibration(self, net: DrowsyNet, setting: Setting) -> Calibration:
        """Of the setting in force."""
        key = (net, net.sleeps, setting)
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = calibrate(
                net, self.images, reconstruct=self.reconstruct, seed=self.seed
            )
        return self._kept[key]


def _gathered(images: Tensor | Iterable[Any]) -> Tensor:
    if isinstance(images, Tensor):
        return images
    given = images if isinstance(images, Iterable) else ()
    batches = [each[0] if isinstance(each, (tuple, list)) else each for each in given]
    if not batches or not all(isinstance(each, Tensor) for each in batches):
        raise ValueError("images: got no batches of tensors, allowed: a tensor or a loader of them")
    return torch.cat(batches)


# --- layer by layer ------------------------------------------------------------------------------


class _Lane:
    """A run of the network over all images, one node at a time."""

    def __init__(self, net: DrowsyNet, chunks: Sequence[Tensor]) -> None:
        self.runs = [fx.Interpreter(net, garbage_collect_values=False) for _ in chunks]
        for run, images in zip(self.runs, chunks, strict=True):
            run.args_iter = iter((images.clone(),))

    def step(self, node: fx.Node) -> None:
        for run in self.runs:
            run.env[node] = run.run_node(node)

    def values(self, node: fx.Node) -> list[Tensor]:
        return [run.env[node] for run in self.runs]

    def put(self, node: fx.Node, chunk: int, value: Tensor) -> None:
        self.runs[chunk].env[node] = value

    def has(self, node: fx.Node) -> bool:
        return node in self.runs[0].env

    def drop(self, nodes: Iterable[fx.Node]) -> None:
        for run in self.runs:
            for node in nodes:
                run.env.pop(node, None)


@torch.no_grad()
def _corrections(
    net: DrowsyNet, images: Tensor, reconstruct: bool, seed: int, batch: int, progress: bool
) -> dict[str, Correction]:
    """Corrections at the setting in force, which the network computes without any so far."""
    size = min(batch, max(len(images) // 4, 1))
    chunks, starts = images.split(size), range(0, len(images), size)
    layers, thresholds = net.layers, net.control.settings
    awake, drowsy = _Lane(net, chunks), _Lane(net, chunks)
    nodes = [node for node in net.graph.nodes if node.target != "control" and node.op != "output"]
    last_use = {used: node for node in nodes for used in node.all_input_nodes}
    found: dict[str, Correction | None] = {}
    bar = require("tqdm", "search").tqdm if progress else iter
    for node in bar(nodes):
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if layer is None:
            awake.step(node)
            drowsy.step(node)
        else:
            task = _Task(node, layer, awake, drowsy, chunks, starts, seed, thresholds[layer.index])
            name = str(node.target)
            if name not in found:
                found[name] = task.correct(reconstruct) if task.differs else None
            elif (known := found[name]) is not None:
                # The network has one correction for all calls of a layer.
                task.apply(known)
            task.run()
        dead = [used for used in node.all_input_nodes if last_use[used] is node]
        for lane in (awake, drowsy):
            lane.drop(dead if node in last_use else [*dead, node])
    return {name: each for name, each in found.items() if each is not None}


@dataclass
class _Task:
    """One call of one layer in both runs."""

    node: fx.Node
    layer: DrowsyConv2d
    awake: _Lane
    drowsy: _Lane
    chunks: Sequence[Tensor]
    starts: Sequence[int]
    seed: int
    threshold: int

    def __post_init__(self) -> None:
        (self.source,) = self.node.all_input_nodes
        weight, bias = self.layer.parameters_in_effect()
        self.weight = weight.float()
        self.bias = weight.new_zeros(len(weight)).float() if bias is None else bias.float()
        self.inputs = self.drowsy.values(self.source)
        awake = self.awake.values(self.source)
        self.differs = any(not torch.equal(a, b) for a, b in zip(awake, self.inputs, strict=True))
        # Pre-activations of both runs, without a correction.
        self.wanted = [self._convolve(x, self.weight, self.bias) for x in awake]
        self.own = self.wanted
        if self.differs:
            self.own = [self._convolve(x, self.weight, self.bias) for x in self.inputs]
        # Drawn once for all that asks who is awake.
        chunks = zip(self.starts, self.wanted, strict=True) if self.threshold else ()
        self.levels = [self._levels(start, z) for start, z in chunks]

    def run(self) -> None:
        """Let both runs go on with the layer's outputs; the drowsy one with its sleep."""
        layer = self.layer
        for chunk, (z, wanted) in enumerate(zip(self.own, self.wanted, strict=True)):
            dtype = self.inputs[chunk].dtype
            # Activations work in place.
            y = activate(z.clone() if z is wanted else z, layer.activation).to(dtype)
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
        own, wanted = _Spread(), _Spread()
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
            self.own = [self._convolve(x, weight, correction.bias) for x in self.inputs]

    def _scale(self, factor: Tensor, shift: Tensor) -> None:
        factor, shift = factor.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
        self.own = [torch.addcmul(shift, z, factor) for z in self.own]

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

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        spec = self.layer.spec
        x = padded_input(x.float(), spec)
        return F.conv2d(x, weight, bias, spec.stride, 0, spec.dilation, spec.groups)

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

    def _levels(self, start: int, y: Tensor) -> Tensor:
        clock = torch.tensor([self.seed, start], device=y.device)
        return levels(self.layer.sleep, (y.shape[0], y.shape[1], y.shape[2], y.shape[3]), clock)

    # --- least squares ------------------------------------------------------------------------

    def _reconstructed(self) -> Correction:
        groups = self.layer.groups
        fit = [_Moments() for _ in range(groups)]
        held = [_Moments() for _ in range(groups)]
        generator = torch.Generator().manual_seed(self.seed)
        last = len(self.chunks) - max(round(_HELD_OUT * len(self.chunks)), 1)
        depth = self.weight[0].numel()
        share = max(_POSITIONS, _POSITIONS_PER_WEIGHT * depth) / sum(map(len, self.chunks))
        for chunk, (z, target) in enumerate(zip(self.own, self._targets(), strict=True)):
            rows = self._rows(chunk, z, math.ceil(share * len(z)), generator)
            patches = _patches(self.inputs[chunk].float(), self.layer, rows, z.shape[2:], groups)
            rest = (target - z).permute(0, 2, 3, 1).flatten(0, 2)[rows]
            if chunk == 0:
                centres = [patch.mean(0) for patch in patches]
            for group, (a, b) in enumerate(zip(patches, rest.chunk(groups, 1), strict=True)):
                # From near their mean, sums of squares keep their digits.
                (fit if chunk < last else held)[group].add(a.sub_(centres[group]), b)
        solved = []
        for one, other, centre in zip(fit, held, centres, strict=True):
            weight, constant = _ridge(one, other)
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


def _patches(
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
        for ky in range(layer.kernel_size[0])
        for kx in range(layer.kernel_size[1])
    ]
    # [taps, rows, channels]: one group's channels of every tap lie side by side.
    split = torch.stack(taps).chunk(groups, dim=2)
    return [part.permute(1, 0, 2).flatten(1) for part in split]


class _Spread:
    """Mean and standard deviation of each channel's awake neurons, in float64; 0 of none."""

    def __init__(self) -> None:
        self.count = self.sum = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor, awake: Tensor | None) -> None:
        """Add values ``[positions, C]``, or the ``awake`` of them."""
        keep = None if awake is None else awake.to(values.dtype)
        kept = values if keep is None else values * keep
        count = torch.tensor(len(values)) if awake is None else awake.sum(0)
        mean = kept.sum(0).double() / count.clamp_min(1)
        # From their mean, sums of squares keep their digits.
        rest = values - mean.to(values.dtype)
        if keep is not None:
            rest.mul_(keep)
        self.count = self.count + count
        self.sum = self.sum + count * mean
        self.squares = self.squares + rest.square_().sum(0).double() + count * mean.square()

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp_min(1)

    @property
    def std(self) -> Tensor:
        spread = self.squares / self.count.clamp_min(1) - self.mean.square()
        return spread.clamp_min(0).sqrt()


class _Moments:
    """Second moments of inputs ``[rows, K]`` and targets ``[rows, C]``."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        new = [a.sum(0), b.sum(0), a.T @ a, a.T @ b, b.square().sum(0)]
        self.sums = [x + y for x, y in zip(self.sums, new, strict=True)] if self.sums else new
        self.rows += len(a)

    def __add__(self, other: _Moments) -> _Moments:
        both = _Moments()
        both.rows = self.rows + other.rows
        both.sums = [x + y for x, y in zip(self.sums, other.sums, strict=True)]
        return both

    def error(self, weight: Tensor, constant: Tensor) -> float:
        """Mean squared error of ``a @ weight + constant`` as a guess of the targets."""
        # The largest product is exact enough as it is.
        product = (self.sums[2] @ weight).double() / self.rows
        a, b, ab, bb = (self.sums[i].double() / self.rows for i in (0, 1, 3, 4))
        weight, constant = weight.double(), constant.double()
        guess = (weight * product).sum(0) + constant * (constant + 2 * (a @ weight))
        both = (weight * ab).sum(0) + constant * b
        return float((bb - 2 * both + guess).sum())


def _ridge(fit: _Moments, held: _Moments) -> tuple[Tensor, Tensor]:
    """Weight ``[K, C]`` and constant ``[C]`` by ridge regression; what is held out chooses how.

    Both are 0 where no ridge is better than that on what is held out.
    """

    def solve(moments: _Moments, ridge: float | None) -> tuple[Tensor, Tensor]:
        a, b, aa, ab, _ = (total / moments.rows for total in moments.sums)
        if ridge is None:
            return torch.zeros_like(ab), torch.zeros_like(b)
        if math.isinf(ridge):
            return torch.zeros_like(ab), b
        shift = ridge * aa.diagonal().mean() + torch.finfo(aa.dtype).tiny
        covariance = aa.addr_(a, a, alpha=-1)
        covariance.diagonal().add_(shift)
        factor = torch.linalg.cholesky(covariance)
        weight = torch.cholesky_solve(torch.addr(ab, a, b, alpha=-1), factor)
        return weight, b - a @ weight

    candidates = (None, *RIDGES)
    errors = [held.error(*solve(fit, ridge)) for ridge in candidates]
    return solve(fit + held, candidates[errors.index(min(errors))])
