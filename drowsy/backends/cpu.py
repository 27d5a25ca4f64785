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
from drowsy.crossover import Layer, columns, fastest, grids
from drowsy.neuron import ConvSpec
from drowsy.sleep import (
    MASK32,
    NEIGHBOUR_FILLS,
    SleepSpec,
    lattice_levels,
    lattice_phases,
    lattice_tables,
    levels,
    simplest,
)
from drowsy.sleep.memory import remembered

# Images whose lattice phases are drawn in one go; a draw costs the same for 1 and for 256.
_PHASE_BLOCK = 256
# A lattice's maps of all phases are kept where they have at most so many levels.
_TABLE_LEVELS = 1 << 18


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor,
    clock: Tensor,
    spec: ConvSpec,
    sleep: SleepSpec,
    fill: str,
    table: Tensor | None = None,
) -> Tensor:
    """A drowsy layer; arguments and result as for ``backends.eager.conv2d``."""
    j = int(threshold)
    if j == 0:
        return neuron.awake_conv2d(x, weight, bias, spec)
    layer, sleep = Layer.of(x, weight, spec), simplest(sleep, j)
    from_neighbours = fill in NEIGHBOUR_FILLS
    call = Call(x, weight, bias, j, 1.0 if from_neighbours else float(scale), clock, layer, sleep)
    y = run(call, fastest(layer, sleep, j, x.dtype))
    return _from_neighbours(y, call, fill, table) if from_neighbours else y


@dataclass(frozen=True)
class Call:
    """One inference of a layer at rate ``j/k``, ``j > 0``; the rest as for ``conv2d``."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    j: int
    scale: float
    clock: Tensor
    layer: Layer
    sleep: SleepSpec

    def parameters(self, kept: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of some output channels."""
        return self.weight[kept], None if self.bias is None else self.bias[kept]


def run(call: Call, way: str) -> Tensor:
    """Run a layer in one of ``crossover.candidates``' ways: ``[N, OC, OH, OW]``."""
    if way == "mask":
        return _mask(call)
    n, channels, height, width = call.layer.output
    # One row more, for outputs of no neuron.
    out = call.x.new_zeros((n * height * width + 1, channels))
    _SKIPPING[way](call, out)
    return out[:-1].view(n, height, width, channels).permute(0, 3, 1, 2)


# --- ways --------------------------------------------------------------------------------------
# Those that skip write the awake neurons of a call to rows [N * P, OC] of zeros, one to a position,
# and may write anything to one more row.


def _mask(call: Call) -> Tensor:
    y = neuron.awake_conv2d(call.x, call.weight, call.bias, call.layer.spec)
    neuron.clear_(y, _levels(call) < call.j, call.sleep.grain)
    return y if call.scale == 1 else y.mul_(call.scale)


def _rows(call: Call, out: Tensor) -> None:
    layer = call.layer
    pixels = _padded(call, (0, 0))
    origins, taps, run = _window_tables(layer, pixels.shape[1], pixels.shape[2])
    runs = _runs(pixels, run)
    for part, awake in zip(columns(layer, call.sleep), _awake_rows(call), strict=True):
        weight, bias = call.parameters(part)
        # [OC, KH, KW, IC], as a window lies in the gathered matrix: a view where channels_last.
        matrix = weight.permute(0, 2, 3, 1).flatten(1)
        for rows in awake.split(layer.chunk):
            index = (origins[rows][:, None] + taps).flatten()
            windows = runs.index_select(0, index).view(len(rows), layer.window)
            y = neuron.activate(_linear(windows, matrix, bias), layer.spec.activation)
            _copy_rows(out[:, part], 0, rows, y, call.scale)


