"""Latency and joules of a network's operating points, so that the knob can be turned by them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from drowsy.energy.measurement import MIN_SECONDS, Measurement, ratio
from drowsy.energy.meter import Meter, check_seconds
from drowsy.files.tables import align
from drowsy.images.checks import check_images
from drowsy.knob.costs import layer_shares, network_cost, saving
from drowsy.knob.frontier import SAVES, Frontier, spared
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule
from drowsy.network.net import DrowsyNet
from drowsy.sensors.sensor import clock

_GAIN_SECONDS = 0.5  # for the latency of one layer at one rate


@dataclass(frozen=True)
class Profile:
    """One operating point, and the measurements behind its latency and joules.

    Attributes:
        point: with ``latency_ms`` and ``joules`` filled in.
        latencies_ms: of single batches, raw.
        measurement: calls are batches; None without a meter.
    """

    point: OperatingPoint
    latencies_ms: tuple[float, ...]
    measurement: Measurement | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {
            "point": self.point.to_dict(),
            "latencies_ms": list(self.latencies_ms),
            "measurement": None if self.measurement is None else self.measurement.to_dict(),
        }


@overload
def profile(
    net: DrowsyNet,
    images: Tensor,
    points: Frontier,
    *,
    meter: Meter | None,
    seconds: float = ...,
    forward: Callable[[Tensor], object] | None = ...,
    each: Callable[[Profile], object] | None = ...,
) -> Frontier: ...


@overload
def profile(
    net: DrowsyNet,
    images: Tensor,
    points: Iterable[OperatingPoint | Schedule],
    *,
    meter: Meter | None,
    seconds: float = ...,
    forward: Callable[[Tensor], object] | None = ...,
    each: Callable[[Profile], object] | None = ...,
) -> list[OperatingPoint]: ...


def profile(
    net: DrowsyNet,
    images: Tensor,
    points: Frontier | Iterable[OperatingPoint | Schedule],
    *,
    meter: Meter | None,
    seconds: float = MIN_SECONDS,
    forward: Callable[[Tensor], object] | None = None,
    each: Callable[[Profile], object] | None = None,
) -> Frontier | list[OperatingPoint]:
    """Measure latency and energy of operating points, so that the knob can be turned by them.

        meter = Meter(0)
        meter.measure_idle()
        frontier = profile(net, images, frontier, meter=meter)
        net.set(frontier.at(joules=0.2))

    Args:
        net: the network, in the place, dtype and memory format in which it will run. Its setting is
            restored.
        images: float ``[N, C, H, W]``, real ones: one batch of the size that will run.
        points: a frontier, or operating points or schedules.
        meter: of the device that the network runs on; None measures latency only and leaves
            ``joules`` None (where there is no meter, ``Meter`` says why).
        seconds: least time for the energy of one point; its latency takes up to a second more.
        forward: what is run, by default ``net``: a compiled or captured form of it that follows
            ``net.set``.
        each: called with the ``Profile`` of every point as soon as it is measured.

    Returns:
        A frontier for a frontier, otherwise the points in their order: ``latency_ms`` is the median
        over batches (between CUDA events, or wall time on the CPU), ``joules`` the energy of a
        batch over its images, idle power included.
    """
    check_images(images)
    check_seconds(seconds)
    where = str(images.device)
    if meter is not None and not any(f"{each}:".startswith(f"{where}:") for each in meter.devices):
        raise ValueError(
            f"meter: got one of {', '.join(meter.devices)}, allowed: one of {where}, where the "
            "images are"
        )
    run = net if forward is None else forward
    restored, done = net.schedule, []
    try:
        with torch.inference_mode():
            for point in _points(net, images, points):
                net.set(point)
                done.append(_profile(point, lambda: run(images), images, meter, seconds))
                if each is not None:
                    each(done[-1])
    finally:
        net.set(restored)
    measured = [one.point for one in done]
    if isinstance(points, Frontier):
        return Frontier(measured, points.objective, points.cost, source=points.source)
    return measured


def measured_gains(
    net: DrowsyNet,
    images: Tensor,
    cost: str,
    *,
    meter: Meter | None = None,
    forward: Callable[[Tensor], object] | None = None,
) -> np.ndarray:
    """What each layer alone saves, measured: how a search sees latency or joules.

    Args:
        net, images, forward: as for ``profile``.
        cost: ``latency`` or ``joules``.
        meter: for joules.

    Returns:
        float64 ``[layers, k]``: fraction of the whole network's cost that a layer saves at rates
        ``0 .. (k-1)/k`` while the others are awake; below 0 where its sleep costs more than it
        saves. Layers of ``net.resting``, which searches leave awake, are not measured: 0.

    Raises:
        NoMeter: joules, and the meter tells none.
    """
    check_images(images)
    net.settle(images[:1])
    k, own = net.k, net.schedule
    free = [name for name in own.layers if name not in net.resting]
    schedules = [Schedule(k, {n: replace(s, rate=Fraction(0)) for n, s in own.layers.items()})]
    for name in free:
        schedules += [
            Schedule(k, {**schedules[0].layers, name: replace(own.layers[name], rate=rate)})
            for rate in (Fraction(j, k) for j in range(1, k))
        ]
    seconds = MIN_SECONDS if cost == "joules" else _GAIN_SECONDS
    each = _check_metered if cost == "joules" else None
    points = profile(
        net, images, schedules, meter=meter, seconds=seconds, forward=forward, each=each
    )
    awake, *alone = [-spared(point, cost) for point in points]
    table = np.zeros((len(own.layers), k))
    rows = [name in free for name in own.layers]
    table[rows, 1:] = 1 - np.array(alone).reshape(len(free), k - 1) / awake
    return table


def profile_table(profiles: Iterable[Profile], images: int) -> str:
    """Saving, latency (median and quartiles of batches of ``images``) and joules of each point, as
    aligned text."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    names = ("latency ms", "quartiles", "J/image", "above idle", "integral - counter")
    rows = [(f"{SAVES['macs']} saved", *names)]
    for one in profiles:
        taken = one.measurement
        low, _, high = statistics.quantiles(one.latencies_ms, n=4)
        above = None if taken is None else ratio(taken.joules_above_idle_per_call, images)
        rows.append(
            (
                f"{one.point.saving:.1%}",
                cell(one.point.latency_ms, ".3f"),
                f"{low:.3f} - {high:.3f}",
                cell(one.point.joules, ".4g"),
                cell(above, ".4g"),
                cell(None if taken is None else taken.disagreement, "+.1%"),
            )
        )
    return align(rows)


