"""Whole networks: images a second and joules an image, at uniform rates and along a frontier.

    python -m pytest bench/test_networks.py --benchmark-enable -m core --benchmark-json out.json
    python -m pytest bench/test_networks.py --benchmark-enable -k "vgg16 and rest" --frontier f.json

A network's test comes in two parts: ``half``, rates 1/2 and 0, and ``rest``, its other rates, or
the points of a frontier. Both are set against eager torch with folded batch norms under a CUDA
graph, measured in the same run. ``test_max_autotune`` sets that against ``torch.compile``'s best;
its search takes minutes, so it is apart. Energy is read over windows of five seconds (NVML; where
there is none, the recorded JSON says so). A deployed network is compared with float64 at every rate
before it is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.compiling import Compiler
from bench.networks import (
    NETWORKS,
    VARIANTS,
    max_autotune,
    measure_dense,
    measure_network,
)
from drowsy.energy import Meter
from drowsy.files.tables import Row
from drowsy.knob.frontier import Frontier

# By what was asked of a network: the rates that are measured.
RATES = {"half": (0.5, 0.0), "rest": (0.25, 0.75, 0.125, 0.375, 0.625, 0.875)}
CORE_RATES = {"half": (0.5, 0.0), "rest": (0.25, 0.75)}
CORE = (
    ("resnet50", "aligned"),
    ("vgg16", "position"),
    ("vgg16", "tile:128x64"),
    ("resnet50", "channel"),
    ("vgg16", "channel"),
)
SECONDS = 5.0


def _cases() -> list[Any]:
    every = [
        (network, images, number, variant)
        for number in ("bf16", "fp16", "tf32")
        for images in (256, 32, 1)
        for network in NETWORKS
        for variant in VARIANTS
    ]
    core = [(network, 256, "bf16", variant) for network, variant in CORE]
    found = []
    for case in [*core, *(case for case in every if case not in core)]:
        network, images, number, variant = case
        marks = [pytest.mark.core] if case in core else []
        name = f"{network}-b{images}-{number}-{variant}"
        found += [pytest.param(*case, part, id=f"{name}-{part}", marks=marks) for part in RATES]
    return found


@pytest.fixture(scope="session")
def meter(device: torch.device) -> Meter | None:
    """The GPU's meter, its idle power read before any work; None where it cannot be read."""
    try:
        found = Meter(device)
        found.measure_idle(SECONDS)
    except (ImportError, RuntimeError) as error:
        print(f"no energy: {error}")
        return None
    return found


@pytest.fixture(scope="session")
def baseline(device: torch.device, meter: Meter | None) -> Callable[[str, int, str], Row]:
    """Dense networks in eager torch, each measured once."""

    @functools.cache
    def dense(network: str, images: int, number: str) -> Row:
        return measure_dense(network, images, number, device, meter=meter, seconds=SECONDS)

    return dense


@pytest.mark.parametrize(("network", "images", "number", "variant", "part"), _cases())
def test_network(
    benchmark: Any,
    request: pytest.FixtureRequest,
    network: str,
    images: int,
    number: str,
    variant: str,
    part: str,
    device: torch.device,
    meter: Meter | None,
    baseline: Callable[[str, int, str], Row],
    compiler: Compiler,
) -> None:
    """Time and energy against saving."""
    path = request.config.option.frontier
    core = request.config.option.markexpr == "core"
    along = path and part == "rest"
    settings = Frontier.load(path).points if along else (CORE_RATES if core else RATES)[part]
    row = benchmark.pedantic(
        measure_network,
        args=(network, images, number, variant, settings, device),
        kwargs={
            "baselines": {"eager_graph": baseline(network, images, number)},
            "meter": meter,
            "seconds": SECONDS,
            "compiler": compiler,
        },
        rounds=1,
    )
    benchmark.extra_info.update(row)


@pytest.mark.parametrize(
    ("network", "images", "number"),
    [
        pytest.param(network, 256, "bf16", marks=pytest.mark.core, id=f"{network}-b256-bf16")
        for network in ("vgg16", "resnet50")
    ],
)
def test_max_autotune(
    benchmark: Any,
    network: str,
    images: int,
    number: str,
    device: torch.device,
    meter: Meter | None,
    baseline: Callable[[str, int, str], Row],
) -> None:
    """Dense networks by ``torch.compile``'s best, beside eager torch."""
    row = benchmark.pedantic(
        measure_dense,
        args=(network, images, number, device),
        kwargs={"meter": meter, "seconds": SECONDS, "way": max_autotune},
        rounds=1,
    )
    baselines = {"eager_graph": baseline(network, images, number), "max_autotune": row}
    benchmark.extra_info.update(network=network, images=images, number=number, baselines=baselines)