def _sublattices(call: Call, out: Tensor) -> None:
    layer, sleep = call.layer, call.sleep
    spacings = grids(sleep.k, call.j)
    phases = _phases(call)
    pixels = _padded(call, _grid_reach(layer, max(spacings)))
    n, height, width, channels = pixels.shape
    images = torch.arange(n)[:, None, None]
    for spacing in spacings:
        spec = replace(
            layer.spec,
            stride=(spacing * layer.spec.stride[0], spacing * layer.spec.stride[1]),
            padding=(0, 0, 0, 0),
            padding_mode="zeros",
        )
        _, run = _crop_size(layer, spacing)
        for cell, part in enumerate(columns(layer, sleep)):
            starts, places, exact = _grid_tables(layer, sleep.k, call.j, spacing, cell, width)
            # Every grid of every image is one image of a batch, so that the library lays the
            # weights out only once.
            index = starts[phases] + images * (height * width)
            crops = _runs(pixels, run).index_select(0, index.flatten())
            crops = crops.view(-1, starts.shape[2], run, channels)
            y = neuron.awake_conv2d(crops.permute(0, 3, 1, 2), *call.parameters(part), spec)
            rows = places[phases] + images * layer.positions
            if not exact:
                rows = torch.where(places[phases] < 0, len(out) - 1, rows)
            y = y.permute(0, 2, 3, 1).flatten(0, 2)
            _copy_rows(out[:, part], 0, rows.flatten(), y, call.scale)


