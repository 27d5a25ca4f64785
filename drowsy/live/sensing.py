"""What the device tells while the page is open: watts and degrees, or why not, in words."""

from __future__ import annotations

from pathlib import Path

from drowsy.governor import Board
from drowsy.governor.board import board_of
from drowsy.sensors import Device, NoMeter
from drowsy.sensors.thermometer import SYS

FIGURES = ("watts", "celsius")


class Sensing:
    """Has a device's power and temperature read, beside everything else.

    Args:
        device: as torch names it.
        root: where Linux tells temperatures.

    Attributes:
        why: of each figure that cannot be read here, the reason.
        board: what reads; None where nothing can be read.
    """

    def __init__(self, device: Device, root: str | Path = SYS) -> None:
        self.board, self.why = _board(device, root)
        if self.board is not None:
            self.board.join(self)

    def now(self) -> dict[str, float | None]:
        """The newest reading by figure; None for what was not read."""
        newest = [] if self.board is None else self.board.after(self.board.newest - 1)
        return {name: getattr(newest[-1][1], name) if newest else None for name in FIGURES}

    def close(self) -> None:
        """Read no more."""
        if self.board is not None:
            self.board.leave(self)


def _board(device: Device, root: str | Path) -> tuple[Board | None, dict[str, str]]:
    """The board that tells most, and why it does not tell the rest."""
    try:
        return board_of(device, set(FIGURES), root), {}
    except NoMeter:
        why: dict[str, str] = {}
    board = None
    for figure in FIGURES:
        try:
            board = board_of(device, {figure}, root)
        except NoMeter as error:
            why[figure] = str(error)
    return board, why
