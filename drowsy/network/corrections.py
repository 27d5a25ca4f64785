"""Which of a network's corrections is in force."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from drowsy.knob.schedule import Setting
from drowsy.network.calibration import Calibration, Correction
from drowsy.network.layer import DrowsyConv2d


class Corrections:
    """A network's calibration, and what its layers compute with.

    Attributes:
        calibration: None for none.
        point: the calibrated setting whose corrections are in force, None for none. Corrections may
            rest (``apply``) while it stands.
        in_force: corrections by layer; empty where nothing is corrected.
    """

    def __init__(self, layers: Mapping[str, DrowsyConv2d]) -> None:
        self._layers = layers
        self.calibration: Calibration | None = None
        self.point: Setting | None = None
        self.in_force: Mapping[str, Correction] = {}
        self._resting = False

    def take(self, calibration: Calibration) -> None:
        """Take a calibration of these layers, on their device; nothing of it is in force yet."""
        self.calibration, self.point = calibration, None
        # Here and not where the knob turns layers get their buffers, which graphs hold on to.
        for corrections in calibration.points.values():
            for name, each in corrections.items():
                if self._layers[name].corrected_weight is None:
                    self._layers[name].correct(**vars(each))

    def drop(self) -> None:
        """Correct nothing from now on; the layers' buffers go."""
        self.calibration, self.point, self.in_force = None, None, {}
        for layer in self._layers.values():
            layer.uncorrect()

    def follow(self, setting: Setting, sleeps: Sequence[str]) -> None:
        """Put the correction of the calibrated point nearest to a setting in force.

        Warns where that is not the very point, or was made for other sleepers.

        Args:
            setting: of the network.
            sleeps: ``DrowsyNet.sleeps``.
        """
        assert self.calibration is not None, "there is a calibration to follow"
        point, distance = self.calibration.nearest(setting)
        for doubt in _doubts(self.calibration, setting, sleeps, point, distance):
            # Told of the line that turned the knob: above this are the network's own two.
            warnings.warn(doubt, stacklevel=4)
        if point != self.point:
            self.point = point
            if not self._resting:
                self.apply(self.calibration.points.get(point, {}))

    def apply(self, corrections: Mapping[str, Correction]) -> None:
        """Let the layers compute with these, and those that are not named with their own."""
        for name, layer in self._layers.items():
            if name in corrections:
                layer.correct(**vars(corrections[name]))
            else:
                layer.correct(None)
        self.in_force = corrections

    @contextmanager
    def rested(self) -> Iterator[None]:
        """Correct nothing for a while; what the knob then asks for comes into force again."""
        with self.kept() if self.calibration is None else nullcontext():
            before, self._resting = self._resting, True
            self.apply({})
            try:
                yield
            finally:
                self._resting = before
                if self.calibration is not None and not before:
                    self.apply(self.calibration.points.get(self.point or (), {}))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give back calibration and what layers compute with, if it was set by hand too."""
        layers, own = self._layers.values(), (self.calibration, self.point, self.in_force)
        tensors = [_copies(layer) for layer in layers]
        try:
            yield
        finally:
            self.calibration, self.point, self.in_force = own
            for layer, held in zip(layers, tensors, strict=True):
                layer.give_back(*held)

    def to(self, device: torch.device) -> None:
        """Follow the layers to a device; what they compute with moves with them."""
        if self.calibration is not None:
            self.calibration = self.calibration.to(device)
            self.in_force = self.calibration.points.get(self.point or (), {})


def _copies(layer: DrowsyConv2d) -> tuple[Tensor | None, Tensor | None]:
    weight, bias = layer.corrected_weight, layer.corrected_bias
    return None if weight is None else weight.clone(), None if bias is None else bias.clone()


def _doubts(
    calibration: Calibration,
    setting: Setting,
    sleeps: Sequence[str],
    point: Setting,
    distance: float,
) -> Iterator[str]:
    """Why the correction of a point may not be right for a setting and these sleepers."""
    if distance > 0:
        yield (
            f"calibration: {setting} was not calibrated; the correction of {point} is in force, "
            f"which differs in {distance:.1%} of the multiplications"
        )
    made = calibration.sleeps.get(point, sleeps)
    for name, j, was, now in zip(calibration.layers, point, made, sleeps, strict=True):
        # Layers that are awake at this point may be whatever they like.
        if j and was != now:
            yield (
                f"calibration: was made for other sleepers: layer {name} has {now!r}, and had "
                f"{was!r}"
            )
            return
