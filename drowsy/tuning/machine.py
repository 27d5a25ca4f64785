"""The networks of a knob, one a number format, and how a point runs on them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.correction.stencils import install_stencils
from drowsy.files.messages import legible, listed
from drowsy.images.scaling import Size
from drowsy.images.structures import mapped
from drowsy.knob.point import OperatingPoint
from drowsy.network.calibration import Calibration
from drowsy.network.net import DrowsyNet
from drowsy.tuning.dense import dense
from drowsy.tuning.gate import Gate, Streams
from drowsy.tuning.maps import sleep_map
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep

Format = str | None
"""Of numbers; None is the model's own."""

# Sizes of images whose outputs' shapes are remembered.
SIZES = 64


class Machine:
    """Runs any point of a knob: what it shows, in what format, who sleeps, corrected how.

    Args:
        model: of which networks are made, one a format; they share nothing with it.
        example: one image ``[1, C, H, W]`` at full resolution.
        recipe: how the networks sleep.
        formats: of the points; every network is made at once.
        stencils: tables of the fill ``stencil``, by layer; empty where nothing fills so.
        calibrations: of the points of each format.
        restores: whether outputs for fewer pixels are scaled up to what all would give.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        recipe: Sleep,
        formats: set[Format],
        stencils: Mapping[str, Tensor],
        calibrations: Mapping[Format, Calibration],
        restores: bool,
    ) -> None:
        self.restores = restores
        self.full: Size = (example.shape[2], example.shape[3])
        self.nets: dict[Format, DrowsyNet] = {}
        self._gates: dict[Format, Gate[OperatingPoint]] = {}
        self._dense: dict[Format, nn.Module | None] = {}
        for each in sorted(formats | {None}, key=str):
            # Compared with the model once, in its own format.
            net, fitted = made(model, example, recipe, each, verify=each is None)
            # Its flatten takes features of one size, to which those of any other are scaled.
            self.fixed = bool(fitted)
            if unknown := stencils.keys() - net.layers.keys():
                raise ValueError(
                    f"stencils: got one of {listed(unknown)}, allowed: of the network's layers"
                )
            tables = {name: table.to(example.device) for name, table in stencils.items()}
            install_stencils({name: net.layers[name] for name in tables}, tables)
            net.calibration = calibrations.get(each)
            self.nets[each] = net
            self._gates[each] = _gate(net)
            self._dense[each] = None if fitted else dense(net, example.to(_weight(net).dtype))
        self._channels = example.shape[1]
        self._awake = OperatingPoint(self.nets[None].schedule, 0.0)
        # The one that was asked for longest ago is the first.
        self._wholes: dict[Size, Any] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Machine:
        """Networks of its own, and who may run them now."""
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.nets = copy.deepcopy(self.nets, memo)
        twin._dense = copy.deepcopy(self._dense, memo)
        twin._gates = {each: _gate(net) for each, net in twin.nets.items()}
        twin._wholes, twin._lock = {}, threading.Lock()
        return twin

    def check(self, points: Sequence[OperatingPoint]) -> None:
        """Raise ValueError unless its networks can be at all of these points.

        They are then at the last one; nobody may run them meanwhile.
        """
        told: dict[Format, bool] = {}
        for n, point in enumerate(points):
            net = self.nets[point.number_format]
            layers = point.schedule.layers
            if layers.keys() != net.layers.keys():
                other = layers.keys() ^ net.layers.keys()
                raise ValueError(
                    f"point {n}: got other layers than the network has ({listed(other)}), allowed: "
                    "all of its own"
                )
            try:
                net.set(point)
            except ValueError as error:
                raise ValueError(f"point {n}: {error}") from error
            setting = tuple(net.control.settings)
            if not any(setting):
                continue
            if net.calibration is not None and net.corrected_for != setting:
                raise ValueError(f"point {n}: got a setting without its correction, allowed: one")
            # Streams that a point does not tell stay as the point before it left them.
            streams = any(layer.stream is not None for layer in layers.values())
            if told.setdefault(point.number_format, streams) != streams:
                raise ValueError(
                    f"point {n}: streams: told by some points, allowed: by all or none"
                )
        self._check_views(points)

    def _check_views(self, points: Sequence[OperatingPoint]) -> None:
        weight = _weight(self.nets[None])
        images = torch.zeros(
            1, self._channels, *self.full, dtype=weight.dtype, device=weight.device
        )
        for view in {point.view: None for point in points if point.view is not None}:
            try:
                self.run(replace(self._awake, view=view), images)
            except RuntimeError as error:
                raise ValueError(
                    f"view: got {view}, allowed: what the network takes ({legible(error)})"
                ) from error

    def run(self, point: OperatingPoint, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network puts out for images ``[N, C, H, W]`` at a point, in their dtype.

        Raises:
            ValueError: images of a size that the network does not take.
        """
        view = point.view
        weight, shown = self._shown(point, images)
        with torch.inference_mode(), _without_autocast(images.device.type):
            try:
                outputs = self._computed(point, shown, *args, **kwargs)
            except RuntimeError as error:
                self._check_size(images, error)
                raise
            if weight.dtype != images.dtype:
                outputs = mapped(lambda y: _as(y, weight.dtype, images), outputs)
            if self.restores and view is not None:
                whole = self._whole(images, *args, **kwargs)
                outputs = view.restored(outputs, (images.shape[-2], images.shape[-1]), whole)
        return outputs

    def _computed(self, point: OperatingPoint, shown: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network of a point makes of what it is given."""
        net, plain = self.nets[point.number_format], self._dense[point.number_format]
        if plain is None or not point.nobody_sleeps:
            with self._gates[point.number_format].at(point):
                return net(shown, *args, **kwargs)
        outputs = plain(shown, *args, **kwargs)
        net.control.advance(len(shown))  # maps that come later are those of their images
        return outputs

    def sleep_map(
        self, point: OperatingPoint, images: Tensor, layer: str | None, first: int
    ) -> Tensor:
        """Where work sleeps at a point, of seed 0: ``drowsy.tuning.maps.sleep_map``."""
        # Of a copy: whoever runs the network meanwhile sees neither its hooks nor its clock.
        net = copy.deepcopy(self.nets[point.number_format])
        net.set(point)
        net.reseed(0, first)
        return sleep_map(net, self._shown(point, images)[1], layer)

    def _shown(self, point: OperatingPoint, images: Tensor) -> tuple[Tensor, Tensor]:
        """A weight of the network of a point, and what the network is given of images."""
        size = (images.shape[-2], images.shape[-1])
        if self.fixed and size != self.full:
            raise ValueError(
                f"images: got {size[0]} x {size[1]} pixels, allowed: {self.full[0]} x "
                f"{self.full[1]}, the one size that the model's flatten takes"
            )
        weight = _weight(self.nets[point.number_format])
        shown = images if point.view is None else point.view(images)
        return weight, shown.to(weight.dtype).contiguous(memory_format=torch.channels_last)

    def _check_size(self, images: Tensor, error: RuntimeError) -> None:
        """Tell of the size where a network failed that takes the images it was tuned on."""
        size = (images.shape[-2], images.shape[-1])
        if size != self.full and not isinstance(error, torch.OutOfMemoryError):
            raise ValueError(
                f"images: got {size[0]} x {size[1]} pixels, which the model does not take "
                f"({legible(error)}), allowed: {self.full[0]} x {self.full[1]}, which it was tuned "
                "on"
            ) from error

    def _whole(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Outputs awake for such images as they are, on the meta device: shapes alone.

        Sizes of maps are rounded as the network does, so it tells them itself, by one image of
        every size; the last ``SIZES`` are remembered.
        """
        size: Size = (images.shape[-2], images.shape[-1])
        with self._lock:
            if (known := self._wholes.pop(size, None)) is not None:
                self._wholes[size] = known
                return known
        net = self.nets[None]
        weight = _weight(net)
        # Further arguments may have an entry for each image.
        few = images if args or kwargs else images[:1]
        with self._gates[None].at(self._awake):
            clock = net.control.clock.clone()
            outputs = net(few.to(weight.dtype), *args, **kwargs)
            net.control.clock.copy_(clock)
        whole = mapped(lambda y: y.to("meta"), outputs)
        with self._lock:
            self._wholes[size] = whole
            if len(self._wholes) > SIZES:
                del self._wholes[next(iter(self._wholes))]
        return whole

    def reseed(self, seed: int, image: int = 0) -> None:
        """Draw the next batch's maps for images ``image, image + 1, ...`` of this seed."""
        for net in self.nets.values():
            net.reseed(seed, image)


def _weight(net: DrowsyNet) -> Tensor:
    return next(iter(net.layers.values())).weight


def _gate(net: DrowsyNet) -> Gate[OperatingPoint]:
    device = next(net.parameters()).device
    return Gate(net.set, Streams(device) if device.type == "cuda" else None)


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """A point has a format, which is none of those that torch would choose for its operations."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def _as(y: Tensor, dtype: torch.dtype, images: Tensor) -> Tensor:
    return y.to(images.dtype) if y.dtype == dtype else y
