"""The ways of running a sleeping layer, by torch operations alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy import neuron
from drowsy.backends.cpu import neighbours, tables
from drowsy.backends.cpu.crossover import Layer, columns, fastest, grids
from drowsy.backends.cpu.rows import linear
from drowsy.neuron import ConvSpec
from drowsy.neuron.rows import copy_rows
from drowsy.neuron.stencil import Sleepers, many, predict_, sleepers_of
from drowsy.sleep import NEIGHBOUR_FILLS, LayerMap, Phased, SleepSpec, asleep, levels, simplest

# The maps of all phases are kept where they have at most so many levels.
_TABLE_LEVELS = 1 << 23


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor | int,
    scale: Tensor | float,
    clock: Tensor,
    spec: ConvSpec,
    sleep: SleepSpec,
    fill: str,
    table: Tensor | None = None,
    slopes: Tensor | None = None,
    detail: Tensor | None = None,
) -> Tensor:
    """A drowsy layer; arguments and result as for ``backends.eager.conv2d``."""
    j = int(threshold)
    if j == 0:
        return neuron.awake_conv2d(x, weight, bias, spec, slopes)
    x, spec = neuron.padded(x, spec)
    layer, sleep = Layer.of(x, weight, spec), simplest(sleep, j)
    from_neighbours = fill in NEIGHBOUR_FILLS
    factor = 1.0 if from_neighbours else float(scale)
    # Another thread may advance the clock meanwhile: map and fill are of the same images.
    call = Call(x, weight, bias, j, factor, clock.clone(), layer, sleep, slopes, detail)
    way = fastest(layer, sleep, j, x.dtype)
    if not from_neighbours:
        return run(call, way)
    return _from_neighbours(run(call, way, False), call, fill, table)


@dataclass(frozen=True)
class Call:
    """One inference of a layer at rate ``j/k``, ``j > 0``; the rest as for ``conv2d``.

    ``x`` is as ``neuron.padded`` leaves it: what padding is left is of zeros.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    j: int
    scale: float
    clock: Tensor
    layer: Layer
    sleep: SleepSpec
    slopes: Tensor | None = None
    detail: Tensor | None = None

    def parameters(self, kept: slice | Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weight, bias and slopes of some output channels."""
        bias, slopes = (None if each is None else each[kept] for each in (self.bias, self.slopes))
        return self.weight[kept], bias, slopes

    def awake(self, x: Tensor, kept: slice | Tensor, spec: ConvSpec) -> Tensor:
        """Some output channels of what is awake of an input."""
        weight, bias, slopes = self.parameters(kept)
        return neuron.awake_conv2d(x, weight, bias, spec, slopes)

    def pixels(self, least: tuple[int, int] = (0, 0)) -> Tensor:
        """The padded input ``[N, H, W, IC]``, with zeros beyond up to at least this ``(H, W)``."""
        left, right, top, bottom = self.layer.spec.padding
        x = self.x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        bottom = max(bottom, least[0] - top - x.shape[1])
        right = max(right, least[1] - left - x.shape[2])
        if left or right or top or bottom:
            x = F.pad(x, (0, 0, left, right, top, bottom))
        return x

    @property
    def map(self) -> LayerMap:
        """What the layer's maps have in common."""
        return _map(self.layer, self.sleep)[0]

    @property
    def phased(self) -> Phased | None:
        """The source, where the maps of all its phases are kept."""
        return _map(self.layer, self.sleep)[1]

    def levels(self) -> Tensor:
        """The level map ``[N, PC, CC]`` that ``sleep.levels`` draws."""
        if self.phased is None:
            return levels(self.sleep, self.layer.output, self.clock, self.detail)
        return tables.levels_by_phase(self.phased, self.map)[self.phases]

    @functools.cached_property
    def asleep(self) -> Tensor:
        """Which cells sleep: boolean ``[N, PC, CC]``."""
        if self.phased is None:
            return asleep(self.sleep, self.layer.output, self.j, self.clock, self.detail)
        return self.levels() < self.j

    @functools.cached_property
    def phases(self) -> Tensor:
        """Lattice phases of the batch's images, int64 ``[N]``, ``N > 0``."""
        return tables.phases(self.sleep, self.layer.output[0], self.clock)

    def awake_rows(self) -> list[Tensor]:
        """For each channel cell, the awake positions ``n * P + p``, ascending, int64."""
        positions = self.layer.positions
        cell_p, _ = self.sleep.grain.cell(self.layer.output[1], positions)
        awake = ~self.asleep
        if cell_p > 1:
            awake = awake.repeat_interleave(cell_p, dim=1)[:, :positions]
        return [cell.flatten().nonzero().flatten() for cell in awake.unbind(2)]


@functools.lru_cache(maxsize=4096)
def _map(layer: Layer, sleep: SleepSpec) -> tuple[LayerMap, Phased | None]:
    map, source = replace(sleep.layer_map(layer.output), stream=0, phase=0), sleep.source
    small = sleep.k * map.cells[0] * map.cells[1] <= _TABLE_LEVELS
    kept = small and layer.output[0] > 0 and isinstance(source, Phased)
    return map, source if kept else None  # type: ignore[return-value]


def run(call: Call, way: str, clear: bool = True) -> Tensor:
    """Run a layer in one of ``crossover.candidates``' ways: ``[N, OC, OH, OW]``.

    Args:
        call: the layer and its tensors.
        way: which.
        clear: whether sleepers are to hold zeros; they may hold anything otherwise.
    """
    if way == "mask":
        return _mask(call, clear)
    n, channels, height, width = call.layer.output
    out = call.x.new_zeros((n * height * width, channels))
    _SKIPPING[way](call, out)
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)


