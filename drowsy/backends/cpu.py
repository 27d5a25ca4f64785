"""The torch backend on the CPU: pure torch operations that skip the work of sleepers.

A layer runs in one of four ways:

``sublattices``
    A lattice's awake positions are a union of regular grids: a checkerboard is two of them. Each
    grid is the same convolution with a larger stride.
``rows``
    The input windows of awake positions, wherever they lie, are gathered into a matrix that is
    multiplied by the weights.
``channels``
    Images in which the same channels are awake are convolved with the weights of these channels.
``mask``
    Everything is computed and sleepers are cleared, as in ``backends.eager``. This is the way of
    grain ``neuron``, and of every layer where skipping costs more than it saves.

Which way wins is recorded per layer shape: ``drowsy.crossover``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy import neuron
from drowsy.crossover import Layer, columns, cosets, fastest
from drowsy.neuron import ConvSpec
from drowsy.sleep import Lattice, SleepSpec, lattice_phases, lattice_tables, levels

# Images whose lattice phases are drawn in one go; a draw costs the same for 1 and for 256.
_PHASE_BLOCK = 256


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor,
    clock: Tensor,
    spec: ConvSpec,
    sleep: SleepSpec,
) -> Tensor:
    """A drowsy layer; arguments and result as for ``backends.eager.conv2d``."""
    j = int(threshold)
    if j == 0:
        return neuron.awake_conv2d(x, weight, bias, spec)
    layer = Layer.of(x, weight, spec)
    way = WAYS[fastest(layer, sleep, j, x.dtype)]
    return way(x, weight, bias, j, float(scale), clock, layer, sleep)


# --- ways --------------------------------------------------------------------------------------
# Each takes (x, weight, bias, j, scale, clock, layer, sleep) and returns [N, OC, OH, OW].


def _mask(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    j: int,
    scale: float,
    clock: Tensor,
    layer: Layer,
    sleep: SleepSpec,
) -> Tensor:
    y = neuron.awake_conv2d(x, weight, bias, layer.spec)
    return neuron.sleep(y, _levels(layer, sleep, clock), j, scale, sleep.grain)


def _rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    j: int,
    scale: float,
    clock: Tensor,
    layer: Layer,
    sleep: SleepSpec,
) -> Tensor:
    padded = _Padded.of(x, layer)
    out = _Output.of(x, layer)
    for part, awake in zip(columns(layer, sleep), _awake_rows(layer, sleep, j, clock), strict=True):
        # [OC, KH, KW, IC], as a window lies in the gathered matrix: a view where channels_last.
        matrix = weight[part].permute(0, 2, 3, 1).flatten(1).t()
        for rows in awake.split(layer.chunk):
            windows = padded.windows(rows, layer)
            y = windows @ matrix if bias is None else torch.addmm(bias[part], windows, matrix)
            out.write(rows, part, neuron.activate(y, layer.spec.activation), scale)
    return out.image()


def _sublattices(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    j: int,
    scale: float,
    clock: Tensor,
    layer: Layer,
    sleep: SleepSpec,
) -> Tensor:
    grids = cosets(sleep.k, j)
    period = max(m for m, _ in grids)
    # Each image is moved to the right by its phase: then all of them have the same pattern.
    shifts = [phase % period for phase in _phases(sleep, layer.output[0], clock)]
    padded = _Padded.of(x, layer, tuple(shifts), period - 1)
    out = _Output.of(x, layer)
    slope, _ = lattice_tables(sleep.k)
    images = torch.arange(layer.output[0])[:, None] * layer.positions
    for cell, part in enumerate(columns(layer, sleep)):
        part_weight, part_bias = weight[part], None if bias is None else bias[part]
        for m, residue in grids:
            for top in range(min(m, layer.output[2])):
                left = (residue - slope * top - cell) % m
                y = padded.grid(part_weight, part_bias, layer, m, top, left)
                places = _grid_places(layer.output, period, m, top, left)[shifts]
                rows = torch.where(places < 0, out.spare, places + images).flatten()
                out.write(rows, part, y.permute(0, 2, 3, 1).flatten(0, 2), scale)
    return out.image()


def _channels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    j: int,
    scale: float,
    clock: Tensor,
    layer: Layer,
    sleep: SleepSpec,
) -> Tensor:
    n, channels, height, width = layer.output
    awake = levels(sleep, layer.output, clock)[:, 0] >= j
    _, unit = sleep.grain.cell(channels, layer.positions)
    if channels % unit:
        awake, unit = awake.repeat_interleave(unit, dim=1)[:, :channels], 1
    alike: dict[bytes, list[int]] = {}
    for image in awake.any(dim=1).nonzero().flatten().tolist():
        alike.setdefault(awake[image].numpy().tobytes(), []).append(image)
    out = x.new_zeros((n, layer.positions, channels // unit, unit))
    for images in alike.values():
        cells = awake[images[0]].nonzero().flatten()
        kept = (cells[:, None] * unit + torch.arange(unit)).flatten()
        part_bias = None if bias is None else bias[kept]
        y = neuron.awake_conv2d(x[images], weight[kept], part_bias, layer.spec).mul_(scale)
        y = y.permute(0, 2, 3, 1).reshape(len(images), layer.positions, -1, unit)
        whole = out.new_zeros((len(images), *out.shape[1:])).index_copy_(2, cells, y)
        out.index_copy_(0, torch.tensor(images), whole)
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)


WAYS: dict[str, Callable[..., Tensor]] = {
    "mask": _mask,
    "rows": _rows,
    "sublattices": _sublattices,
    "channels": _channels,
}


# --- tensors as rows of channels ---------------------------------------------------------------


@dataclass(frozen=True)
class _Padded:
    """A padded batch as rows ``[N * H * W, IC]``: row ``(n * H + y) * W + x`` is one pixel.

    Rows past the last pixel are there to be read by windows that nobody needs.
    """

    rows: Tensor
    size: tuple[int, int, int, int]

    @classmethod
    def of(cls, x: Tensor, layer: Layer, shifts: tuple[int, ...] = (), extra: int = 0) -> _Padded:
        """Pad ``x``; image ``n`` moved right by ``shifts[n]`` output columns of ``extra`` at most.

        Without padding and shifts the rows are those of ``x``.
        """
        spec = layer.spec
        left, right, top, bottom = spec.padding
        if spec.padding_mode != "zeros":
            x = F.pad(x, spec.padding, mode=spec.padding_mode)
            left = right = top = bottom = 0
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        n, height, width, channels = x.shape
        if not (extra or left or right or top or bottom):
            return cls(x.reshape(-1, channels), (n, height, width, channels))
        across = spec.stride[1]
        size = (n, height + top + bottom, width + left + right + extra * across, channels)
        # The furthest grid starts ``extra`` rows and columns from the first pixel.
        spare = extra * (spec.stride[0] * size[2] + across)
        rows = x.new_zeros((n * size[1] * size[2] + spare, channels))
        images = rows[: n * size[1] * size[2]].view(size)
        if not extra:
            images[:, top : top + height, left : left + width] = x
        for image, shift in enumerate(shifts if extra else ()):
            start = left + shift * across
            images[image, top : top + height, start : start + width] = x[image]
        return cls(rows, size)

    def windows(self, outputs: Tensor, layer: Layer) -> Tensor:
        """The inputs ``[A, KH * KW * IC]`` of output positions ``n * P + p`` (int64 ``[A]``)."""
        origins, taps, run = _window_tables(self.size, layer)
        channels = self.rows.shape[1]
        # A row of a window is contiguous: one copy for KW pixels.
        runs = self.rows.as_strided((self.rows.shape[0] - run + 1, run * channels), (channels, 1))
        index = origins[outputs][:, None] + taps
        return runs.index_select(0, index.flatten()).view(len(outputs), -1)

    def grid(
        self, weight: Tensor, bias: Tensor | None, layer: Layer, m: int, top: int, left: int
    ) -> Tensor:
        """The layer's outputs at rows ``top + m * i`` and columns ``left + m * i``, all images."""
        n, height, width, channels = self.size
        vertical, across = layer.spec.stride
        start = self.rows.storage_offset() + (top * vertical * width + left * across) * channels
        pixels = self.rows.as_strided(
            (n, channels, height, width),
            (height * width * channels, 1, width * channels, channels),
            start,
        )
        spec = replace(
            layer.spec,
            stride=(m * vertical, m * across),
            padding=(0, 0, 0, 0),
            padding_mode="zeros",
        )
        return neuron.awake_conv2d(pixels, weight, bias, spec)


