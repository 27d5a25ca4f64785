"""What everything costs that is not convolution: maps, lists, fills, and turning the knob.

python -m pytest bench/test_overheads.py --benchmark-enable --benchmark-json overheads.json
"""

from __future__ import annotations

from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from drowsy_kernels.tuning import ConvShape
from torch import Tensor

import drowsy
from bench.compiling import Compiler
from bench.measure import grain_of
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

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def problem(shape: ConvShape, device: torch.device) -> Problem:
    """A layer that sleeps."""
    return Problem(shape, IMAGES, "bf16", device)


def record(benchmark: Any, call: Any, device: torch.device, **info: Any) -> None:
    """Time one call of many in a graph, and put it into the recorded JSON.

    A graph's own launch takes as long as some of these; small tensors stay in the L2 cache.
    """
    timing = benchmark.pedantic(time_copies, args=([call] * REPEATS, device), rounds=1)
    benchmark.extra_info.update(timing.to_dict(), **info)


@shapes
@pytest.mark.parametrize("kind", ["neuron", "position", "tile", "channel"])
@pytest.mark.parametrize("source", list(SOURCES))
def test_map(
    benchmark: Any, problem: Problem, shape: ConvShape, kind: str, source: str, device: torch.device
) -> None:
    """Drawing a layer's map; its tables, which stay as they are, are made before."""
    grain = Grain.parse(grain_of(kind, shape))
    if source in ("fovea", "bluenoise") and not grain.of_single_positions:
        pytest.skip(f"{source} takes grains of single positions")
    spec = SleepSpec(source, grain)  # type: ignore[arg-type]
    threshold = torch.tensor([4], dtype=torch.int32, device=device)
    clock = torch.tensor([1, 0], device=device)
    tables = map_options(spec, problem.out_shape, clock)

    def call() -> object:
        return kernels.sleep_map(
            spec.source.name,
            problem.out_shape,
            cell=spec.grain.cell(shape.out_channels, shape.positions),
            k=spec.k,
            stream=spec.stream,
            threshold=threshold,
            clock=clock,
            **tables,
        )

    record(benchmark, call, device, shape=str(shape), kind=kind, source=source, images=IMAGES)


@shapes
@pytest.mark.parametrize("list_of", LISTS)
def test_compaction(
    benchmark: Any, problem: Problem, shape: ConvShape, list_of: str, device: torch.device
) -> None:
    """Listing who is awake, at rate 1/2."""
    sleep = problem.sleep_map(grain_of(KIND_OF[list_of], shape), 0.5)
    compact = getattr(kernels, f"awake_{list_of}")
    out = compact(sleep.bitmap, problem.out_shape, sleep.cell)

    def call() -> object:
        return compact(sleep.bitmap, problem.out_shape, sleep.cell, out=out)

    record(benchmark, call, device, shape=str(shape), list=list_of, images=IMAGES)


@shapes
@pytest.mark.parametrize("fill", ["zero", "nearest", "interpolate", "stencil"])
def test_fill(
    benchmark: Any, problem: Problem, shape: ConvShape, fill: str, device: torch.device
) -> None:
    """Writing the sleepers of a position map, at rate 1/2."""
    sleep = problem.sleep_map("position", 0.5)
    y = torch.randn(problem.out_shape, device=device).to(problem.dtype)
    y = y.contiguous(memory_format=torch.channels_last)
    table = torch.randn(256, 9, y.shape[1], device=device).to(problem.dtype)

    def call() -> object:
        return kernels.fill_sleepers(y, sleep.bitmap, sleep.cell, fill, table=table)

    record(benchmark, call, device, shape=str(shape), fill=fill, images=IMAGES)


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
