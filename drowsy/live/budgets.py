"""Budgets that a viewer may set: which can be held here, and what the governor says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drowsy.governor import Change, Governor
from drowsy.governor.governed import BUDGETS
from drowsy.live.hands import Hand, StreamHand
from drowsy.live.sensing import Sensing
from drowsy.reporting.words import number


@dataclass(frozen=True)
class Budget:
    """One that the page offers.

    Args:
        name: the governor's.
        title: on the page.
        unit: of what is given.
    """

    name: str
    title: str
    unit: str


OFFERED = (
    Budget("latency_ms", "latency", "ms"),
    Budget("watts", "power", "W"),
    Budget("celsius", "temperature", "\u00b0C"),
)
_UNITS = {budget.name: budget.unit for budget in OFFERED}
_TITLES = {budget.name: budget.title for budget in OFFERED}


def unholdable(budget: Budget, hand: Hand, sensing: Sensing) -> str:
    """Why a budget cannot be held here; empty where it can."""
    if budget.name in sensing.why:
        return f"nothing measures it here: {sensing.why[budget.name]}"
    figure, unit = BUDGETS[budget.name]
    lacking = sum(not getattr(point, figure) for point in hand.points)
    if lacking and isinstance(hand, StreamHand):
        return f"of a stream's rates no {unit} are measured, which a governor would go by"
    if lacking:
        return (
            f"the knob's file tells no {unit} for {lacking} of {len(hand.points)} points: "
            "`drowsy bench F --out F` measures them where there is a meter"
        )
    return ""


class Governing:
    """A governor of one viewer's hand, as long as there are budgets.

    Args:
        hand: what it turns.
        sensing: whose board it hears.
    """

    def __init__(self, hand: Hand, sensing: Sensing) -> None:
        self._hand, self._board = hand, sensing.board
        self._governor: Governor | None = None
        self._budgets: dict[str, float] = {}
        self._reason = ""

    @property
    def budgets(self) -> dict[str, float]:
        """Those in force, by name."""
        return self._budgets

    def hold(self, budgets: dict[str, float]) -> None:
        """Hold these from now on, and no others; none gives the slider back.

        Raises:
            ValueError: one that cannot be held. What was in force stays.
        """
        governor = self._made(budgets) if budgets else None
        self.close()
        self._governor, self._budgets, self._reason = governor, dict(budgets), ""

    def __call__(self, frame: Any) -> Any:
        """What the network answers, at the point that is best now."""
        # A budget that is changed meanwhile holds from the next picture on.
        governor = self._governor
        return self._hand(frame) if governor is None else governor(frame)

    @property
    def told(self) -> str:
        """What the governor does, in words."""
        if self._governor is None:
            return ""
        state = self._governor.state
        held = ", ".join(f"{number(value)} {_UNITS[n]}" for n, value in state.budgets.items())
        expected = ", ".join(
            f"{number(value)} {_UNITS[name]}" for name, value in state.expected.items()
        )
        told = f"The governor holds {held}."
        if not state.feasible:
            told = f"No point holds {held}; the governor stays at the one nearest to that."
        if expected:
            told += f" It expects {expected} of this point."
        return f"{told} Last turn: {self._reason}." if self._reason else told

    def close(self) -> None:
        """Govern no more; the point stays."""
        if self._governor is not None:
            self._governor.close()
        self._governor, self._budgets = None, {}

    def _made(self, budgets: dict[str, float]) -> Governor:
        given: dict[str, Any] = {**budgets}
        if self._board is not None:
            given["device"] = self._board
        return Governor(self._hand, on_change=self._turned, **given)

    def _turned(self, change: Change) -> None:
        name = change.limit or ""
        self._reason = change.reason.replace(name, _TITLES.get(name, name))