@dataclass(frozen=True)
class _Output:
    """The output as rows ``[N * P, OC]`` of zeros, and a spare row for what is no neuron."""

    rows: Tensor
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, x: Tensor, layer: Layer) -> _Output:
        n, channels, height, width = layer.output
        return cls(x.new_zeros((n * height * width + 1, channels)), layer.output)

    @property
    def spare(self) -> int:
        """Index of the spare row."""
        return self.rows.shape[0] - 1

    def write(self, rows: Tensor, columns: slice, y: Tensor, scale: float) -> None:
        """Write ``y`` ``[A, C]`` times ``scale`` to these rows (int64 ``[A]``) and columns."""
        if scale != 1:
            y.mul_(scale)
        into, y = self.rows[:, columns], y.contiguous()
        if _is_wide(into) and _is_wide(y):
            into, y = into.view(torch.complex128), y.view(torch.complex128)
        into.index_copy_(0, rows, y)

    def image(self) -> Tensor:
        """``[N, OC, OH, OW]``, channels_last."""
        n, channels, height, width = self.shape
        return self.rows[:-1].view(n, height, width, channels).permute(0, 3, 1, 2)


def _is_wide(rows: Tensor) -> bool:
    """Whether rows can be seen as elements of 16 bytes, which are copied twice as fast."""
    sizes = (rows.shape[1], rows.stride(0), rows.storage_offset())
    return all(size * rows.element_size() % 16 == 0 for size in sizes)


