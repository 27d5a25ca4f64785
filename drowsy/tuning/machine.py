"""The networks of a knob, one a number format, and how a point runs on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from drowsy.correction.stencils import install_stencils
from drowsy.images.scaling import Size
from drowsy.images.structures import mapped
from drowsy.knob.point import OperatingPoint
from drowsy.network.calibration import Calibration
from drowsy.network.net import DrowsyNet
from drowsy.tuning.dense import dense
from drowsy.tuning.gate import Gate
from drowsy.tuning.maps import sleep_map
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep

Format = str | None
"""Of numbers; None is the model's own."""


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
        self.nets: dict[Format, DrowsyNet] = {}
        self._gates: dict[Format, Gate[OperatingPoint]] = {}
        self._dense: dict[Format, nn.Module | None] = {}
        for each in sorted(formats | {None}, key=str):
            # Compared with the model once, in its own format.
            net, fitted = made(model, example, recipe, each, verify=each is None)
            if stencils:
                tables = {n: t.to(example.device) for n, t in stencils.items()}
                install_stencils({n: net.layers[n] for n in tables}, tables)
            net.calibration = calibrations.get(each)
            self.nets[each] = net
            self._gates[each] = Gate(net.set)
            self._dense[each] = None if fitted else dense(net, example.to(_weight(net).dtype))
        self._awake = OperatingPoint(self.nets[None].schedule, 0.0)
        self._wholes: dict[Size, Any] = {}

    def run(self, point: OperatingPoint, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network puts out for images ``[N, C, H, W]`` at a point, in their dtype."""
        view = point.view
        weight, shown = self._shown(point, images)
        with torch.inference_mode():
            outputs = self._computed(point, shown, *args, **kwargs)
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

    def sleep_map(self, point: OperatingPoint, images: Tensor) -> Tensor:
        """Where work sleeps at a point, of seed 0: ``drowsy.tuning.maps.sleep_map``."""
        # Of a copy: whoever runs the network meanwhile sees neither its hooks nor its clock.
        net = copy.deepcopy(self.nets[point.number_format])
        net.set(point)
        net.reseed(0)
        return sleep_map(net, self._shown(point, images)[1])

    def _shown(self, point: OperatingPoint, images: Tensor) -> tuple[Tensor, Tensor]:
        """A weight of the network of a point, and what the network is given of images."""
        weight = _weight(self.nets[point.number_format])
        shown = images if point.view is None else point.view(images)
        return weight, shown.to(weight.dtype).contiguous(memory_format=torch.channels_last)

    def _whole(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Outputs awake for such images as they are, on the meta device: shapes alone.

        Sizes of maps are rounded as the network does, so it tells them itself, once for each size
        of images.
        """
        size: Size = (images.shape[-2], images.shape[-1])
        if size not in self._wholes:
            net = self.nets[None]
            weight = _weight(net)
            with self._gates[None].at(self._awake):
                clock = net.control.clock.clone()
                outputs = net(images.to(weight.dtype), *args, **kwargs)
                net.control.clock.copy_(clock)
            self._wholes[size] = mapped(lambda y: y.to("meta"), outputs)
        return self._wholes[size]

    def reseed(self, seed: int, image: int = 0) -> None:
        """Draw the next batch's maps for images ``image, image + 1, ...`` of this seed."""
        for net in self.nets.values():
            net.reseed(seed, image)


def _weight(net: DrowsyNet) -> Tensor:
    return next(iter(net.layers.values())).weight


def _as(y: Tensor, dtype: torch.dtype, images: Tensor) -> Tensor:
    return y.to(images.dtype) if y.dtype == dtype else y
