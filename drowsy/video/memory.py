"""What a slot keeps from frame to frame, and where cells of its maps lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from drowsy.video.areas import Cell
from drowsy.video.windows import Margin, Rectangle, Size

FRAME = "frame"
Held = dict[fx.Node, Tensor]
"""Parts of maps for what is awake: views of kept maps, and what lives for a frame."""


class Memory:
    """What one slot keeps from frame to frame.

    Attributes:
        values: of nodes that are computed whole, and views of kept maps; under ``FRAME`` what the
            camera shows.
        places: where kept maps begin.
    """

    def __init__(self, margins: Mapping[fx.Node, Margin], shapes: Mapping[fx.Node, Any]) -> None:
        self._margins = margins
        self._shapes = shapes
        self.kept: dict[fx.Node, Tensor] = {}
        self.values: dict[Any, Any] = {}
        self.places: set[int] = set()

    def take(self, like: Tensor) -> None:
        """Take the memory, of this dtype on this device."""
        for node, margin in self._margins.items():
            _, channels, height, width = self._shapes[node]
            rows = margin.top + height + margin.bottom
            columns = margin.left + width + margin.right
            kept = torch.full(
                (1, rows, columns, channels), margin.value, dtype=like.dtype, device=like.device
            ).permute(0, 3, 1, 2)
            self.kept[node] = kept
            self.places.add(kept.untyped_storage().data_ptr())
            inner = kept[:, :, margin.top : margin.top + height]
            self.values[node] = inner[:, :, :, margin.left : margin.left + width]

    def part(self, node: fx.Node, box: Rectangle) -> Tensor:
        """A view of a part of a kept map."""
        top, bottom, left, right = box
        return self.values[node][:, :, top:bottom, left:right]

    def margin(self, node: fx.Node) -> Margin:
        return self._margins[node]

    def own_places(self, node: fx.Node, blocks: Blocks) -> Tensor:
        """Where cells lie in a kept map: ``[N, rows, columns]``."""
        margin, kept = self._margins[node], self.kept[node]
        _, _, height, width = self._shapes[node]
        cell = blocks.cell((height, width))
        return blocks.places(kept.shape[3], (margin.top, margin.left), cell, cell)

    def hold(self, node: fx.Node, blocks: Blocks, held: Held) -> None:
        """Hold the cells of a kept map as a batch."""
        places = self.own_places(node, blocks)
        found = positions_of(self.kept[node]).index_select(0, places.flatten())
        held[node] = found.view(*places.shape, -1).permute(0, 3, 1, 2)


class Blocks:
    """Cells of a grid that divides every map, for one frame: computed together, as a batch.

    Args:
        cells: at least one.
        grid: cells of the picture.
        device: of the maps.
    """

    def __init__(self, cells: Sequence[Cell], grid: Cell, device: torch.device) -> None:
        self._rows, self._columns = torch.tensor(cells, device=device).T
        self._grid, self.count = grid, len(cells)
        self._places: dict[tuple[int, ...], Tensor] = {}

    def cell(self, size: Size) -> Size:
        """Rows and columns of a cell on a map."""
        return size[0] // self._grid[0], size[1] // self._grid[1]

    def places(self, width: int, first: Cell, step: Size, extent: Size) -> Tensor:
        """Positions of a part of every cell, ``[N, rows, columns]``, in a map of that width.

        Args:
            width: of the map as it is kept.
            first: row and column where the part begins in the first cell of all.
            step: rows and columns from cell to cell.
            extent: of the part.
        """
        key = (width, *first, *step, *extent)
        found = self._places.get(key)
        if found is None:
            device = self._rows.device
            corner = (first[0] + step[0] * self._rows) * width + first[1] + step[1] * self._columns
            down, across = (torch.arange(n, device=device) for n in extent)
            found = corner[:, None, None] + (down[:, None] * width + across)
            self._places[key] = found
        return found


def positions_of(kept: Tensor) -> Tensor:
    """A map ``[1, C, h, w]`` (channels_last) as ``[positions, C]``."""
    return kept.permute(0, 2, 3, 1).reshape(-1, kept.shape[1])
