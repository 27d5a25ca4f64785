"""Sleep maps of a deployed network and their lists, drawn before the layers need them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels import lists, tables
from torch import Tensor, nn

from drowsy.knob.control import Control


class Prologue:
    """Work that needs no layer's output, in the order in which the layers need it.

    Runs on a stream of its own; ``wait`` holds the current stream until what was added before
    ``mark`` is there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._work: list[Callable[[], object] | torch.cuda.Event] = []
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def add(self, work: kernels.Launch | Callable[[], object]) -> None:
        """Append a launch, or a function to call."""
        self._work.append(
            (lambda: work.run(self._device)) if isinstance(work, kernels.Launch) else work
        )

    def mark(self) -> torch.cuda.Event | None:
        """What to wait for, to have all that was added so far."""
        if self._side is None:
            return None
        if not self._work or not isinstance(self._work[-1], torch.cuda.Event):
            self._work.append(torch.cuda.Event())
        event = self._work[-1]
        assert isinstance(event, torch.cuda.Event)
        return event

    def run(self) -> None:
        """Start the work."""
        if self._side is None:
            for work in self._work:
                work()  # type: ignore[operator]
            return
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            for work in self._work:
                if isinstance(work, torch.cuda.Event):
                    work.record()
                else:
                    work()


def channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        event.wait()


class Draw(nn.Module):
    """Writes down what sources see of a batch, where they do, and starts the prologue.

    Args:
        detail: int32 ``[N, GH, GW]`` to write to, or None.
    """

    def __init__(self, prologue: Prologue, detail: Tensor | None) -> None:
        super().__init__()
        self._prologue, self._detail = prologue, detail

    def forward(self, batch: Tensor) -> None:
        if self._detail is not None:
            self._detail.copy_(torch.ops.drowsy.detail(batch))
        self._prologue.run()


class Advance(nn.Module):
    """Advances a network's clock at the end of an inference."""

    def __init__(self, control: Control, images: int) -> None:
        super().__init__()
        self.control, self._images = control, images

    def forward(self) -> None:
        self.control.advance(self._images)


@dataclass(eq=False)
class Map:
    """A sleep map's buffers, filled by the prologue.

    Args:
        shape: ``(N, C, OH, OW)`` that it is about; ``C`` is 1 where all channels share it.
        cell: positions and channels that share a bit.
        bitmap: int32 ``[N, PC, W]``.
        exact: for ``awake_rows``.
    """

    prologue: Prologue
    shape: tuple[int, int, int, int]
    cell: tuple[int, int]
    bitmap: Tensor
    exact: tuple[int, Tensor] | None
    _made: dict[Any, Any] = field(default_factory=dict)

    def _planned(
        self, key: object, plan: Callable[[], tuple[Any, Sequence[kernels.Launch]]]
    ) -> Any:
        """The buffers that ``plan`` allocates; its launches join the prologue, once."""
        if key not in self._made:
            self._made[key], launches = plan()
            for launch in launches:
                self.prologue.add(launch)
        return self._made[key]

    @property
    def whole_channels(self) -> bool:
        """Whether all positions of a channel share a bit."""
        return self.cell[0] >= self.shape[2] * self.shape[3]

    @property
    def one_cell(self) -> bool:
        """Whether all channels of a position share a bit, and no two positions do."""
        return self.cell == (1, self.shape[1])

    def rows_but(self, zeros: Map) -> lists.AwakeRows:
        """Rows that are awake in this map and in another."""

        def plan() -> tuple[lists.AwakeRows, Sequence[kernels.Launch]]:
            either = torch.empty_like(self.bitmap)
            self.prologue.add(
                functools.partial(lists.combine, self.bitmap, zeros.bitmap, out=either)
            )
            return lists.plan_awake_rows(either, self.shape, self.cell)

        return self._planned(("rows but", id(zeros)), plan)

    @property
    def rows(self) -> lists.AwakeRows:
        """Awake rows of every channel cell."""
        return self._planned(
            "rows",
            lambda: lists.plan_awake_rows(self.bitmap, self.shape, self.cell, exact=self.exact),
        )

    @property
    def cells(self) -> lists.AwakeCells:
        """Awake cells."""
        return self._planned(
            "cells", lambda: lists.plan_awake_cells(self.bitmap, self.shape, self.cell)
        )

    @property
    def channels(self) -> lists.AwakeChannels:
        """Awake channels of every image."""
        return self._planned(
            "channels", lambda: lists.plan_awake_channels(self.bitmap, self.shape, self.cell)
        )

    def blocks(self, width: int) -> lists.AwakeBlocks:
        """Blocks of ``width`` channels in which a channel is awake, of every image."""
        return self._planned(
            ("blocks", width),
            lambda: lists.plan_awake_blocks(self.bitmap, self.shape, self.cell, width),
        )

    def index(self, fill: str) -> Tensor:
        """The compact row that stands for each position."""
        rows = self.rows
        return self._planned(
            ("index", fill), lambda: tables.plan_row_index(self.bitmap, rows, self.shape[2:], fill)
        )

    def table(self, geometry: tables.Geometry, index: Tensor | None) -> Tensor:
        """Tap table of a convolution onto this map; ``index`` is that of its compact input."""
        rows = self.rows
        return self._planned(
            (geometry, id(index)),
            lambda: tables.plan_tap_table(rows, self.shape[0], geometry, index),
        )