def _channels(call: Call, out: Tensor) -> None:
    layer = call.layer
    n, channels, _, _ = layer.output
    awake = _levels(call)[:, 0] >= call.j
    _, unit = call.sleep.grain.cell(channels, layer.positions)
    if channels % unit:
        awake, unit = awake.repeat_interleave(unit, dim=1)[:, :channels], 1
    alike: dict[bytes, list[int]] = {}
    for image in awake.any(dim=1).nonzero().flatten().tolist():
        alike.setdefault(awake[image].numpy().tobytes(), []).append(image)
    cells_of = out[:-1].view(n, layer.positions, channels // unit, unit)
    for images in alike.values():
        cells = awake[images[0]].nonzero().flatten()
        kept = (cells[:, None] * unit + torch.arange(unit)).flatten()
        y = neuron.awake_conv2d(call.x[images], *call.parameters(kept), layer.spec)
        y = y.permute(0, 2, 3, 1).reshape(len(images), layer.positions, len(cells), unit)
        for image, values in zip(images, y, strict=True):
            _copy_rows(cells_of[image], 1, cells, values, call.scale)


_SKIPPING: dict[str, Callable[[Call, Tensor], None]] = {
    "rows": _rows,
    "sublattices": _sublattices,
    "channels": _channels,
}


def _from_neighbours(y: Tensor, call: Call, fill: str, table: Tensor | None) -> Tensor:
    """``neuron.sleep`` with a fill that reads awake neighbours; ``y`` may be overwritten.

    Where a lattice sleeps in all channels at once, who reads whom, and with which weight, is known
    beforehand.
    """
    layer, sleep = call.layer, call.sleep
    n, channels, height, width = layer.output
    periodic = sleep.source.is_lattice and len(columns(layer, sleep)) == 1 and n > 0
    known = periodic and layer.channels_last and y.dtype in (torch.float32, torch.float64)
    if fill == "stencil" or not known:
        return neuron.sleep(y, _levels(call), call.j, 1.0, sleep.grain, fill, table)
    tables = [
        _fill_tables(sleep.k, call.j, phase, height, width, fill)
        for phase in _phases(call).tolist()
    ]
    sleepers, readings, weights, starts, first = [], [], [], [], 0
    for image, (positions, read, weight, start) in enumerate(tables):
        sleepers.append(positions + image * layer.positions)
        readings.append(read + image * layer.positions)
        weights.append(weight)
        starts.append(start + first)
        first += len(read)
    rows = y.permute(0, 2, 3, 1).view(-1, channels)
    filled = F.embedding_bag(
        torch.cat(readings),
        rows,
        torch.cat(starts),
        mode="sum",
        per_sample_weights=torch.cat(weights).to(y.dtype),
    )
    _copy_rows(rows, 0, torch.cat(sleepers), filled, 1.0)
    return y


# --- tensors as rows of channels ---------------------------------------------------------------


def _padded(call: Call, least: tuple[int, int]) -> Tensor:
    """The padded input ``[N, H, W, IC]``, with zeros beyond up to at least this ``(H, W)``."""
    x, layer = call.x, call.layer
    left, right, top, bottom = layer.spec.padding
    if layer.spec.padding_mode != "zeros":
        x = F.pad(x, layer.spec.padding, mode=layer.spec.padding_mode)
        left = right = top = bottom = 0
    x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    bottom = max(bottom, least[0] - top - x.shape[1])
    right = max(right, least[1] - left - x.shape[2])
    if left or right or top or bottom:
        x = F.pad(x, (0, 0, left, right, top, bottom))
    return x


def _runs(pixels: Tensor, run: int) -> Tensor:
    """Every ``run`` pixels that follow each other in ``[N, H, W, IC]``, as overlapping rows."""
    channels = pixels.shape[3]
    first = pixels.numel() // channels - run + 1
    return pixels.as_strided((first, run * channels), (channels, 1), pixels.storage_offset())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by oneDNN like the dense convolution.

    ``F.linear`` itself takes MKL for float32, which reaches two thirds to nine tenths of oneDNN's
    rate on the shapes of convolutions (AMD Zen 4).
    """
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _copy_rows(into: Tensor, dim: int, index: Tensor, y: Tensor, scale: float) -> None:
    """``into[index] = y * scale`` along ``dim``; ``y`` is overwritten."""
    if scale != 1:
        y.mul_(scale)
    y = y.contiguous()
    if _is_wide(into) and _is_wide(y):
        into, y = into.view(torch.complex128), y.view(torch.complex128)
    into.index_copy_(dim, index, y)


def _is_wide(rows: Tensor) -> bool:
    """Whether rows can be seen as elements of 16 bytes, which are copied twice as fast."""
    sizes = (rows.shape[-1], *rows.stride()[:-1], rows.storage_offset())
    return all(size * rows.element_size() % 16 == 0 for size in sizes)


# --- which are awake ---------------------------------------------------------------------------


def _awake_rows(call: Call) -> list[Tensor]:
    """For each channel cell, the awake positions ``n * P + p``, ascending, int64."""
    positions = call.layer.positions
    cell_p, _ = call.sleep.grain.cell(call.layer.output[1], positions)
    awake = _levels(call) >= call.j
    if cell_p > 1:
        awake = awake.repeat_interleave(cell_p, dim=1)[:, :positions]
    return [cell.flatten().nonzero().flatten() for cell in awake.unbind(2)]


def _levels(call: Call) -> Tensor:
    """The level map ``[N, PC, CC]`` that ``sleep.levels`` draws."""
    layer, sleep = call.layer, call.sleep
    n, channels, _, width = layer.output
    cell_p, cell_c = sleep.grain.cell(channels, layer.positions)
    cells = -(-layer.positions // cell_p) * -(-channels // cell_c)
    small = sleep.k * cells <= _TABLE_LEVELS
    if not (small and n > 0 and sleep.source.is_lattice):
        return levels(sleep, layer.output, call.clock)
    row = width if cell_p == 1 else None
    map_size = (-(-layer.positions // cell_p), len(columns(layer, sleep)))
    return _lattice_levels(sleep.k, map_size, row)[_phases(call)]


def _phases(call: Call) -> Tensor:
    """Lattice phases of the batch's images, int64 ``[N]``, ``N > 0``."""
    seed, first = call.clock.tolist()
    block, skipped = divmod(first & MASK32, _PHASE_BLOCK)
    drawn = _phase_block(call.sleep, seed, block)
    while len(drawn) < skipped + call.layer.output[0]:
        block += 1
        drawn = torch.cat([drawn, _phase_block(call.sleep, seed, block)])
    return drawn[skipped : skipped + call.layer.output[0]]


@functools.lru_cache(maxsize=1024)
def _phase_block(sleep: SleepSpec, seed: int, block: int) -> Tensor:
    images = torch.arange(block * _PHASE_BLOCK, (block + 1) * _PHASE_BLOCK)
    return lattice_phases(sleep.k, sleep.stream, sleep.phase, images & MASK32, torch.tensor(seed))


# --- tables, made once for a layer -------------------------------------------------------------


@remembered(64 << 20)
def _window_tables(layer: Layer, height: int, width: int) -> tuple[Tensor, Tensor, int]:
    """Where windows lie among the pixels of a padded ``[N, height, width]``.

    Returns:
        int64 ``[N * P]`` first pixels of the windows; int64 ``[runs]`` first pixels of a window's
        runs, from there; pixels of a run.
    """
    n, _, oh, ow = layer.output
    (vertical, across), (down, right) = layer.spec.stride, layer.spec.dilation
    y, x = torch.arange(oh)[:, None] * vertical, torch.arange(ow) * across
    image = torch.arange(n)[:, None, None] * (height * width)
    run = layer.kernel[1] if right == 1 else 1
    taps_y = torch.arange(layer.kernel[0])[:, None] * down
    taps_x = torch.arange(layer.kernel[1] // run) * right
    return (image + y * width + x).flatten(), (taps_y * width + taps_x).flatten(), run


@remembered(64 << 20)
def _lattice_levels(k: int, cells: tuple[int, int], row: int | None) -> Tensor:
    """A lattice's level maps, one for each phase: uint8 ``[k, PC, CC]``."""
    return lattice_levels(k, cells, row, torch.arange(k))


@remembered(128 << 20)
def _fill_tables(
    k: int, j: int, phase: int, height: int, width: int, fill: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the sleepers of one image of a lattice read; the rule is ``drowsy.neuron``'s.

    Returns:
        int64 ``[S]`` positions of the sleepers that have an awake neighbour; int64 ``[R]`` what
        they read, one sleeper after the other; float64 ``[R]`` its weights; int64 ``[S]`` where
        each sleeper's reading starts.
    """
    awake = (_lattice_levels(k, (height * width, 1), width)[phase] >= j).view(height, width)
    reach = range(-2, 3)
    window = sorted((dy * dy + dx * dx, dy, dx) for dy in reach for dx in reach)[1:]
    squared, down, right = torch.tensor(window).unbind(1)
    padded = F.pad(awake, (2, 2, 2, 2))
    seen = torch.stack(
        [padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width] for _, dy, dx in window], dim=-1
    )
    seen = (seen & ~awake[..., None]).flatten(0, 1)
    if fill == "nearest":
        read = seen & (seen.cumsum(1) == 1)
    else:
        near = seen & (squared <= 2)
        read = torch.where(near.any(dim=1, keepdim=True), near, seen)
    sleeper, place = read.nonzero(as_tuple=True)
    weight = 1 / squared.double()[place]
    weight /= torch.zeros(len(read), dtype=torch.float64).index_add_(0, sleeper, weight)[sleeper]
    counts = read.sum(dim=1)
    positions = counts.nonzero().flatten()
    starts = counts[positions].cumsum(0) - counts[positions]
    return positions, sleeper + down[place] * width + right[place], weight, starts


def _grid_reach(layer: Layer, spacing: int) -> tuple[int, int]:
    """Rows and columns of input that grids of this spacing read, whatever their start."""
    crop = _crop_size(layer, spacing)
    vertical, across = layer.spec.stride
    return (spacing - 1) * vertical + crop[0], (spacing - 1) * across + crop[1]


def _crop_size(layer: Layer, spacing: int) -> tuple[int, int]:
    """Rows and columns of input that one grid of this spacing reads."""
    height, width = (
        (-(-outputs // spacing) - 1) * spacing * stride + dilation * (kernel - 1) + 1
        for outputs, stride, dilation, kernel in zip(
            layer.output[2:], layer.spec.stride, layer.spec.dilation, layer.kernel, strict=True
        )
    )
    return height, width


@remembered(64 << 20)
def _grid_tables(
    layer: Layer, k: int, j: int, spacing: int, cell: int, pitch: int
) -> tuple[Tensor, Tensor, bool]:
    """Where the grids of this spacing lie in one image of each phase ``0 .. k-1``.

    Returns:
        int64 ``[k, grids, h]`` where each row of a grid's input starts among the image's pixels,
        ``pitch`` to a row; int64 ``[k, grids, outputs]`` positions of its outputs, -1 outside of
        the map; whether there are no such.
    """
    _, _, height, width = layer.output
    _, shifts = lattice_tables(k)
    shift = shifts[(torch.arange(k) + cell) % k].long()
    top, left = ((grids(k, j)[spacing] - shift[:, None]) % spacing).unbind(2)
    vertical, across = layer.spec.stride
    rows = top[..., None] * vertical + torch.arange(_crop_size(layer, spacing)[0])
    starts = rows * pitch + left[..., None] * across
    y = top[..., None, None] + torch.arange(0, height, spacing)[:, None]
    x = left[..., None, None] + torch.arange(0, width, spacing)
    places = torch.where((y < height) & (x < width), y * width + x, -1).flatten(2)
    return starts, places, bool((places >= 0).all())
