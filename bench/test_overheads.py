"""What everything costs that is not convolution: maps, lists, fills, and turning the knob.

python -m pytest bench/test_overheads.py --benchmark-enable --benchmark-json overheads.json
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from drowsy_kernels.tuning import ConvShape
from torch import Tensor

import drowsy
from bench.compiling import Compiler, recorded
from bench.measure import KINDS, grain_of
from bench.networks import compile_ahead, convert, make_network, photographs
from bench.timing import time_call, time_copies
from bench.ways import LISTS, Problem
from drowsy.backends.triton import map_options
from drowsy.sleep import SOURCES, Grain, SleepSpec

# A large and a small map: VGG-16's second stage and ResNet-50's last.
SHAPES = (
    ConvShape(128, 128, (112, 112), (3, 3), padding=(1, 1, 1, 1)),
    ConvShape(512, 512, (7, 7), (3, 3), padding=(1, 1, 1, 1)),
)
IMAGES = 256
REPEATS = 32
KIND_OF = {"cells": "tile", "rows": "position", "channels": "channel"}

MAPS = [
    (source, kind)
    for source in SOURCES
    for kind in KINDS
    if source not in ("fovea", "bluenoise", "detail") or kind in ("neuron", "position")
]
Call = Callable[[], object]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


# --- calls ---------------------------------------------------------------------------------------


def map_call(problem: Problem, source: str, kind: str) -> Call:
    """Draws a layer's map; its tables are made before where they stay as they are."""
    shape, device = problem.shape, problem.device
    spec = SleepSpec(source, Grain.parse(grain_of(kind, shape)))  # type: ignore[arg-type]
    threshold = torch.tensor([4], dtype=torch.int32, device=device)
    clock = torch.tensor([1, 0], device=device)
    parts = torch.arange(28 * 28, dtype=torch.int32, device=device).view(1, 28, 28)
    given = (spec, problem.out_shape, clock, parts.expand(problem.out_shape[0], -1, -1))
    tables = map_options(*given)
    return lambda: kernels.sleep_map(
        spec.source.name,
        problem.out_shape,
        cell=spec.grain.cell(shape.out_channels, shape.positions),
        k=spec.k,
        stream=spec.stream,
        threshold=threshold,
        clock=clock,
        **(map_options(*given) if spec.source.sees else tables),
    )


def list_call(problem: Problem, list_of: str) -> Call:
    """Lists who is awake, at rate 1/2."""
    sleep = problem.sleep_map(grain_of(KIND_OF[list_of], problem.shape), 0.5)
    compact = getattr(kernels, f"awake_{list_of}")
    out = compact(sleep.bitmap, problem.out_shape, sleep.cell)
    return lambda: compact(sleep.bitmap, problem.out_shape, sleep.cell, out=out)


def fill_call(problem: Problem, fill: str) -> Call:
    """Writes the sleepers of a position map, at rate 1/2."""
    sleep = problem.sleep_map("position", 0.5)
    y = torch.randn(problem.out_shape, device=problem.device).to(problem.dtype)
    y = y.contiguous(memory_format=torch.channels_last)
    table = torch.randn(256, 9, y.shape[1], device=problem.device).to(problem.dtype)
    return lambda: kernels.fill_sleepers(y, sleep.bitmap, sleep.cell, fill, table=table)


# --- timing --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def problem_of(device: torch.device) -> Callable[[ConvShape], Problem]:
    """A layer that sleeps, by its shape; each is made once."""
    return functools.cache(lambda shape: Problem(shape, IMAGES, "bf16", device))


@pytest.fixture(scope="session")
def compiled(
    request: pytest.FixtureRequest,
    problem_of: Callable[[ConvShape], Problem],
    compiler: Compiler,
) -> None:
    """What the selected tests launch is compiled, all of it at once."""
    calls: dict[str, Callable[..., Call]] = {
        "test_map": map_call,
        "test_compaction": list_call,
        "test_fill": fill_call,
    }

    def launch_all() -> None:
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.originalname in calls:
                case: dict[str, Any] = dict(item.callspec.params)
                calls[item.originalname](problem_of(case.pop("shape")), **case)()

    compiler.compile(recorded(launch_all))


@pytest.fixture
def problem(
    shape: ConvShape, problem_of: Callable[[ConvShape], Problem], compiled: None
) -> Problem:
    """A test's layer."""
    return problem_of(shape)


def record(benchmark: Any, call: Call, problem: Problem, **info: str) -> None:
    """Time one call of many in a graph, and put it into the recorded JSON.

    A graph's own launch takes as long as some of these; small tensors stay in the L2 cache.
    """
    timing = benchmark.pedantic(time_copies, args=([call] * REPEATS, problem.device), rounds=1)
    head = {"shape": str(problem.shape), "images": problem.images}
    benchmark.extra_info.update(timing.to_dict(), **head, **info)


@shapes
@pytest.mark.parametrize(("source", "kind"), MAPS)
def test_map(benchmark: Any, problem: Problem, source: str, kind: str) -> None:
    """Drawing a map."""
    record(benchmark, map_call(problem, source, kind), problem, source=source, kind=kind)


@shapes
@pytest.mark.parametrize("list_of", LISTS)
def test_compaction(benchmark: Any, problem: Problem, list_of: str) -> None:
    """Listing who is awake."""
    record(benchmark, list_call(problem, list_of), problem, list=list_of)


@shapes
@pytest.mark.parametrize("fill", ["zero", "nearest", "interpolate", "stencil"])
def test_fill(benchmark: Any, problem: Problem, fill: str) -> None:
    """Writing the sleepers."""
    record(benchmark, fill_call(problem, fill), problem, fill=fill)


@pytest.mark.parametrize("turn", ["set", "reseed"])
@pytest.mark.parametrize("network", ["resnet50"])
def test_turn(
    benchmark: Any, network: str, turn: str, device: torch.device, compiler: Compiler
) -> None:
    """GPU time of ``net.set`` and ``net.reseed`` on a captured network that must stay captured."""
    model = make_network(network, "bf16", device)
    batch = photographs(network, IMAGES, torch.bfloat16, device)
    with torch.inference_mode():
        net = convert(model, "aligned", batch)
        net.set(0.25)
        compile_ahead(net, batch, compiler)
        fast = drowsy.deploy(net, batch)

        def outputs() -> Tensor:
            net.reseed(7)
            return fast(batch).clone()

        before, steps = outputs(), fast.steps
        act = (lambda: net.set(0.5)) if turn == "set" else (lambda: net.reseed(7))
        between = time_call(act, device)
        microseconds = [gpu_microseconds(act) for _ in range(15)]
        if not any(microseconds):
            # The profiler saw nothing: gaps between copies are then in the time.
            microseconds = [1e3 * ms for ms in between.samples]
        benchmark.pedantic(act, rounds=1)
        # Another rate gives other outputs of the same seed; the same seed, the same.
        followed = torch.equal(outputs(), before) == (turn == "reseed")
        captured_again = fast.steps is not steps
    benchmark.extra_info.update(
        network=network,
        turn=turn,
        gpu_us=microseconds,
        between_events=between.to_dict(),
        recaptured=captured_again,
        followed=followed,
    )
    assert followed
    assert not captured_again


def gpu_microseconds(act: Any) -> float:
    """What kernels and copies of ``act`` take on the GPU, gaps between them left out."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        act()
        torch.cuda.synchronize()
    return float(sum(event.self_device_time_total for event in profile.key_averages()))
