"""The grain of a sleep map: which neurons share one bit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from drowsy.files.messages import quoted

# As many digits as the text form has; beyond any layer, and below what kernels count to.
_LARGEST = 999_999_999


@dataclass(frozen=True)
class Grain:
    """The block of neurons that share one bit of the sleep map.

    Args:
        kind: ``"neuron"``, ``"position"``, ``"channel"`` or ``"tile"``.
        positions: positions per cell (``tile`` only).
        channels: channels per cell (``position``, where 0 means all channels; ``channel``, where 0
            means one; and ``tile``).

    ``Grain.parse`` reads the text form that schedules use: ``neuron``, ``position`` (all channels
    share a bit), ``position:64``, ``channel``, ``channel:16``, ``tile:64x32`` (positions x
    channels).
    """

    kind: str = "neuron"
    positions: int = 0
    channels: int = 0

    _FORMS: ClassVar[str] = "neuron, position, position:G, channel, channel:G, tile:MxN"

    def __post_init__(self) -> None:
        sizes = (self.positions, self.channels)
        countable = all(type(size) is int and 0 <= size <= _LARGEST for size in sizes)
        needs = {
            "neuron": sizes == (0, 0),
            "channel": self.positions == 0,
            "position": self.positions == 0,
            "tile": 0 not in sizes,
        }
        if not countable or not needs.get(self.kind, False):
            raise ValueError(
                f"grain: got kind={quoted(self.kind)}, positions={quoted(self.positions)}, "
                f"channels={quoted(self.channels)}; allowed: {self._FORMS} with positive G, M, N "
                f"up to {_LARGEST:,}"
            )

    @classmethod
    def parse(cls, text: str | Grain) -> Grain:
        """Read a grain's text form; a ``Grain`` passes through."""
        if isinstance(text, Grain):
            return text
        if not isinstance(text, str):
            raise TypeError(f"grain: got {quoted(text)}, allowed: {cls._FORMS}")
        return _parsed(text)

    @classmethod
    def _read(cls, text: str) -> Grain:
        match = re.fullmatch(
            r"(neuron|channel|position)|(channel|position):([1-9][0-9]{0,8})|"
            r"tile:([1-9][0-9]{0,8})x([1-9][0-9]{0,8})",
            text,
        )
        if match is None:
            raise ValueError(f"grain: got {quoted(text)}, allowed: {cls._FORMS}")
        plain, grouped, group, rows, columns = match.groups()
        if plain:
            return cls(plain)
        if grouped:
            return cls(grouped, channels=int(group))
        return cls("tile", int(rows), int(columns))

    def __str__(self) -> str:
        if self.kind == "tile":
            return f"tile:{self.positions}x{self.channels}"
        return f"{self.kind}:{self.channels}" if self.channels else self.kind

    @property
    def of_single_positions(self) -> bool:
        """Whether a cell is one position, so that a sleeper can have awake neighbours."""
        return self.kind in ("neuron", "position") or self.positions == 1

    def cell(self, channels: int, positions: int) -> tuple[int, int]:
        """``(cell_p, cell_c)`` for an output of this many channels and positions (each >= 1)."""
        if self.kind == "neuron":
            return 1, 1
        if self.kind == "position":
            return 1, min(self.channels or channels, channels)
        if self.kind == "channel":
            return positions, min(self.channels or 1, channels)
        return self.positions, self.channels


# Whoever turns a network's knob reads the same few texts at every turn, once a layer.
_parsed = lru_cache(maxsize=256)(Grain._read)
