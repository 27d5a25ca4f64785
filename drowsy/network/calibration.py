"""Corrections of a network's layers by operating point, as values and as a file.

``drowsy.calibrate`` makes them; ``DrowsyNet.calibration`` takes them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drowsy.files.messages import legible, quoted
from drowsy.files.tensors import read_described, write_tensors
from drowsy.files.versioned import check_header, check_keys, is_number
from drowsy.knob.schedule import Setting
from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import MAX_K

FORMAT, VERSION = "drowsy.calibration", 2
# Norms of weights this close, relatively, are of the same weights, if in another dtype.
_SAME_WEIGHTS = 0.01


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
        shares: each layer's share of the convolutions' multiplications.
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

        The distance is the share of the convolutions' multiplications that sleep in one of the
        two only.
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
                f"({', '.join(map(legible, self.layers[:3]))} ...), the network has {len(layers)} "
                f"with k = {k} ({', '.join(list(layers)[:3])} ...)"
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

    def described(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors, ``POINT/LAYER/PART``, and all else, JSON-able; ``of_described`` reads it."""
        tensors = {
            f"{number}/{name}/{part}": tensor
            for number, corrections in enumerate(self.points.values())
            for name, each in corrections.items()
            for part, tensor in vars(each).items()
            if tensor is not None
        }
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
        return tensors, about

    @classmethod
    def of_described(cls, tensors: Mapping[str, Tensor], about: Any, where: str) -> Calibration:
        """What ``described`` told; ``where`` names it in errors.

        Raises:
            ValueError: what no calibration can hold; names the field or tensor.
        """
        _check_about(about, where)
        settings = [tuple(setting) for setting in about["settings"]]
        layers, shares, norms = (tuple(about[name]) for name in ("layers", "shares", "norms"))
        points = zip(settings, _corrections(tensors, len(settings), layers, where), strict=True)
        sleeps = zip(settings, map(tuple, about["sleeps"]), strict=True)
        return cls(about["k"], layers, shares, norms, dict(points), dict(sleeps))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        write_tensors(path, *self.described())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a calibration file.

        Raises:
            FileNotFoundError: no such file.
            ImportError: safetensors is not installed.
            ValueError: not a safetensors file, one without a calibration of this version, or one
                that holds what no calibration can; names the field or tensor.
        """
        tensors, about = read_described(path, "calibration")
        return cls.of_described(tensors, about, f"calibration: {legible(path)}")


def _check_about(about: Any, where: str) -> None:
    """Raise ValueError unless a file's header tells what ``Calibration.save`` writes."""
    check_header(about, FORMAT, VERSION, where)
    fields = {"k", "layers", "shares", "norms", "settings", "sleeps"}
    check_keys(about, {"format", "version", *fields}, where)
    k, layers, settings = about["k"], about["layers"], about["settings"]

    def check(name: str, good: bool, allowed: str) -> None:
        if not good:
            raise ValueError(f"{where}: {name}: got {quoted(about[name])}, allowed: {allowed}")

    def listed(values: Any, good: Callable[[Any], bool], count: int | None = None) -> bool:
        right = isinstance(values, list) and all(map(good, values))
        return right and count in (None, len(values))

    def text(value: Any) -> bool:
        return isinstance(value, str)

    check("k", type(k) is int and 2 <= k <= MAX_K, f"an integer from 2 to {MAX_K}")
    check("layers", listed(layers, text) and len({*layers}) == len(layers), "names, each once")
    count = len(layers)
    for name in ("shares", "norms"):
        numbers = listed(about[name], lambda value: is_number(value) and value >= 0, count)
        check(name, numbers, f"{count} finite numbers, 0 or more")
    thresholds = listed(
        settings, lambda row: listed(row, lambda j: type(j) is int and 0 <= j < k, count)
    )
    check(
        "settings",
        thresholds and len({*map(tuple, settings)}) == len(settings),
        f"lists of {count} integers from 0 to {k - 1}, each list once",
    )
    check(
        "sleeps",
        listed(about["sleeps"], lambda row: listed(row, text, count), len(settings)),
        f"{len(settings)} lists of {count} texts",
    )


def _corrections(
    tensors: Mapping[str, Tensor], points: int, layers: Sequence[str], where: str
) -> list[dict[str, Correction]]:
    """Each point's corrections by layer, of tensors that are called ``POINT/LAYER/PART``."""
    numbers = {str(number): number for number in range(points)}
    known = frozenset(layers)
    parts: list[dict[str, dict[str, Tensor]]] = [{} for _ in numbers]
    for key, tensor in tensors.items():
        number, _, rest = key.partition("/")
        name, _, part = rest.rpartition("/")
        if number not in numbers or name not in known or part not in ("scale", "bias", "delta"):
            raise ValueError(
                f"{where}: got a tensor {quoted(key)}, allowed: POINT/LAYER/PART with scale, bias "
                f"or delta, of {points} points and the layers {', '.join(map(legible, layers[:3]))}"
                " ..."
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(
                f"{where}: {legible(key)}: got {tensor.dtype}, NaN or infinity, allowed: finite "
                "numbers of floating point"
            )
        parts[numbers[number]].setdefault(name, {})[part] = tensor
    for point, layer_parts in enumerate(parts):
        for name, found in layer_parts.items():
            if missing := {"scale", "bias"} - found.keys():
                raise ValueError(
                    f"{where}: {point}/{legible(name)}: missing {', '.join(sorted(missing))}"
                )
    return [{name: Correction(**found) for name, found in each.items()} for each in parts]


def weight_norms(layers: Mapping[str, DrowsyConv2d]) -> tuple[float, ...]:
    """L2 norm of each layer's weight."""
    norms = [layer.weight.detach().float().norm() for layer in layers.values()]
    return tuple(torch.stack(norms).tolist())
