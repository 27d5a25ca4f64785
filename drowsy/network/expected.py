"""What sleep is expected to save of a network's time on the CPU, before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drowsy.backends.cpu.crossover import Layer, awake_cost, expected
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.neuron import autocast_dtype, padded


class ExpectedTimes(NamedTuple):
    """A layer's time as the CPU backend expects it, for one shape, dtype and number of threads.

    Attributes:
        share: of the time of all layers awake.
        ratios: time at rate ``j/k`` over that awake, for ``j`` from 0: below 1 sleep saves time.
    """

    share: float
    ratios: tuple[float, ...]


def expected_times(net: DrowsyNet, *args: Any, **kwargs: Any) -> dict[str, ExpectedTimes]:
    """Which layers sleep makes faster on the CPU, and which it does not.

    From what ``python -m bench.cpu_crossover`` has recorded, and from estimates where it has not:
    for the sources, grains and fills that the layers have, in the dtype, batch and layout of these
    arguments, and with as many threads as torch has now. The network runs once, awake.

    Args:
        net: on the CPU; its settings and clock stay.
        args, kwargs: as for a call of the network.

    Returns:
        layer name -> times, for the layers that ran; of several runs of a layer the sums.

    Raises:
        ValueError: a layer that is not on the CPU.
    """
    ran: dict[str, list[tuple[float, list[float]]]] = {}
    handles = []
    for name, layer in net.layers.items():
        if layer.weight.device.type != "cpu":
            raise ValueError(f"net: got {name} on {layer.weight.device}, allowed: cpu")
        note = _noting(ran.setdefault(name, []))
        handles.append(layer.register_forward_pre_hook(note))
    try:
        with torch.inference_mode(), net.kept(), net.control.nobody_asleep():
            net(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    whole = sum(awake for runs in ran.values() for awake, _ in runs)
    found = {}
    for name, runs in ran.items():
        awake = sum(cost for cost, _ in runs)
        if awake:
            sums = zip(*([cost * r for r in ratios] for cost, ratios in runs), strict=True)
            found[name] = ExpectedTimes(awake / whole, tuple(sum(each) / awake for each in sums))
    return found


def expected_time(times: Mapping[str, ExpectedTimes], thresholds: Mapping[str, int]) -> float:
    """Time of a network's convolutions over that awake; layers without a threshold are awake."""
    return sum(own.share * own.ratios[thresholds.get(name, 0)] for name, own in times.items())


def _noting(runs: list[tuple[float, list[float]]]) -> Any:
    def note(layer: DrowsyConv2d, inputs: tuple[Tensor, ...]) -> None:
        x, spec = padded(inputs[0].reshape(-1, *inputs[0].shape[-3:]), layer.spec)
        weight, dtype = layer.parameters_in_effect()[0], autocast_dtype(inputs[0])
        size = Layer.of(x, weight, spec)
        ratios = [expected(size, layer.sleep, j, dtype, layer.fill) for j in range(layer.sleep.k)]
        runs.append((awake_cost(size, dtype, torch.get_num_threads()), ratios))

    return note
