"""How benchmarks take time: medians over cold caches, next to the machine's own ceilings.

A benchmark hands over *copies*: calls that do the same work on tensors of their own. On a GPU they
are captured in one CUDA graph, so that what runs on the host does not count, and there are enough
of them that a copy's data left the L2 cache before its turn comes again. A sample is a number of
replays between two events, behind a fill that empties the cache for the first. Before it the GPU
sleeps until the host has enqueued all of it, so that no time of the host's is in a sample:

    host    fill sleep start run run .. run end
    GPU          fill  sleep...................| start run run .. run end
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from drowsy_kernels.tuning import ConvShape
from torch import Tensor

Call = Callable[[], object]

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}
# A sample lasts at least this long: 0.1% of it is the resolution of events.
_SAMPLE_MS = 0.5
_SAMPLES = 15
_HOST_SAMPLES = 1
_WARM_MS = 30.0
# How much longer the GPU sleeps than the host last took to enqueue a sample, and at the most.
_SLEEP_MARGIN = 1.5
_MAX_SLEEP_MS = 20.0
_SLEEP_CYCLES = 1_000_000
# Copies that outgrow the L2 cache this many times; one is enough when the caller's data do.
_L2_FACTOR = 3
_MAX_COPIES = 64


@dataclass(frozen=True)
class Timing:
    """Times of one call, in milliseconds.

    Args:
        samples: one number a sample.
        calls: calls behind each.
        exposed: samples that the GPU began before the host had enqueued all of them, so that they
            may hold time of the host's.
    """

    samples: tuple[float, ...]
    calls: int
    exposed: int = 0

    @property
    def ms(self) -> float:
        """Median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.ms

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the median and the spread spelled out."""
        return {"ms": self.ms, "spread": self.spread, **asdict(self)}


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache; 0 on a CPU, where benchmarks make one copy."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def copies_for(size: int, device: torch.device) -> int:
    """How many copies of ``size`` bytes keep the L2 cache cold."""
    return min(_MAX_COPIES, max(1, math.ceil(_L2_FACTOR * l2_bytes(device) / max(size, 1))))


def time_copies(copies: Sequence[Call], device: torch.device) -> Timing:
    """Time one call of ``copies``, which are run in order, over and over.

    On CUDA no call may synchronise with the host; each is run twice before it is captured.
    """
    if device.type == "cuda":
        return time_call(capture(copies).replay, device, len(copies))

    def run() -> None:
        for call in copies:
            call()

    return time_call(run, device, len(copies))


def time_call(run: Call, device: torch.device, calls: int = 1) -> Timing:
    """Time ``run`` as it is; its time counts for so many calls.

    On the CPU, where only tests run this, a sample is one run.
    """
    if device.type != "cuda":
        taken = []
        for _ in range(_HOST_SAMPLES):
            begin = time.perf_counter()
            run()
            taken.append((time.perf_counter() - begin) * 1e3 / calls)
        return Timing(tuple(taken), calls)

    run()
    start = _event()
    run()
    once = max(_elapsed(start, _event()), 1e-3)
    for _ in range(math.ceil(min(_WARM_MS / once, 1000))):
        run()
    repeats = math.ceil(_SAMPLE_MS / once)
    flush = torch.empty(max(2 * l2_bytes(device), 1 << 20), dtype=torch.uint8, device=device)
    done, exposed = repeats * calls, 0
    samples: list[float] = []
    sleep_ms = 0.0
    while len(samples) < _SAMPLES:
        ms, host_ms, hidden = _sample(run, repeats, flush, sleep_ms)
        if not hidden and sleep_ms < _MAX_SLEEP_MS:
            # The first sample among them: it tells how long the host takes.
            sleep_ms = min(max(2 * sleep_ms, _SLEEP_MARGIN * host_ms), _MAX_SLEEP_MS)
            continue
        samples.append(ms / done)
        exposed += not hidden
    return Timing(tuple(samples), done, exposed)


def _sample(run: Call, repeats: int, flush: Tensor, sleep_ms: float) -> tuple[float, float, bool]:
    """Milliseconds of so many runs, those that the host took to enqueue them, and whether it was
    done before the GPU began."""
    torch.cuda.synchronize(flush.device)
    flush.zero_()
    torch.cuda._sleep(math.ceil(sleep_ms * _cycles_per_ms(flush.device)))
    begin = time.perf_counter()
    start = _event()
    for _ in range(repeats):
        run()
    end = _event()
    host_ms = 1e3 * (time.perf_counter() - begin)
    hidden = not start.query()
    return _elapsed(start, end), host_ms, hidden


@functools.lru_cache
def _cycles_per_ms(device: torch.device) -> float:
    """Cycles that ``torch.cuda._sleep`` counts in a millisecond."""
    with torch.cuda.device(device):
        torch.cuda._sleep(_SLEEP_CYCLES)  # its first call loads it
        start = _event()
        torch.cuda._sleep(_SLEEP_CYCLES)
        return _SLEEP_CYCLES / _elapsed(start, _event())


def _event() -> torch.cuda.Event:
    recorded = torch.cuda.Event(enable_timing=True)
    recorded.record()
    return recorded


def _elapsed(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end)


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of ``calls`` in order; their results get memory of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Compilation and cuDNN's own search happen here, not in the capture.
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Held until the capture ends: a copy must not write where the last one did.
        kept = [call() for call in calls]
    del kept
    return graph


def check_alive(device: torch.device) -> None:
    """Raise if the GPU lost its context: then whatever runs next in this process fails too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reason(error: BaseException) -> str:
    """An error in one line, for records."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


# --- ceilings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roofline:
    """What this machine reached in this run.

    Args:
        bytes_per_s: of a copy much larger than any cache, reads and writes counted.
        flop_per_s: of a large square matrix product, by number format.
    """

    bytes_per_s: float
    flop_per_s: dict[str, float]

    def floor_ms(self, shape: ConvShape, images: int, number: str, rate: float = 0.0) -> float:
        """The least time: the awake multiplications, or every element moved once.

        Sleepers must still be written, and their inputs may be needed by neurons that are awake.
        """
        flop = 2 * images * shape.multiplies * (1 - rate)
        moved = shape.elements(images) * DTYPES[number].itemsize
        return 1e3 * max(flop / self.flop_per_s[number], moved / self.bytes_per_s)


def measure_roofline(
    device: torch.device, numbers: Sequence[str], *, side: int = 8192, copied: int = 1 << 31
) -> Roofline:
    """Time a copy of ``copied`` bytes and products of square matrices, none of them zeros."""
    source = torch.randint(0, 127, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = time_copies([lambda: target.copy_(source)], device)
    rates = {}
    for number in numbers:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[number]) for _ in range(2))
        with_tf32(number)
        product = time_copies([lambda a=a, b=b: a @ b], device)  # type: ignore[misc]
        rates[number] = 2 * side**3 / product.ms * 1e3
    return Roofline(2 * copied / moved.ms * 1e3, rates)


def with_tf32(number: str) -> None:
    """Let torch round float32 operands to TF32, or not, as the number format wants."""
    torch.backends.cuda.matmul.allow_tf32 = number == "tf32"
    torch.backends.cudnn.allow_tf32 = number == "tf32"


def activations(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Inputs such as layers see, ``[N, C, H, W]`` channels_last.

    Of three channels, an image: normalised pixels that change slowly. Else what a ReLU leaves of
    channels that differ in mean and scale: about half of it zeros, the rest skewed.
    """
    n, channels, height, width = shape
    device = generator.device

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    if channels == 3:
        coarse = normal(n, 3, -(-height // 4) + 1, -(-width // 4) + 1)
        x = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width]
        x = x + 0.1 * normal(n, 3, height, width)
        return x.to(dtype, memory_format=torch.channels_last)
    mean, scale = normal(channels), normal(channels).exp()
    out = torch.empty(n, channels, height, width, dtype=dtype, device=device)
    out = out.contiguous(memory_format=torch.channels_last)
    # An image at a time: the float32 of a whole batch would not leave room for its copies.
    for image in out.permute(0, 2, 3, 1):
        image.copy_(torch.relu(normal(height, width, channels) * scale + mean))
    return out
