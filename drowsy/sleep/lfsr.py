"""The source ``lfsr``: the shift registers of the paper's hardware."""

from __future__ import annotations

import functools
import operator
from array import array
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drowsy.sleep.counters import philox
from drowsy.sleep.memory import remembered
from drowsy.sleep.rates import DEFAULT_K
from drowsy.sleep.source import LayerMap, Source

_TAG = 3
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Lfsr(Source):
    """The paper's hardware: one linear feedback shift register per processing engine (III-B).

    Fibonacci registers that never stop: engine ``e`` computes channel cells ``e, e + engines, ...``
    in raster order and steps once a cell, from one image to the next. The comparator puts a cell
    to sleep while the register's state, scaled to ``k`` levels, is below ``j``.

    Args:
        width: bits of the register, 2 to 20.
        taps: bit positions (1 = first) that are XORed; the register must be of maximal length.
        engines: number of processing engines.
        seeding: initial states, one for each engine or one for all; empty = a hash of
            (seed, layer, engine).

    A register never reaches 0, so its rates are not quite ``j/k``: see ``lfsr_rates``.
    """

    name: ClassVar[str] = "lfsr"
    width: int = 3
    taps: tuple[int, ...] = (3, 2)
    engines: int = 64
    seeding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 20:
            raise ValueError(f"lfsr width: got {self.width}, allowed: 2 to 20 bits")
        if self.engines < 1:
            raise ValueError(f"lfsr engines: got {self.engines}, allowed: 1 or more")
        if not self.taps or any(not 1 <= tap <= self.width for tap in self.taps):
            raise ValueError(f"lfsr taps: got {self.taps}, allowed: positions 1 to {self.width}")
        if len(_cycle(self.width, self.taps)) != 2**self.width - 1:
            raise ValueError(
                f"lfsr taps: {self.taps} visit {len(_cycle(self.width, self.taps))} states, "
                f"a maximal register of {self.width} bits visits {2**self.width - 1}"
            )
        if len(self.seeding) not in (0, 1, self.engines):
            raise ValueError(
                f"lfsr seeding: got {len(self.seeding)} states, allowed: none, 1 or {self.engines}"
            )
        if any(not 1 <= state < 2**self.width for state in self.seeding):
            raise ValueError(
                f"lfsr seeding: got {self.seeding}, allowed: states 1 to {2**self.width - 1}"
            )

    def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
        (positions, channels), device = layer.cells, images.device
        table, starts = self.tables(layer, seed)
        cell = torch.arange(channels, device=device)
        rounds = -(-channels // self.engines)
        position = torch.arange(positions, device=device)[:, None]
        # Steps since the register's start; images come in steps of a whole layer.
        within = (cell // self.engines) * positions + position
        since = images[:, None, None] * (rounds * positions) + within
        return table[(starts[cell % self.engines] + since) % len(table)]

    def tables(self, layer: LayerMap, seed: Tensor) -> tuple[Tensor, ...]:
        """``(levels, starts)``: uint8 along the register's cycle; int64, of each engine on it."""
        table = _level_table(self, layer.k, layer.upside_down, seed.device)
        return table, self._starts(layer, seed)

    @property
    def follows_seed(self) -> bool:
        return not self.seeding

    def reseed(self, tables: tuple[Tensor, ...], layer: LayerMap, seed: Tensor) -> None:
        tables[1].copy_(self._starts(layer, seed))

    def _starts(self, layer: LayerMap, seed: Tensor) -> Tensor:
        if self.seeding:
            return _seeded_starts(self, seed.device)
        engine = torch.arange(self.engines, device=seed.device)
        drawn = philox(engine, engine * 0, layer.stream, _TAG, seed)[0]
        return drawn % (2**self.width - 1)


def lfsr_rates(source: Lfsr, k: int = DEFAULT_K) -> list[float]:
    """Fraction of a register's period that sleeps at thresholds ``0 .. k-1``.

    A three-bit register with ``k = 8`` gives 0, 0, 1/7, 2/7, ... 6/7 where 0, 1/8, ... 7/8 were
    asked for, because a shift register never holds 0.
    """
    table = _level_table(source, k)
    return [(table < j).float().mean().item() for j in range(k)]


@remembered
def _level_table(
    source: Lfsr, k: int, upside_down: bool = False, device: torch.device = _CPU
) -> Tensor:
    """Levels along the register's cycle: uint8 ``[period]``."""
    states = _cycle(source.width, source.taps)
    if upside_down:
        states = 2**source.width - states
    return (states * k >> source.width).to(torch.uint8).to(device)


@remembered
def _seeded_starts(source: Lfsr, device: torch.device) -> Tensor:
    """Where on the cycle engines start that are seeded by hand: int64 ``[engines]``."""
    cycle = _cycle(source.width, source.taps)
    starts = torch.cat([(cycle == state).nonzero()[0] for state in source.seeding])
    return starts.expand(source.engines).contiguous().to(device)


@remembered
def _cycle(width: int, taps: tuple[int, ...]) -> Tensor:
    """States that a Fibonacci register visits from state 1 until it meets one again: int32."""
    tapped = functools.reduce(operator.xor, (1 << tap - 1 for tap in taps))
    state, most, seen, cycle = 1, 2**width - 1, bytearray(2**width), array("i")
    while not seen[state]:
        seen[state] = 1
        cycle.append(state)
        feedback = (state & tapped).bit_count() & 1
        state = (state << 1 | feedback) & most
    return torch.frombuffer(cycle, dtype=torch.int32).clone()
