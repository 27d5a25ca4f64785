"""Corrections of a network's layers by operating point, as values and as a file.

``drowsy.calibrate`` makes them; ``DrowsyNet.calibration`` takes them.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from drowsy._optional import require
from drowsy.files.atomic import replacing
from drowsy.files.versioned import check_header
from drowsy.knob.schedule import Setting
from drowsy.network.layer import DrowsyConv2d

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


def weight_norms(layers: Mapping[str, DrowsyConv2d]) -> tuple[float, ...]:
    """L2 norm of each layer's weight."""
    norms = [layer.weight.detach().float().norm() for layer in layers.values()]
    return tuple(torch.stack(norms).tolist())
