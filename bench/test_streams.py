"""Streams on the GPU: the time of a frame at 1/2 and 1/4 of the work, against the awake network.

    python -m pytest bench/test_streams.py --benchmark-enable --benchmark-json streams.json

The awake network is eager torch with folded batch norms under a CUDA graph, measured in the same
run on the same frames. A stream, one captured graph too, is timed dense (each frame a slot's
first) and in bands. Before it is timed it is compared with float64. Beside the GPU's time of a call
stands the host's: what a single camera waits for where the network is small.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import drowsy
from bench.compiling import Compiler, recorded
from bench.networks import convert, eager_graph, make_network
from bench.timing import DTYPES, activations, time_call
from bench.ways import RedCheck
from drowsy.files.tables import Row

CASES = [
    (network, side, images)
    for side in (224, 448)
    for images in (1, 8)
    for network in ("resnet18", "resnet50")
]
NUMBER = "bf16"
# Share of the picture that sleeps.
RATES = (Fraction(1, 2), Fraction(3, 4))
# Frames that calls take in turn, slots that are compared, and calls whose time on the host counts.
_FRAMES, _CHECKED, _CALLS = 4, 2, 50


def clip(images: int, side: int, device: torch.device) -> list[Tensor]:
    """Frames ``[images, 3, side, side]``, smooth as pictures are, moved from one to the next."""
    generator = torch.Generator(device).manual_seed(1)
    first = activations((images, 3, side, side), DTYPES[NUMBER], generator)
    return [first.roll((4 * i, 8 * i), (2, 3)) for i in range(_FRAMES)]


def stream_of(net: drowsy.DrowsyNet, slots: int, backend: str) -> drowsy.Stream:
    """Bands, and no cut in a clip that moves."""
    return drowsy.Stream(net, slots, rate=RATES[0], cut=None, backend=backend)


def check(net: drowsy.DrowsyNet, stream: drowsy.Stream, frames: list[Tensor]) -> None:
    """Raise unless a stream does what it should.

    Its root mean square error against slabs in float64, over a few slots, is at most twice that of
    slabs in the frames' number format.
    """
    slots = range(min(_CHECKED, len(frames[0])))
    shown = [frame[: len(slots)] for frame in frames]
    stream.reset()
    got = torch.stack([stream(frame, slots) for frame in shown]).double()
    exact, eager = (_slabs(net, shown, dtype) for dtype in (torch.float64, shown[0].dtype))
    error, allowed = ((each - exact).square().mean().sqrt() for each in (got, eager))
    size = exact.square().mean().sqrt()
    if not bool(error <= 2 * allowed + 1e-6 * size):
        raise RedCheck(
            f"stream: error {float(error / size):.3e} against float64, of slabs "
            f"{float(allowed / size):.3e}; not timed"
        )


def _slabs(net: drowsy.DrowsyNet, frames: list[Tensor], dtype: torch.dtype) -> Tensor:
    """What slabs put out, in eager torch and a number format."""
    twin = copy.deepcopy(net).to(dtype)
    for layer in twin.layers.values():
        layer.backend = "torch"
    twin.refresh()
    slabs = stream_of(twin, len(frames[0]), "torch")
    return torch.stack([slabs(frame.to(dtype)) for frame in frames]).double()


def host_us(run: Callable[[], object]) -> float:
    """Median time of a call on the host, which does not wait for the GPU, in microseconds."""
    taken = []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        run()
        taken.append(1e6 * (time.perf_counter() - begin))
    torch.cuda.synchronize()
    return statistics.median(taken)


def measure(network: str, side: int, images: int, device: torch.device, compiler: Compiler) -> Row:
    """Times of the awake network and of a stream, dense and asleep.

    Raises:
        RedCheck: a stream that is further from float64 than slabs allow, or that is not Triton's.
    """
    model = make_network(network, NUMBER, device)
    frames = clip(images, side, device)
    turns = itertools.cycle(frames)
    with torch.inference_mode():
        net = convert(model, "neuron", frames[0])
        stream = stream_of(net, images, "triton")
        compiler.compile(recorded(lambda: stream_of(net, images, "triton")(frames[0])))
        check(net, stream, frames)
        captured = stream._captured
        assert captured is not None
        awake = eager_graph(model, frames[0])

        def dense() -> None:
            stream.reset()
            stream(next(turns))

        def timed(run: Callable[[], object]) -> Row:
            return {**time_call(run, device).to_dict(), "host_us": host_us(run)}

        ways = {"awake": timed(awake), "dense": timed(dense)}
        for rate in RATES:
            stream.set(rate)
            ways[str(1 - rate)] = timed(lambda: stream(next(turns)))
        return {
            "network": network,
            "side": side,
            "images": images,
            "number": NUMBER,
            "ways": ways,
            "captures": captured.captures,
            "bytes": stream.bytes_for(frames[0]),
        }


@pytest.mark.parametrize(("network", "side", "images"), CASES)
def test_stream(
    benchmark: Any,
    network: str,
    side: int,
    images: int,
    device: torch.device,
    compiler: Compiler,
) -> None:
    """Time of a frame, by share of the work."""
    row = benchmark.pedantic(measure, args=(network, side, images, device, compiler), rounds=1)
    benchmark.extra_info.update(row)
    assert row["captures"] == 1, "dense, a half and a quarter are to be one graph"