# --- which are awake ---------------------------------------------------------------------------


def _awake_rows(layer: Layer, sleep: SleepSpec, j: int, clock: Tensor) -> list[Tensor]:
    """For each channel cell, the awake positions ``n * P + p``, ascending, int64."""
    positions = layer.positions
    cell_p, _ = sleep.grain.cell(layer.output[1], positions)
    awake = _levels(layer, sleep, clock) >= j
    if cell_p > 1:
        awake = awake.repeat_interleave(cell_p, dim=1)[:, :positions]
    return [cell.flatten().nonzero().flatten() for cell in awake.unbind(2)]


def _levels(layer: Layer, sleep: SleepSpec, clock: Tensor) -> Tensor:
    """The layer's level map, as ``sleep.levels`` draws it."""
    n, channels, height, width = layer.output
    cell_p, _ = sleep.grain.cell(channels, layer.positions)
    if cell_p > 1 or sleep.grain.kind == "neuron" or not isinstance(sleep.source, Lattice):
        return levels(sleep, layer.output, clock)
    cells = len(columns(layer, sleep))
    return _lattice_levels(sleep.k, height, width, cells)[_phases(sleep, n, clock)]


def _phases(sleep: SleepSpec, n: int, clock: Tensor) -> list[int]:
    """Lattice phases of the batch's images."""
    seed, first = clock.tolist()
    blocks = range(first // _PHASE_BLOCK, (first + n - 1) // _PHASE_BLOCK + 1)
    drawn = [phase for block in blocks for phase in _phase_block(sleep, seed, block)]
    skipped = first % _PHASE_BLOCK
    return drawn[skipped : skipped + n]


@functools.lru_cache(maxsize=1024)
def _phase_block(sleep: SleepSpec, seed: int, block: int) -> list[int]:
    images = torch.arange(block * _PHASE_BLOCK, (block + 1) * _PHASE_BLOCK) & 0xFFFFFFFF
    return lattice_phases(sleep, images, torch.tensor(seed)).tolist()


# --- tables, made once for a layer -------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _window_tables(padded: tuple[int, int, int, int], layer: Layer) -> tuple[Tensor, Tensor, int]:
    """``(origins, taps, run)``: where windows start, their runs from there, pixels of a run.

    Windows are read in runs of ``run`` pixels that lie side by side.
    """
    n, height, width, _ = padded
    _, _, oh, ow = layer.output
    (vertical, across), (down, right) = layer.spec.stride, layer.spec.dilation
    y, x = torch.arange(oh)[:, None] * vertical, torch.arange(ow) * across
    image = torch.arange(n)[:, None, None] * (height * width)
    origins = (image + y * width + x).flatten()
    run = layer.kernel[1] if right == 1 else 1
    rows = torch.arange(layer.kernel[0])[:, None] * (down * width)
    taps = (rows + torch.arange(layer.kernel[1] // run) * right).flatten()
    return origins, taps, run


@functools.lru_cache(maxsize=256)
def _lattice_levels(k: int, height: int, width: int, cells: int) -> Tensor:
    """A lattice's level maps, one for each phase: uint8 ``[k, P, cells]``."""
    slope, order = lattice_tables(k)
    phase = torch.arange(k)[:, None, None, None]
    y, x = torch.arange(height)[:, None, None], torch.arange(width)[:, None]
    return order[(x + slope * y + torch.arange(cells) + phase) % k].flatten(1, 2)


@functools.lru_cache(maxsize=1024)
def _grid_places(
    output: tuple[int, int, int, int], period: int, m: int, top: int, left: int
) -> Tensor:
    """Positions of a grid's outputs ``[period, outputs]``, a row for each shift; -1 outside."""
    _, _, height, width = output
    y = torch.arange(top, top + -(-height // m) * m, m)[:, None]
    moved = torch.arange(left, left + -(-(width + period - 1) // m) * m, m)
    x = moved - torch.arange(period)[:, None, None]
    inside = (y < height) & (x >= 0) & (x < width)
    return torch.where(inside, y * width + x, -1).flatten(1)
