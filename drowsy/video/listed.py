"""What all slots keep where areas are computed at lists of positions, every map in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from drowsy.video.areas import Box

if TYPE_CHECKING:
    from drowsy.backends.triton_areas import Positions

# Cells of the finest grid, of which each may be a box of its own.
_MOST_BOXES = 64


class Listed:
    """Maps of all slots, ``[slots, C, h, w]``, and lists of the positions that are awake.

    Attributes:
        values: of all nodes; of those that are computed in parts, the maps that are kept.
    """

    def __init__(self, shapes: Mapping[fx.Node, Sequence[int]], slots: int, like: Tensor) -> None:
        """Take the memory, for maps of shapes ``[1, C, h, w]``, of ``like``'s dtype and device."""
        from drowsy.backends.triton_areas import Awake

        self.maps: dict[fx.Node, Tensor] = {
            node: torch.zeros((slots, h, w, c), dtype=like.dtype, device=like.device).permute(
                0, 3, 1, 2
            )
            for node, (_, c, h, w) in shapes.items()
        }
        self.values: dict[Any, Any] = dict(self.maps)
        self.awake = Awake(slots, map_sizes(shapes), slots * _MOST_BOXES, like.device)

    def positions(self, node: fx.Node) -> Positions:
        """The awake positions of a map."""
        height, width = self.maps[node].shape[2:]
        return self.awake.of((height, width))

    def tell(self, boxes: Mapping[int, Sequence[Box]]) -> None:
        """Which boxes are awake, by slot; nothing is in the other slots."""
        self.awake.tell(
            [[slot, *box.rows, *box.columns, *box.grid] for slot in boxes for box in boxes[slot]]
        )


def map_sizes(shapes: Mapping[fx.Node, Sequence[int]]) -> list[tuple[int, int]]:
    """``(h, w)`` of maps, each size once."""
    return sorted({(shape[2], shape[3]) for shape in shapes.values()}, reverse=True)


def listed_bytes(shapes: Mapping[fx.Node, Sequence[int]], slots: int, like: Tensor) -> int:
    """Bytes of memory that ``Listed`` takes, but for some hundreds a size."""
    elements = sum(c * h * w for _, c, h, w in shapes.values())
    positions = sum(h * w for h, w in map_sizes(shapes))
    return slots * (elements * like.element_size() + 4 * positions)
