"""What is known of a layer before its images come: who is awake, and where it lies in memory.

Everything here is made once for a layer (and a rate, where it depends on one), and kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drowsy.backends.cpu.crossover import grids
from drowsy.backends.cpu.rows import runs
from drowsy.neuron import ConvSize
from drowsy.neuron.rows import copy_rows
from drowsy.sleep import MASK32, LayerMap, Phased, SleepSpec, lattice_phases, lattice_tables
from drowsy.sleep.memory import remembered

# Images whose lattice phases are drawn in one go; a draw costs the same for 1 and for 256.
_PHASE_BLOCK = 256


# --- maps of a source that has one for each phase ---------------------------------------------


@remembered
def levels_by_phase(source: Phased, layer: LayerMap) -> Tensor:
    """A layer's level maps, one for each phase: uint8 ``[k, PC, CC]``.

    Args:
        source: of the maps.
        layer: its stream and phase do not count.
    """
    # One at a time: a map's indices take many times its own bytes.
    return torch.cat([source.at_phases(layer, phase[None]) for phase in torch.arange(layer.k)])


@remembered
def keep_by_phase(source: Phased, layer: LayerMap, j: int, dtype: torch.dtype) -> Tensor:
    """Integers ``[k, PC, CC]``, all ones where a cell is awake at rate ``j/k``, else 0."""
    return (levels_by_phase(source, layer) >= j).to(dtype).neg()


def phases(sleep: SleepSpec, images: int, clock: Tensor) -> Tensor:
    """Phases of so many images from ``clock`` on, int64 ``[images]``; at least one."""
    seed, first = clock.tolist()
    block, skipped = divmod(first & MASK32, _PHASE_BLOCK)
    drawn = _phase_block(sleep, seed, block)
    while len(drawn) < skipped + images:
        block += 1
        drawn = torch.cat([drawn, _phase_block(sleep, seed, block)])
    return drawn[skipped : skipped + images]


@remembered
def _phase_block(sleep: SleepSpec, seed: int, block: int) -> Tensor:
    images = torch.arange(block * _PHASE_BLOCK, (block + 1) * _PHASE_BLOCK)
    return lattice_phases(sleep.k, sleep.stream, sleep.phase, images & MASK32, torch.tensor(seed))


# --- where things lie --------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """The input windows of a layer's positions, among the pixels of its padded input.

    A window is a few runs of pixels that follow each other: one for each row of the kernel.

    Attributes:
        origins: int64 ``[N * P]``, the first pixel of each position's window.
        taps: int64 ``[runs]``, the first pixels of a window's runs, from there.
        run: pixels of a run.
    """

    origins: Tensor
    taps: Tensor
    run: int

    def gather(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """The windows of positions ``rows`` of ``[N, H, W, IC]``: ``[rows, KH * KW * IC]``."""
        index = (self.origins[rows][:, None] + self.taps).flatten()
        return runs(pixels, self.run).index_select(0, index).view(len(rows), -1)


@remembered
def windows(size: ConvSize, height: int, width: int) -> Windows:
    """The windows of a layer whose padded input is ``[N, height, width, IC]``."""
    n, _, oh, ow = size.output
    (vertical, across), (down, right) = size.spec.stride, size.spec.dilation
    y, x = torch.arange(oh)[:, None] * vertical, torch.arange(ow) * across
    image = torch.arange(n)[:, None, None] * (height * width)
    run = size.kernel[1] if right == 1 else 1
    taps_y = torch.arange(size.kernel[0])[:, None] * down
    taps_x = torch.arange(size.kernel[1] // run) * right
    return Windows((image + y * width + x).flatten(), (taps_y * width + taps_x).flatten(), run)


@dataclass(frozen=True)
class Grid:
    """Every ``spacing``-th position of every ``spacing``-th row, from any of its starts.

    Starts are numbered row by row, ``0 .. spacing**2 - 1``. A lattice may have several grids of one
    spacing in an image; they are gathered and scattered together. All are as large as the largest,
    so that some reach beyond the map.

    Attributes:
        starts: int64 ``[spacing**2, rows]``, where each row of a grid's input starts among an
            image's pixels.
        run: pixels of such a row.
        places: int64 ``[spacing**2, outputs]``, positions of its outputs, -1 beyond the map.
        whole: whether no output lies beyond the map.
        positions: of an image's output.
    """

    starts: Tensor
    run: int
    places: Tensor
    whole: bool
    positions: int

    def gather(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """What the grids of all images read of ``[N, H, W, IC]``: ``[N * grids, IC, rows, run]``.

        Every grid of every image is one image of this batch, so that the library lays the weights
        out only once.

        Args:
            numbers: int64 ``[N, grids]``, of the grids' starts.
        """
        n, height, width, channels = pixels.shape
        images = torch.arange(n)[:, None, None] * (height * width)
        index = (self.starts[numbers] + images).flatten()
        crops = runs(pixels, self.run).index_select(0, index)
        return crops.view(-1, self.starts.shape[1], self.run, channels).permute(0, 3, 1, 2)

    def scatter(self, y: Tensor, out: Tensor, numbers: Tensor, scale: float) -> None:
        """Write ``[N * grids, C, h, w]``, which is overwritten, times ``scale`` to their rows.

        Args:
            numbers: as for ``gather``.
            out: ``[N * P, C]``, a row for each position of each image.
        """
        y = y.permute(0, 2, 3, 1).flatten(0, 2)
        places = self.places[numbers]
        rows = (places + torch.arange(len(places))[:, None, None] * self.positions).flatten()
        if not self.whole:
            inside = (places.flatten() >= 0).nonzero()[:, 0]
            y, rows = y.index_select(0, inside), rows.index_select(0, inside)
        copy_rows(out, 0, rows, y, scale)


@remembered
def grid(size: ConvSize, spacing: int, pitch: int) -> Grid:
    """The grids of this spacing over a layer's outputs.

    Args:
        size: of the layer.
        spacing: in rows and columns.
        pitch: pixels to a row of the padded input.
    """
    _, _, height, width = size.output
    top, left = torch.arange(spacing)[:, None, None], torch.arange(spacing)[:, None]
    vertical, across = size.spec.stride
    high, run = _grid_input(size, spacing)
    starts = (top * vertical + torch.arange(high)) * pitch + left * across
    y = top[..., None] + torch.arange(0, height, spacing)[:, None]
    x = left[..., None] + torch.arange(0, width, spacing)
    places = torch.where((y < height) & (x < width), y * width + x, -1).flatten(2)
    whole = height % spacing == 0 and width % spacing == 0
    return Grid(starts.flatten(0, 1), run, places.flatten(0, 1), whole, size.positions)


@remembered
def grid_numbers(k: int, j: int, spacing: int) -> Tensor:
    """Which grids of a spacing of ``crossover.grids(k, j)`` a lattice is made of.

    Returns:
        int64 ``[k, grids]``, numbers of the grids' starts at each phase.
    """
    shifts = lattice_tables(k)[1].long()
    top, left = ((grids(k, j)[spacing] - shifts[:, None]) % spacing).unbind(2)
    return top * spacing + left


def grid_reach(size: ConvSize, spacing: int) -> tuple[int, int]:
    """Rows and columns of input that grids of this spacing read, whatever their start."""
    high, wide = _grid_input(size, spacing)
    vertical, across = size.spec.stride
    return (spacing - 1) * vertical + high, (spacing - 1) * across + wide


def _grid_input(size: ConvSize, spacing: int) -> tuple[int, int]:
    """Rows and columns of input that one grid of this spacing reads."""
    height, width = (
        (-(-outputs // spacing) - 1) * spacing * stride + dilation * (kernel - 1) + 1
        for outputs, stride, dilation, kernel in zip(
            size.output[2:], size.spec.stride, size.spec.dilation, size.kernel, strict=True
        )
    )
    return height, width
