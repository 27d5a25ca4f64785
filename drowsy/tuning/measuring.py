"""What every point of a knob takes on this machine, for a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drowsy.energy import Meter, NoMeter
from drowsy.energy.measurement import ratio
from drowsy.knob.point import OperatingPoint
from drowsy.tuning.machine import Machine
from drowsy.tuning.timing import in_turns, typical
from drowsy.tuning.waiting import Waiting


def measured(
    machine: Machine,
    points: Sequence[OperatingPoint],
    images: Tensor,
    seconds: float,
    waiting: Waiting,
    cost: str,
) -> list[OperatingPoint]:
    """Points with their milliseconds for a batch, and joules for an image where a meter is.

    Args:
        machine: runs them.
        points: one of them awake.
        images: the batch, where the machine is.
        seconds: for the milliseconds of all together; joules take five more each.
        waiting: watches the former.
        cost: that they save.

    Raises:
        NoMeter: the cost is joules, and nothing tells them.
    """
    runs = {
        str(n): lambda point=point: machine.run(point, images)  # type: ignore[misc]
        for n, point in enumerate(points)
    }
    place = next(n for n, point in enumerate(points) if point.is_awake)
    with waiting.watched():
        taken = in_turns(runs, seconds, cuda=images.is_cuda)
    found = typical(taken, str(place))
    counts = dict.fromkeys(runs, len(images))
    joules = joules_of(runs, counts, images.device, needed=cost == "joules")
    return [
        replace(point, latency_ms=found[str(n)], joules=joules[str(n)])
        for n, point in enumerate(points)
    ]


def joules_of(
    runs: Mapping[str, Callable[[], object]],
    images: Mapping[str, int],
    device: torch.device,
    needed: bool = False,
) -> dict[str, float | None]:
    """Joules an image of each run, whose calls are for so many; None where nothing tells them.

    Raises:
        NoMeter: they are ``needed``, and nothing tells them.
    """
    try:
        meter = Meter(str(device))
    except NoMeter:
        if needed:
            raise
        return dict.fromkeys(runs)
    meter.measure_idle()

    def a_call(run: Callable[[], object]) -> float | None:
        found = meter.measure(run)
        return found.known_per_call() if needed else found.joules_per_call

    return {name: ratio(a_call(run), images[name]) for name, run in runs.items()}
