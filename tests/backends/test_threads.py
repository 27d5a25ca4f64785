"""One layer, or the tables of many, in several threads at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from drowsy.backends import cpu
from drowsy.backends.cpu.crossover import Layer, candidates
from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import NEIGHBOUR_FILLS, SOURCES, Grain, SleepSpec, memory, simplest

THREADS = 4


@pytest.fixture(autouse=True)
def _one_thread_each() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_threads(work: Callable[[int], None]) -> None:
    """Do it in every thread, all of them started at one moment; the first error is raised."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> None:
        start.wait(timeout=60)
        with torch.inference_mode():  # a thread's own
            work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(run, number) for number in range(THREADS)]:
            done.result(timeout=60)


def layers(x: Tensor) -> Iterator[tuple[str, DrowsyConv2d]]:
    """Every way with every source, and the grains and fills that it goes with."""
    for source, grain, fill in itertools.product(
        SOURCES, ("position:8", "channel:4", "tile:4x8"), ("zero", "interpolate")
    ):
        if not Grain.parse(grain).of_single_positions and (
            fill in NEIGHBOUR_FILLS or source in ("fovea", "bluenoise")
        ):
            continue
        if SOURCES[source].sees:  # takes none of these ways, nor runs without a network
            continue
        layer = DrowsyConv2d(8, 16, 3, padding=1, sleep=SleepSpec(source, grain))
        layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)
        layer.set(rate=0.5, fill=fill)
        layer.control.advance = lambda images: None  # type: ignore[method-assign]
        sizes, sleep = Layer.of(x, layer.weight, layer.spec), simplest(layer.sleep, 4)
        for way in candidates(sizes, sleep):
            yield way, layer


def test_layers_give_what_they_give_alone_while_tables_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With memory for a table or two, so that threads drop each other's."""
    way = threading.local()
    monkeypatch.setattr(cpu.ways, "fastest", lambda *_: way.name)
    x = torch.randn(THREADS, 2, 8, 9, 10)
    inputs = [each.contiguous(memory_format=torch.channels_last) for each in x]
    cases = list(layers(inputs[0]))
    exact: list[list[Tensor]] = []
    with torch.inference_mode():
        for name, layer in cases:
            way.name = name
            exact.append([layer(each) for each in inputs])
    monkeypatch.setattr(memory.remembered, "_limit", 1 << 12)

    def work(number: int) -> None:
        for case in range(len(cases)):
            # Each thread begins elsewhere.
            case = (case + number * len(cases) // THREADS) % len(cases)
            way.name, layer = cases[case]
            assert torch.equal(layer(inputs[number]), exact[case][number]), cases[case]

    in_threads(work)
    kept = memory.remembered._kept.values()
    assert memory.remembered._held == sum(size for _, size, _ in kept)


@pytest.mark.parametrize(("source", "fill"), [("lattice", "interpolate"), ("bernoulli", "nearest")])
def test_a_call_has_one_clock_whatever_others_advance(source: str, fill: str) -> None:
    """Each output is that of one image index: map and fill are of the same."""
    layer = DrowsyConv2d(16, 16, 3, padding=1, sleep=SleepSpec(source, "position"), rate=0.5)
    layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)
    layer.set(fill=fill)
    x = torch.randn(1, 16, 12, 12).to(memory_format=torch.channels_last)
    calls = 50
    exact = []
    with torch.inference_mode():
        for image in range(THREADS * calls):
            layer.control.reseed(0, image)
            exact.append(layer(x))
    known = {bytes(y.numpy().tobytes()) for y in exact}
    layer.control.reseed(0)

    def work(_: int) -> None:
        for _ in range(calls):
            assert layer(x).numpy().tobytes() in known

    in_threads(work)


def test_the_operator_reads_the_knob_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What turns after a call has begun is for the next: as other threads do, in the middle."""
    layer = DrowsyConv2d(16, 16, 3, padding=1, sleep=SleepSpec("lattice", "position"), rate=0.5)
    layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)
    layer.set(fill="interpolate")
    x = torch.randn(3, 16, 12, 12).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = layer(x)
        layer.control.reseed(0)
        run = cpu.ways.run

        def turning(*arguments: object) -> Tensor:
            layer.set(rate=0.25, fill="rescale")
            layer.control.reseed(7, 100)
            return run(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(cpu.ways, "run", turning)
        assert torch.equal(layer(x), exact)


def test_a_layer_has_threshold_and_scale_of_one_setting() -> None:
    """Outputs of 1, rescaled: their mean is 1 at every rate, and never at two rates mixed."""
    layer = DrowsyConv2d(8, 8, 1, sleep=SleepSpec("lattice", "position")).requires_grad_(False)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.ones_(layer.bias)  # type: ignore[arg-type]
    layer.control.advance = lambda images: None  # type: ignore[method-assign]
    layer.set(rate=0.5, fill="rescale")
    x = torch.ones(1, 8, 8, 8)
    finished: list[int] = []

    def work(number: int) -> None:
        if number == 0:  # turns the knob while others run the layer
            while len(finished) < THREADS - 1:
                for j in (2, 4, 6):
                    layer.set(rate=j / 8)
            return
        try:
            for _ in range(300):
                assert layer(x).mean() == pytest.approx(1, abs=1e-6)
        finally:
            finished.append(number)

    in_threads(work)