def _points(
    net: DrowsyNet, images: Tensor, points: Frontier | Iterable[OperatingPoint | Schedule]
) -> list[OperatingPoint]:
    if isinstance(points, Frontier):
        # Rate 0 need not be an optimal point; losses count from it all the same.
        awake = points.reference
        extra = [] if awake is None or awake in points.points else [awake]
        points = [*extra, *points.points]
    shares = layer_shares(network_cost(net, images.shape[1:]))
    found = []
    for point in points:
        if isinstance(point, Schedule):
            rates = {name: layer.rate for name, layer in point.layers.items()}
            point = OperatingPoint(point, saving(rates, shares))
        if not isinstance(point, OperatingPoint):
            raise TypeError(
                f"points: got {point!r}, allowed: a Frontier, or OperatingPoints or Schedules"
            )
        found.append(point)
    if not found:
        raise ValueError("points: got none, allowed: one or more")
    return found


def _profile(
    point: OperatingPoint,
    run: Callable[[], object],
    images: Tensor,
    meter: Meter | None,
    seconds: float,
) -> Profile:
    latencies = _latencies(run, min(seconds, 1.0), images.is_cuda)
    measurement = None if meter is None else meter.measure(run, seconds=seconds)
    joules = None if measurement is None else ratio(measurement.joules_per_call, len(images))
    point = replace(point, latency_ms=statistics.median(latencies), joules=joules)
    return Profile(point, tuple(latencies), measurement)


def _check_metered(one: Profile) -> None:
    assert one.measurement is not None, "joules are of a meter"
    one.measurement.known_per_call()


def _latencies(run: Callable[[], object], seconds: float, cuda: bool) -> list[float]:
    """Milliseconds of single calls: five at least, more until this time is over."""
    for _ in range(3):
        run()
    found: list[float] = []
    stop = clock.now() + seconds
    while not found or clock.now() < stop:
        found += _event_times(run) if cuda else _wall_times(run)
    return found


def _wall_times(run: Callable[[], object], calls: int = 5) -> list[float]:
    times = [clock.now()]
    for _ in range(calls):
        run()
        times.append(clock.now())
    return [1e3 * (b - a) for a, b in itertools.pairwise(times)]


def _event_times(run: Callable[[], object], calls: int = 5) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
