"""Time of every convolution of six networks, awake and asleep, against cuDNN and Inductor.

    python -m pytest bench/test_layers.py --benchmark-enable -m core --benchmark-json layers.json
    python -m pytest bench/test_layers.py --benchmark-enable -k "resnet50 and b32 and tile"

``-m core`` is what the headline figures need; the whole matrix takes hours. A test's name holds its
networks, shape, batch, number format and grain. Every way is compared with float64 before it is
timed; a wrong one fails the test and leaves no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.conftest import Budget
from bench.layers import Layer, layers
from bench.measure import KINDS, measure_dense, measure_sleep
from bench.timing import Roofline
from bench.ways import LIBRARY, Problem

BATCHES = (256, 32, 1)
NUMBERS = ("bf16", "fp16", "tf32")
RATES = tuple(j / 8 for j in range(1, 8))
CORE_RATES = (0.25, 0.5, 0.75)
CORE_NETWORKS = {"vgg16", "resnet50", "caffenet"}
_ALL = layers("vgg16", "resnet50", "caffenet", "resnet18", "squeezenet1_1", "mobilenet_v2")


def _is_core(layer: Layer, batch: int, number: str, kind: str | None) -> bool:
    """What the headline figures need: dense layers of three networks, asleep the 3x3 of two."""
    if (batch, number) != (256, "bf16"):
        return False
    if kind is None:
        return bool(CORE_NETWORKS & layer.counts.keys())
    wide = layer.shape.kernel_size == (3, 3) and layer.shape.channels > 3
    return wide and bool({"vgg16", "resnet50"} & layer.counts.keys())


def _cases(kinds: tuple[str | None, ...]) -> Iterator[Any]:
    """Cases of the core set first, then the rest."""
    every = [
        (layer, batch, number, kind)
        for kind in kinds
        for number in NUMBERS
        for batch in BATCHES
        for layer in _ALL
    ]
    for case in sorted(every, key=lambda case: not _is_core(*case)):
        layer, batch, number, kind = case
        name = f"{'+'.join(layer.counts)}-{layer}-b{batch}-{number}"
        marks = [pytest.mark.core] if _is_core(*case) else []
        yield pytest.param(*case, id=f"{name}-{kind}" if kind else name, marks=marks)


@pytest.mark.parametrize(("layer", "batch", "number", "kind"), _cases((None,)))
def test_dense(
    benchmark: Any,
    layer: Layer,
    batch: int,
    number: str,
    kind: None,
    device: torch.device,
    roofline: Roofline,
    inductor_budget: Budget,
) -> None:
    """Nobody asleep: ours, cuDNN's bare convolution, cuDNN's neuron, and Inductor's."""
    problem = Problem(layer.shape, batch, number, device)
    ways = [way for way in LIBRARY if way != "inductor"]
    row = benchmark.pedantic(measure_dense, args=(problem, roofline, ways), rounds=1)
    if inductor_budget.left():
        # Its search compiles for most of a minute a shape.
        with inductor_budget.spending():
            with_inductor = measure_dense(problem, roofline, ["inductor"])
        row["ways"]["inductor"] = with_inductor["ways"]["inductor"]
    benchmark.extra_info.update(row, networks=layer.counts)


@pytest.mark.parametrize(("layer", "batch", "number", "kind"), _cases(KINDS))
def test_sleep(
    benchmark: Any,
    request: pytest.FixtureRequest,
    layer: Layer,
    batch: int,
    number: str,
    kind: str,
    device: torch.device,
    roofline: Roofline,
) -> None:
    """Time against rate; a map of independent bits, its list built ahead and within."""
    core = request.config.option.markexpr == "core"
    rates = ((0.5,) if kind == "neuron" else CORE_RATES) if core else RATES
    problem = Problem(layer.shape, batch, number, device)
    row = benchmark.pedantic(measure_sleep, args=(problem, kind, rates, roofline), rounds=1)
    benchmark.extra_info.update(row, networks=layer.counts)
