"""What the knob is asked for, in any of its forms, as one wish a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from drowsy.knob.frontier import Frontier
from drowsy.knob.schedule import Schedule
from drowsy.sleep import threshold

Rate = float | Fraction


class Scheduled(Protocol):
    """What has a schedule, as an ``OperatingPoint`` has."""

    @property
    def schedule(self) -> Schedule:
        """The setting of every layer."""


@dataclass(frozen=True)
class Wish:
    """What one layer is to have; None leaves what it has.

    Attributes:
        threshold: ``j`` of its rate ``j/k``.
        fill, grain, stream, phase: as ``DrowsyConv2d.stage`` takes them.
    """

    threshold: int
    fill: str | None = None
    grain: str | None = None
    stream: int | None = None
    phase: int | None = None


def wishes(
    setting: Rate | Mapping[str, Rate] | Schedule | Scheduled, present: Mapping[str, int], k: int
) -> dict[str, Wish]:
    """A wish for every layer, in their order.

    Args:
        setting: as ``DrowsyNet.set`` takes it.
        present: thresholds in force by layer.
        k: rates are multiples of ``1/k``.

    Raises:
        TypeError: a frontier, which is many settings, or what is no rate.
        ValueError: an unknown layer, a rate that is not allowed, a schedule for another ``k``.
    """
    if isinstance(setting, Frontier):
        raise TypeError(
            f"setting: got {setting!r}, allowed: one of its points, as frontier.at(saving=0.25)"
        )
    setting = getattr(setting, "schedule", setting)
    if isinstance(setting, Schedule):
        if setting.k != k:
            raise ValueError(f"schedule: has k = {setting.k}, the network has k = {k}")
        _check_names(setting.layers, present)
        thresholds = setting.thresholds()
        told = {
            name: Wish(thresholds[name], each.fill, each.grain, each.stream, each.phase)
            for name, each in setting.layers.items()
        }
        return {name: told.get(name, Wish(0)) for name in present}
    if isinstance(setting, Mapping):
        _check_names(setting, present)
        asked = {name: threshold(rate, k) for name, rate in setting.items()}
        return {name: Wish(asked.get(name, j)) for name, j in present.items()}
    return dict.fromkeys(present, Wish(threshold(setting, k)))  # type: ignore[arg-type]


def _check_names(names: Iterable[str], present: Mapping[str, int]) -> None:
    if unknown := [name for name in names if name not in present]:
        raise ValueError(
            f"layer: {', '.join(map(repr, unknown))} unknown; there are {', '.join(present)}"
        )
