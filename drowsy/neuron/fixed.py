"""Sleep of maps that were drawn beforehand, in operations that other runtimes know.

What ``asleep`` does with views of bits and strides is done here with ``where``, ``gather`` and
padded sums. All that depends on the map alone is computed once and stands for constants.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.neuron.asleep import NOBODY, choose_nearest, steps_to_nearest, window_sums
from drowsy.neuron.stencil import RING, awake_sets
from drowsy.neuron.window import NEAR, REACH, WINDOW, over_channels
from drowsy.sleep import NEIGHBOUR_FILLS, Grain, expand_cells


class FixedSleep:
    """Puts the same neurons to sleep at every call.

    Args:
        levels: uint8 level map ``[N, PC, CC]`` of this grain.
        j: threshold; a cell sleeps when its level is below it.
        scale: factor on awake outputs; not read where sleepers are filled from them.
        shape, dtype: ``(N, C, OH, OW)`` of the outputs, and their dtype.
        grain: of the map; single positions for fills that read neighbours.
        fill: as for ``sleep``.
    """

    def __init__(
        self,
        levels: Tensor,
        j: int,
        scale: float,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        grain: Grain,
        fill: str,
    ) -> None:
        self._shape, self._scale, self._fill = shape, scale, fill
        self._wide = torch.promote_types(dtype, torch.float32)
        n, channels, height, width = shape
        cells = levels < j
        if fill not in NEIGHBOUR_FILLS:
            asleep = expand_cells(cells, shape, grain)
            # One cell for all positions or channels is kept as one.
            if cells.shape[1] == 1:
                asleep = asleep[:, :, :1, :1]
            self._asleep = (asleep[:, :1] if cells.shape[2] == 1 else asleep).contiguous()
            return
        cells = cells.view(n, height, width, -1).permute(0, 3, 1, 2)
        self._asleep = over_channels(cells, channels, grain).contiguous()
        if fill == "nearest":
            choice = over_channels(choose_nearest(cells), channels, grain)
            here = torch.arange(height * width, device=levels.device).view(height, width)
            self._source = (here + steps_to_nearest(width, levels.device)[choice.int()]).flatten(2)
            self._nobody = (choice == NOBODY).contiguous()
        elif fill == "interpolate":
            near, far = window_sums((~cells).to(self._wide))
            weight = torch.where(near == 0, far, near)
            self._alone = over_channels(near == 0, channels, grain).contiguous()
            # Nobody in the window: 0 / 1.
            self._weight = over_channels(weight + (weight == 0), channels, grain).contiguous()
        else:
            self._sets = over_channels(awake_sets(cells).long(), channels, grain).contiguous()

    def __call__(self, y: Tensor, table: Tensor | None = None) -> Tensor:
        """``y`` of the shape that was given, with its sleepers asleep; ``table`` of ``stencil``."""
        zero = torch.zeros((), dtype=y.dtype, device=y.device)
        if self._fill not in NEIGHBOUR_FILLS:
            return torch.where(self._asleep, zero, y if self._scale == 1 else y * self._scale)
        if self._fill == "nearest":
            source = self._source.expand(-1, self._shape[1], -1)
            taken = y.flatten(2).gather(2, source).reshape(self._shape)
            return torch.where(self._nobody, zero, taken)
        awake = F.pad(torch.where(self._asleep, zero, y).to(self._wide), (REACH,) * 4)
        if self._fill == "interpolate":
            value = self._mean(awake)
        else:
            assert table is not None
            value = self._predicted(awake, table.to(self._wide))
        return torch.where(self._asleep, value.to(y.dtype), y)

    def _mean(self, awake: Tensor) -> Tensor:
        sums: list[Tensor | None] = [None, None]
        for squared, dy, dx in WINDOW:
            term, far = self._shifted(awake, dy, dx) * (1 / squared), squared > NEAR
            total = sums[far]
            sums[far] = term if total is None else total + term
        return torch.where(self._alone, sums[1], sums[0]) / self._weight  # type: ignore[arg-type]

    def _predicted(self, awake: Tensor, table: Tensor) -> Tensor:
        value = self._weights(table[:, len(RING)])
        for bit, (dy, dx) in enumerate(RING):
            value = value + self._weights(table[:, bit]) * self._shifted(awake, dy, dx)
        return value

    def _weights(self, column: Tensor) -> Tensor:
        """A column ``[256, C]`` of the table, for the sets of every neuron."""
        if self._sets.shape[1] == 1:
            return column[self._sets[:, 0]].permute(0, 3, 1, 2)
        channel = torch.arange(column.shape[1], device=column.device)[:, None, None]
        return column.flatten()[self._sets * column.shape[1] + channel]

    def _shifted(self, padded: Tensor, dy: int, dx: int) -> Tensor:
        top, left = REACH + dy, REACH + dx
        return padded[:, :, top : top + self._shape[2], left : left + self._shape[3]]
