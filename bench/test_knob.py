"""What the knob costs: turning it, and having it at rate 0."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drowsy

NETWORKS = ("squeezenet1_1", "resnet18", "caffenet_cifar")


@pytest.mark.parametrize("network", NETWORKS, indirect=True)
def test_set(benchmark: Any, network: nn.Module) -> None:
    """``net.set`` with a full schedule, the form a frontier's point has."""
    net = drowsy.convert(network)
    net.set(0.5)
    schedules = [net.schedule]
    net.set(0.25)
    schedules.append(net.schedule)
    turn = iter(range(10**9))
    benchmark(lambda: net.set(schedules[next(turn) % 2]))
    benchmark.extra_info["layers"] = len(net.layers)


@pytest.mark.parametrize("network", NETWORKS[:2], indirect=True)
def test_overhead_at_rate_0(benchmark: Any, network: nn.Module, photographs: Tensor) -> None:
    """The converted network awake against the original, eager: medians of alternating runs."""
    net = drowsy.convert(network)

    def alternate(rounds: int = 25) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"original": [], "converted": []}
        for _ in range(rounds):
            for name, model in (("original", network), ("converted", net)):
                start = time.perf_counter()
                model(photographs)
                times[name].append(time.perf_counter() - start)
        return times

    with torch.inference_mode():
        alternate(3)
        times = benchmark.pedantic(alternate, rounds=1)
    ratio = statistics.median(times["converted"]) / statistics.median(times["original"])
    benchmark.extra_info.update(ratio=ratio, **times)
    assert ratio < 1.03
