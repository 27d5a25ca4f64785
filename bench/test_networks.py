"""Whole networks: images a second and joules an image, at uniform rates and along a frontier.

    python -m pytest bench/test_networks.py --benchmark-enable -m core --benchmark-json out.json
    python -m pytest bench/test_networks.py --benchmark-enable -k vgg16 --frontier frontier.json

The dense baseline is the faster of eager torch with folded batch norms under a CUDA graph and
``torch.compile(mode="max-autotune")``, measured in the same run. Energy is read over windows of
five seconds (NVML; where there is none, the recorded JSON says so).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.compiling import Compiler
from bench.conftest import Budget
from bench.networks import NETWORKS, VARIANTS, measure_baselines, measure_network
from drowsy.energy import Meter
from drowsy.knob.frontier import Frontier

RATES = tuple(j / 8 for j in range(8))
CORE_RATES = (0.5, 0.0, 0.25, 0.75)
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
        found.append(pytest.param(*case, id=name, marks=marks))
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
def baselines(
    device: torch.device, meter: Meter | None, inductor_budget: Budget
) -> Callable[[str, int, str], dict[str, Any]]:
    """Dense networks, each measured once."""
    known: dict[tuple[str, int, str], dict[str, Any]] = {}

    def measured(network: str, images: int, number: str) -> dict[str, Any]:
        key = (network, images, number)
        if key not in known:
            with inductor_budget.spending():
                known[key] = measure_baselines(
                    *key, device, meter=meter, seconds=SECONDS, compiled=inductor_budget.left()
                )
        return known[key]

    return measured


@pytest.mark.parametrize(("network", "images", "number", "variant"), _cases())
def test_network(
    benchmark: Any,
    request: pytest.FixtureRequest,
    network: str,
    images: int,
    number: str,
    variant: str,
    device: torch.device,
    meter: Meter | None,
    baselines: Callable[[str, int, str], dict[str, Any]],
    compiler: Compiler,
) -> None:
    """Time and energy against saving."""
    path = request.config.option.frontier
    core = request.config.option.markexpr == "core"
    settings = Frontier.load(path).points if path else CORE_RATES if core else RATES
    row = benchmark.pedantic(
        measure_network,
        args=(network, images, number, variant, settings, device),
        kwargs={
            "baselines": baselines(network, images, number),
            "meter": meter,
            "seconds": SECONDS,
            "compiler": compiler,
        },
        rounds=1,
    )
    benchmark.extra_info.update(row)
