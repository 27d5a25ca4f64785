"""Time of a frame in which part of the picture is awake, against awake and scaled-down frames.

    python -m bench.video                                   # ResNet-18 and -50, 224 and 448 px
    python -m bench.video --networks resnet18 --sides 448 --dtypes bfloat16 --rounds 5
    python -m bench.video --threads 2                       # on a machine that does nothing else

One camera. All ways take turns in one process, and a figure is a ratio to the awake network in the
same turn: its median over the rounds and the quartiles. On one thread times are CPU time of it,
which other programs do not lengthen much; on several they are time by the clock, as threads wait
for each other. Writes ``bench/results/cpu/video.json``, where entries of other networks, sides,
types and threads stay.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

import drowsy
from drowsy import models
from drowsy.comparison.clips import size_for
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row, align
from drowsy.images.scaling import scale_images

RESULTS = Path(__file__).parent / "results" / "cpu" / "video.json"
WAYS = (
    *(("bands", rate) for rate in (Fraction(1, 2), Fraction(3, 4))),
    ("quads", Fraction(3, 4)),
    *(("change", rate) for rate in (Fraction(1, 2), Fraction(3, 4))),
)
_KEY = ("network", "side", "dtype", "threads")
_WARM = 6


def moving(side: int, everywhere: bool) -> Tensor:
    """Eight frames ``[8, 3, S, S]``: noise, or one thing that moves before a picture at rest."""
    generator = torch.Generator().manual_seed(1)
    if everywhere:
        return torch.rand(8, 3, side, side, generator=generator)
    still = torch.rand(1, 3, side, side, generator=generator).repeat(8, 1, 1, 1)
    size = side * 2 // 7
    thing = torch.rand(3, size, size, generator=generator)
    for time_, frame in enumerate(still):
        at = side // 4 + time_ * side // 64
        frame[:, at : at + size, at : at + size] = thing
    return still


class Shown:
    """A stream that is shown a clip forth and back, a frame a call."""

    def __init__(self, stream: drowsy.Stream, clip: Tensor) -> None:
        self._stream, self._frames, self._next = stream, [*clip.split(1), *clip.flip(0).split(1)], 0

    def __call__(self) -> None:
        self._stream(self._frames[self._next % len(self._frames)])
        self._next += 1


def runs_of(network: str, side: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    net = drowsy.convert(models.create(network).to(dtype))
    calm, wild = (moving(side, everywhere).to(dtype) for everywhere in (False, True))
    frame = calm[:1]
    runs: dict[str, Callable[[], Any]] = {"awake": lambda: net(frame)}
    laid = frame.to(memory_format=torch.channels_last)
    runs["awake, channels_last"] = lambda: net(laid)
    for saving in (Fraction(1, 2), Fraction(3, 4)):
        size = size_for(net, frame, saving)
        assert size is not None, "it takes any"
        small = scale_images(frame, size)
        runs[f"scaled down, {saving} saved ({small.shape[-1]} px)"] = partial(net, small)
    dense = drowsy.Stream(net, cut=None)

    def all_awake() -> None:
        dense.reset()
        dense(frame)

    runs["stream, all awake"] = all_awake
    for refresh, rate in WAYS:
        stream = drowsy.Stream(net, refresh=refresh, rate=rate, cut=None)
        runs[f"{refresh}, {rate} saved"] = Shown(stream, calm)
        if refresh == "change":
            stream = drowsy.Stream(net, refresh=refresh, rate=rate, cut=None)
            runs[f"{refresh}, {rate} saved, noise everywhere"] = Shown(stream, wild)
    stream = drowsy.Stream(net, rate=Fraction(1, 2))
    runs["bands, 1/2 saved, cuts looked for"] = Shown(stream, calm)
    return runs


def measure(network: str, side: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """A row a way: milliseconds, and the ratio to the awake network."""
    runs = runs_of(network, side, dtype)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    now = time.thread_time if threads == 1 else time.perf_counter
    with torch.inference_mode():
        # Before, every area is met once, and the weights brought into the order that it wants.
        for turn in range(rounds + _WARM):
            for name, run in runs.items():
                start = now()
                run()
                if turn >= _WARM:
                    taken[name].append(now() - start)
    key = {"network": network, "side": side, "dtype": str(dtype).removeprefix("torch.")}
    key["threads"] = threads
    rows = []
    for name, times in taken.items():
        ratios = [mine / awake for mine, awake in zip(times, taken["awake"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        figures = {"ms": median(times) * 1e3, "ratio": median(ratios), "low": low, "high": high}
        rows.append({**key, "way": name, **{k: float(f"{v:.4g}") for k, v in figures.items()}})
    return rows


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--sides", nargs="+", type=int, default=[224, 448])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # All ways together have more convolutions than oneDNN remembers by itself (1,024), which it
    # would then prepare again at every call; one way, as it is used, has not.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    for network in args.networks:
        for side in args.sides:
            for dtype in args.dtypes:
                rows = measure(network, side, getattr(torch, dtype), args.rounds)
                cells = [[str(value) for value in row.values()] for row in rows]
                print(align([list(rows[0]), *cells]), flush=True)
                _record(rows, args.out)


def _record(rows: list[Row], path: Path) -> None:
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    keys = {tuple(row[name] for name in _KEY) for row in rows}
    kept = [row for row in found if tuple(row[name] for name in _KEY) not in keys]
    write_json(path, {**provenance(), "rows": [*kept, *rows]})


if __name__ == "__main__":
    main()
