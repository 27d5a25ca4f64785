"""Areas of a picture that are awake together: the same part of every map, whatever its size.

What sleeps keeps what it put out when it was last awake, so areas are large and contiguous: where
an awake neuron reads a stale neighbour, staleness goes on to the layers behind it.

A picture is divided into a grid of cells. Cell borders are rounded at every resolution by one rule,
so cells meet without gaps or overlaps on a map of any size; on small maps some cells are empty.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from drowsy.files.messages import quoted

Cell = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle of cells.

    Args:
        rows, columns: first cell, and the one after the last.
        grid: cells of the picture, ``(down, across)``.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    grid: Cell

    def at(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """``(top, bottom, left, right)`` on a map of ``size`` ``(h, w)``; ends are exclusive."""
        top, bottom = (_border(i, self.grid[0], size[0]) for i in self.rows)
        left, right = (_border(i, self.grid[1], size[1]) for i in self.columns)
        return top, bottom, left, right

    def cells(self) -> list[Cell]:
        """The cells in it."""
        return [(row, column) for row in range(*self.rows) for column in range(*self.columns)]


WHOLE = Box((0, 1), (0, 1), (1, 1))
"""The whole picture."""


def _border(index: int, cells: int, length: int) -> int:
    """Where cell ``index`` of ``cells`` begins on so many rows: the nearest row, halves up."""
    return (2 * index * length + cells) // (2 * cells)


def rectangles(cells: Collection[Cell], grid: Cell) -> tuple[Box, ...]:
    """Boxes that hold exactly these cells, each once: runs of a row, joined over equal rows."""
    if len(set(cells)) == grid[0] * grid[1]:
        return (WHOLE,)
    open_runs: dict[tuple[int, int], int] = {}
    boxes: list[Box] = []
    for row in range(grid[0] + 1):
        runs = _runs([column for r, column in cells if r == row])
        ended = [run for run in open_runs if run not in runs]
        boxes += (Box((open_runs.pop(run), row), run, grid) for run in ended)
        for run in runs:
            open_runs.setdefault(run, row)
    return tuple(boxes)


def _runs(columns: Collection[int]) -> list[tuple[int, int]]:
    """Columns as ``(first, end)`` of unbroken runs."""
    runs: list[tuple[int, int]] = []
    for column in sorted(columns):
        if runs and runs[-1][1] == column:
            runs[-1] = runs[-1][0], column + 1
        else:
            runs.append((column, column + 1))
    return runs


class Areas:
    """Which areas of one camera's picture are awake, frame by frame.

    Attributes:
        cycle: whatever comes, every area is awake at least once in so many frames.
        share: of the picture that is awake, by cells.
    """

    cycle: int
    share: Fraction

    def __init__(self, rate: Fraction) -> None:
        """Areas at a rate that ``check`` has passed."""
        self.set(rate)

    def set(self, rate: Fraction) -> None:
        """Follow another rate."""
        raise NotImplementedError

    @staticmethod
    def check(rate: float | Fraction) -> Fraction:
        """The exact rate; raises TypeError or ValueError for one that these areas do not have."""
        raise NotImplementedError

    def next(self, frame: Tensor) -> tuple[Box, ...]:
        """What is awake in the next frame ``[C, H, W]``."""
        raise NotImplementedError

    def refreshed(self, frame: Tensor) -> None:
        """Note that everything was awake in this frame instead."""

    def fit(self, grid: Cell) -> None:
        """Take this grid of cells, where the areas are cells and may be of another size."""


class _Turns(Areas):
    """Areas that are awake in turn, so many at a time."""

    def _take_turns(self, order: list[Cell], grid: Cell, awake: int) -> None:
        self.cycle, self.share = -(-len(order) // awake), Fraction(awake, len(order))
        self._order, self._grid, self._awake, self._turn = order, grid, awake, 0

    def next(self, frame: Tensor) -> tuple[Box, ...]:
        count = len(self._order)
        cells = [self._order[(self._turn + i) % count] for i in range(self._awake)]
        self._turn = (self._turn + self._awake) % count
        return rectangles(cells, self._grid)


class Bands(_Turns):
    """Slabs of the picture's full width, from top to bottom: at rate m/k, k - m of k are awake."""

    MOST = 8

    def set(self, rate: Fraction) -> None:
        count = rate.denominator
        self._take_turns([(i, 0) for i in range(count)], (count, 1), count - rate.numerator)

    @staticmethod
    def check(rate: float | Fraction) -> Fraction:
        exact = Fraction(_number(rate)).limit_denominator(Bands.MOST)
        return _checked(rate, exact, f"m/k in [0, 1) with k up to {Bands.MOST}")


