"""Every kernel once over small odd shapes, checked against float64: what a sanitizer is run over.

    python -m bench.sweep --compile 180
    compute-sanitizer --tool memcheck python -m bench.sweep --seconds 240

Runs on CUDA, or under TRITON_INTERPRET=1 on the CPU. ``--compile`` has other processes compile
every kernel first, for as long as is given: one after another they would take ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from drowsy_kernels.tuning import ConvShape

from bench.compiling import Compiler, recorded
from bench.measure import KINDS, grain_of
from bench.ways import OURS, Problem, RedCheck, SleepMap

# An odd map, a strided and a dilated kernel, few channels, groups, depthwise, and a plain GEMM.
SHAPES = (
    ConvShape(64, 72, (13, 11), (3, 3), padding=(1, 1, 1, 1)),
    ConvShape(40, 136, (15, 9), (3, 3), (2, 2), (1, 1, 1, 1)),
    ConvShape(32, 48, (17, 10), (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    ConvShape(3, 24, (23, 19), (7, 7), (2, 2), (3, 3, 3, 3)),
    ConvShape(48, 24, (9, 9), (3, 3), padding=(1, 1, 1, 1), groups=2),
    ConvShape(24, 24, (12, 7), (3, 3), padding=(1, 1, 1, 1), groups=24),
    ConvShape(56, 264, (13, 7)),
)
NUMBERS = ("bf16", "fp16", "tf32")
IMAGES = 3


Case = tuple[Problem, str, str, SleepMap]


def cases(
    device: torch.device, shapes: Sequence[ConvShape], numbers: Sequence[str]
) -> Iterator[Case]:
    """Problem, kind of grain, way and sleep map."""
    for shape in shapes:
        for number in numbers:
            problem = Problem(shape, IMAGES, number, device, copies=1)
            for kind in KINDS:
                sleep = problem.sleep_map(grain_of(kind, shape), 0.5)
                for way in OURS:
                    if problem.eligible(way, sleep.cell):
                        yield problem, kind, way, sleep


def sweep(
    device: torch.device,
    shapes: Sequence[ConvShape],
    numbers: Sequence[str],
    seconds: float = float("inf"),
) -> tuple[int, list[str], bool]:
    """How many cases ran, what was wrong, and whether these were all."""
    end = time.monotonic() + seconds
    done = 0
    red: list[str] = []
    for problem, kind, way, sleep in cases(device, shapes, numbers):
        if time.monotonic() > end:
            return done, red, False
        try:
            for call in problem.copies(way, sleep, with_map=True):
                problem.check(call(), way, sleep)
        except RedCheck as error:
            red.append(f"{kind}: {error}")
        done += 1
    return done, red, True


def launch_all(device: torch.device, shapes: Sequence[ConvShape], numbers: Sequence[str]) -> None:
    """Every case, with nothing checked."""
    for problem, _, way, sleep in cases(device, shapes, numbers):
        for call in problem.copies(way, sleep, with_map=True, checked=False):
            call()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--compile", type=float, metavar="SECONDS", help="ahead, in processes")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no case later than this"
    )
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.compile is not None:
        compiler = Compiler()
        compiler.compile(recorded(lambda: launch_all(device, SHAPES, NUMBERS)), options.compile)
        compiler.close()
    done, red, complete = sweep(device, SHAPES, NUMBERS, options.seconds)
    rest = "" if complete else "; the others were not run: the time was over"
    print("\n".join([f"{done} cases, {len(red)} wrong{rest}", *red]))
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
