"""Milliseconds of several ways to run, which take turns so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

# Of each, at least.
TURNS = 5
_WARM = 1


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    cuda: bool = False,
    turns: int = TURNS,
) -> dict[str, list[float]]:
    """Milliseconds of each run, turn by turn.

    Args:
        runs: by name.
        seconds: for all together.
        cuda: whether they only queue work on a CUDA device, which is then waited for.
        turns: of each, at least.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            for _ in range(_WARM):
                timed(run, cuda)
        stop = time.perf_counter() + seconds
        while len(next(iter(taken.values()))) < turns or time.perf_counter() < stop:
            for name, run in runs.items():
                taken[name].append(timed(run, cuda))
    return taken


def typical(taken: Mapping[str, list[float]], reference: str) -> dict[str, float]:
    """Milliseconds of each run: the median of its ratios to ``reference``, turn by turn, times the
    median of that one.

    What slows the machine down for a while slows neighbours down alike, which ratios do not see.
    """
    of = taken[reference]
    scale = statistics.median(of)
    return {
        name: scale * statistics.median(a / b for a, b in zip(each, of, strict=True))
        for name, each in taken.items()
    }


def timed(run: Callable[[], object], cuda: bool) -> float:
    """Milliseconds of one call; ``cuda`` as for ``in_turns``."""
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)