class Quads(_Turns):
    """Quarters of the picture, clockwise: one, two or three of them awake."""

    def set(self, rate: Fraction) -> None:
        self._take_turns([(0, 0), (0, 1), (1, 1), (1, 0)], (2, 2), 4 - int(4 * rate))

    @staticmethod
    def check(rate: float | Fraction) -> Fraction:
        return _checked(rate, Fraction(round(4 * _number(rate)), 4), "0, 1/4, 1/2, 3/4")


class Change(Areas):
    """The blocks that differ most from what they showed when they were last awake.

    The number of awake blocks is exact: of 49, ``floor(49 (1 - rate))``. They are 7 x 7, or as many
    as divide all of a network's maps (``fit``). A block's claim grows with
    its age too, and past a certain age it goes first, so each is awake once in ``cycle`` frames.
    Of equal claims the older comes first, then the one further to the top left.
    """

    GRID = (7, 7)
    # Frames are compared at about so many pixels of their shorter side.
    _LOOK = 112
    # Turns (all blocks once) after which a block goes first.
    _PATIENCE = 3
    # What a turn of waiting is worth, in the picture's mean change.
    _IMPATIENCE = 0.5

    def __init__(self, rate: Fraction) -> None:
        self._grid = self.GRID
        super().__init__(rate)
        self._age = torch.zeros(self._grid[0] * self._grid[1], dtype=torch.int64)
        self._seen: Tensor | None = None

    def fit(self, grid: Cell) -> None:
        if grid != self._grid:
            self._grid = grid
            self._age = torch.zeros(grid[0] * grid[1], dtype=torch.int64)
            self.set(self._rate)

    def set(self, rate: Fraction) -> None:
        self._rate = rate
        count = self._grid[0] * self._grid[1]
        self._awake = max(int((1 - rate) * count), 1)
        self._turn = -(-count // self._awake)
        self.share = Fraction(self._awake, count)
        # After a dense frame all are of one age: the last waits a turn longer than the first.
        self.cycle = (self._PATIENCE + 1) * self._turn

    @staticmethod
    def check(rate: float | Fraction) -> Fraction:
        return _checked(rate, Fraction(round(8 * _number(rate)), 8), "multiples of 1/8 in [0, 1)")

    def refreshed(self, frame: Tensor) -> None:
        self._age.zero_()
        self._seen = self._look(frame).clone()

    def next(self, frame: Tensor) -> tuple[Box, ...]:
        look = self._look(frame)
        if self._seen is None or self._seen.shape != look.shape:
            self._seen = look.clone()
        change = F.adaptive_avg_pool2d((look - self._seen).abs_().mean(0)[None], self._grid)
        change = change.flatten().cpu()
        self._age += 1
        claim = change / change.mean().clamp_min(1e-12)
        claim += self._age * (self._IMPATIENCE / self._turn)
        overdue = self._age > self._PATIENCE * self._turn
        # Among the overdue age alone decides.
        claim = torch.where(overdue, 1e9 * self._age, claim.clamp_max(1e8))
        # Sorted stably, so the first to the top left comes first; by age first, then by claim.
        older = self._age.sort(descending=True, stable=True).indices
        order = older[claim[older].sort(descending=True, stable=True).indices].tolist()
        awake = order[: self._awake]
        self._age[awake] = 0
        boxes = rectangles([divmod(block, self._grid[1]) for block in awake], self._grid)
        size = (look.shape[1], look.shape[2])
        for box in boxes:
            top, bottom, left, right = box.at(size)
            self._seen[:, top:bottom, left:right] = look[:, top:bottom, left:right]
        return boxes

    def _look(self, frame: Tensor) -> Tensor:
        step = max(min(frame.shape[1:]) // self._LOOK, 1)
        return frame[:, ::step, ::step].float()


REFRESH: dict[str, type[Areas]] = {"bands": Bands, "quads": Quads, "change": Change}


def _number(rate: float | Fraction) -> float | Fraction:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)):
        raise TypeError(f"rate: got {quoted(rate)}, allowed: a number in [0, 1)")
    if not 0 <= rate < 1:
        raise ValueError(f"rate: got {quoted(rate)}, allowed: 0 and more, less than 1")
    return rate


def _checked(rate: float | Fraction, exact: Fraction, allowed: str) -> Fraction:
    if abs(float(rate) - float(exact)) > 1e-6 or exact == 1:
        raise ValueError(f"rate: got {quoted(rate)}, allowed: {allowed}")
    return exact
