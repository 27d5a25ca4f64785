"""Time of every convolution of six networks, awake and asleep, against cuDNN and Inductor.

    python -m pytest bench/test_layers.py --benchmark-enable -m core --benchmark-json layers.json
    python -m pytest bench/test_layers.py --benchmark-enable -k "resnet50 and b32 and tile"

``-m core`` is what the headline figures need; the whole matrix takes hours. A test's name holds its
networks, shape, batch, number format and grain. Every way is compared with float64 before it is
timed; a wrong one fails the test and leaves no time, and the other ways keep theirs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.compiling import Compiler, Job
from bench.layers import Layer, layers
from bench.measure import measure_dense, measure_sleep, measure_ways
from bench.timing import Roofline
from bench.ways import OURS, Problem, eligible
from drowsy.files.tables import Row

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
) -> None:
    """Nobody asleep: ours, cuDNN's bare convolution and cuDNN's neuron."""
    row = benchmark.pedantic(measure_dense, args=(problem, roofline), rounds=1)
    benchmark.extra_info.update(row, networks=layer.counts)
    assert not failed(row)


@pytest.mark.parametrize(("layer", "batch", "number", "kind"), _cases(None))
def test_inductor(benchmark: Any, layer: Layer, problem: Problem, roofline: Roofline) -> None:
    """The same by Inductor, whose search takes most of a minute a shape, beside cuDNN's."""
    ways = ("cudnn", "inductor")
    row = benchmark.pedantic(measure_ways, args=(problem, roofline, ways), rounds=1)
    benchmark.extra_info.update(row, networks=layer.counts)


# Tiles first, single neurons last: there nothing can be skipped.
@pytest.mark.parametrize(
    ("layer", "batch", "number", "kind"), _cases("tile", "position", "channel", "neuron")
)
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
    assert not failed(row)


def failed(row: Row) -> dict[str, str]:
    """Ways of ours that could not be timed; a library may lack a way, we may not."""
    return {way: why for way, why in row["failed"].items() if way.split()[0] in OURS}