# --- ways --------------------------------------------------------------------------------------
# Those that skip write the awake neurons of a call to rows [N * P, OC] of zeros, one to a position.


def _mask(call: Call, clear: bool) -> Tensor:
    y = call.awake(call.x, slice(None), call.layer.spec)
    if clear:
        _clear(y, call)
    return y if call.scale == 1 else y.mul_(call.scale)


def _clear(y: Tensor, call: Call) -> None:
    map, phased = _map(call.layer, call.sleep)
    if phased is None or map.cells[1] > 1 or map.size is None:
        neuron.clear_(y, call.asleep, call.sleep.grain)
        return
    # All channels of a position sleep at once: what each phase keeps is a small table.
    kept = y.view(neuron.SAME_SIZE[y.element_size()])
    keep = tables.keep_by_phase(phased, map, call.j, kept.dtype)[call.phases]
    kept.bitwise_and_(keep.view(-1, 1, *map.size))


def _rows(call: Call, out: Tensor) -> None:
    layer = call.layer
    pixels = call.pixels()
    windows = tables.windows(layer, pixels.shape[1], pixels.shape[2])
    for part, awake in zip(columns(layer, call.sleep), call.awake_rows(), strict=True):
        weight, bias, slopes = call.parameters(part)
        # [OC, KH, KW, IC], as a window lies in the gathered matrix: a view where channels_last.
        matrix = weight.permute(0, 2, 3, 1).flatten(1)
        for rows in awake.split(layer.chunk) if len(awake) else ():
            y = linear(windows.gather(pixels, rows), matrix, bias)
            y = neuron.activate(y, layer.spec.activation, slopes)
            copy_rows(out[:, part], 0, rows, y, call.scale)


def _sublattices(call: Call, out: Tensor) -> None:
    layer, sleep = call.layer, call.sleep
    spacings = grids(sleep.k, call.j)
    phases = call.phases
    pixels = call.pixels(tables.grid_reach(layer, max(spacings)))
    for spacing in spacings:
        spec = replace(
            layer.spec,
            stride=(spacing * layer.spec.stride[0], spacing * layer.spec.stride[1]),
            padding=(0, 0, 0, 0),
            padding_mode="zeros",
        )
        grid = tables.grid(layer, spacing, pixels.shape[2])
        for cell, part in enumerate(columns(layer, sleep)):
            # Channel cells are a phase apart.
            numbers = tables.grid_numbers(sleep.k, call.j, spacing)[(phases + cell) % sleep.k]
            crops = grid.gather(pixels, numbers)
            y = call.awake(crops, part, spec)
            grid.scatter(y, out[:, part], numbers, call.scale)


def _channels(call: Call, out: Tensor) -> None:
    layer = call.layer
    n, channels, _, _ = layer.output
    awake = ~call.asleep[:, 0]
    _, unit = call.sleep.grain.cell(channels, layer.positions)
    if channels % unit:
        awake, unit = awake.repeat_interleave(unit, dim=1)[:, :channels], 1
    alike: dict[bytes, list[int]] = {}
    for image in awake.any(dim=1).nonzero().flatten().tolist():
        alike.setdefault(awake[image].numpy().tobytes(), []).append(image)
    cells_of = out.view(n, layer.positions, channels // unit, unit)
    for images in alike.values():
        cells = awake[images[0]].nonzero().flatten()
        kept = (cells[:, None] * unit + torch.arange(unit)).flatten()
        y = call.awake(call.x[images], kept, layer.spec)
        y = y.permute(0, 2, 3, 1).reshape(len(images), layer.positions, len(cells), unit)
        for image, values in zip(images, y, strict=True):
            copy_rows(cells_of[image], 1, cells, values, call.scale)


_SKIPPING: dict[str, Callable[[Call, Tensor], None]] = {
    "rows": _rows,
    "sublattices": _sublattices,
    "channels": _channels,
}


def _from_neighbours(y: Tensor, call: Call, fill: str, table: Tensor | None) -> Tensor:
    """``neuron.sleep`` with a fill that reads awake neighbours; ``y`` may be overwritten."""
    layer, sleep, size = call.layer, call.sleep, call.map.size
    n, channels, _, _ = layer.output
    if size is None or call.map.cells[1] > 1 or not layer.channels_last or y.numel() == 0:
        return neuron.sleep(y, call.levels(), call.j, 1.0, sleep.grain, fill, table)
    if fill == "stencil":
        assert table is not None
        predict_(y, _sleepers(call), 1, table)
        return y
    if call.phased is None:
        found = neighbours.readings_of(call.asleep.view(n, *size), fill, y.dtype)
    else:
        images = [
            neighbours.readings(call.phased, call.map, call.j, phase, fill, y.dtype)
            for phase in call.phases.tolist()
        ]
        found = neighbours.Readings.of_batch(images, layer.positions)
    found.fill(y.permute(0, 2, 3, 1).view(-1, channels))
    return y


def _sleepers(call: Call) -> Sleepers:
    """Who sleeps, where all channels do so at once."""
    n, channels, height, width = call.layer.output
    if call.phased is None:
        return sleepers_of(call.asleep.view(n, 1, height, width), many(channels))
    least = many(channels, n)
    images = [
        neighbours.sleepers(call.phased, call.map, call.j, phase, least)
        for phase in call.phases.tolist()
    ]
    return Sleepers.of_batch(images, call.layer.positions)
