"""Time of every convolution of six networks, awake and asleep, against cuDNN and Inductor.

    python -m pytest bench/test_layers.py --benchmark-enable -m core --benchmark-json layers.json
    python -m pytest bench/test_layers.py --benchmark-enable -k "resnet50 and b32 and tile"

``-m core`` is what the headline figures need; the whole matrix takes hours. A test's name holds its
networks, shape, batch, number format and grain. Every way is compared with float64 before it is
timed; a wrong one fails the test and leaves no time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.compiling import Compiler, Job
from bench.conftest import Budget
from bench.layers import Layer, layers
from bench.measure import KINDS, measure_dense, measure_sleep, time_way
from bench.timing import Roofline
from bench.ways import LIBRARY, OURS, Problem, eligible

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


def _cases(*kinds: str | None) -> list[Any]:
    """Cases of the core set first, then the rest."""
    found = []
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
        found.append(pytest.param(*case, id=f"{name}-{kind}" if kind else name, marks=marks))
    return found


@pytest.fixture(scope="session")
def compiling(request: pytest.FixtureRequest, compiler: Compiler) -> Compiler:
    """Has begun to compile what the selected tests will launch, in their order."""
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.module.__name__ == __name__:
            case: dict[str, Any] = item.callspec.params
            compiler.start(_jobs(**case))
    return compiler


def _jobs(layer: Layer, batch: int, number: str, kind: str | None) -> list[Job]:
    every = (
        Job(layer.shape, batch, number, asleep, way)
        for asleep in dict.fromkeys((None, kind))
        for way in OURS
    )
    return [job for job in every if eligible(job.way, job.shape, job.number, job.cell)]


@pytest.fixture
def problem(
    layer: Layer,
    batch: int,
    number: str,
    kind: str | None,
    device: torch.device,
    compiling: Compiler,
) -> Problem:
    """A test's tensors, once its kernels are compiled."""
    for job in _jobs(layer, batch, number, kind):
        compiling.wait(job)
    return Problem(layer.shape, batch, number, device)


@pytest.mark.parametrize(("layer", "batch", "number", "kind"), _cases(None))
def test_dense(
    benchmark: Any,
    layer: Layer,
    problem: Problem,
    roofline: Roofline,
    inductor_budget: Budget,
) -> None:
    """Nobody asleep: ours, cuDNN's bare convolution, cuDNN's neuron, and Inductor's."""
    ways = [way for way in LIBRARY if way != "inductor"]
    row = benchmark.pedantic(measure_dense, args=(problem, roofline, ways), rounds=1)
    if inductor_budget.left():
        # Its search compiles for most of a minute a shape.
        with inductor_budget.spending():
            try:
                row["ways"]["inductor"] = time_way(problem, "inductor", None, roofline, 0.0)
            except Exception as error:  # whatever it is, it must not cost us the other times
                row["inductor_failed"] = f"{type(error).__name__}: {error}"[:500]
    benchmark.extra_info.update(row, networks=layer.counts)


@pytest.mark.parametrize(("layer", "batch", "number", "kind"), _cases(*KINDS))
def test_sleep(
    benchmark: Any,
    request: pytest.FixtureRequest,
    layer: Layer,
    kind: str,
    problem: Problem,
    roofline: Roofline,
) -> None:
    """Time against rate; a map of independent bits, its list built ahead and within."""
    core = request.config.option.markexpr == "core"
    rates = ((0.5,) if kind == "neuron" else CORE_RATES) if core else RATES
    row = benchmark.pedantic(measure_sleep, args=(problem, kind, rates, roofline), rounds=1)
    benchmark.extra_info.update(row, networks=layer.counts)
