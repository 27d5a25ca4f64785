"""Every kernel once over small odd shapes, checked against float64: what a sanitizer is run over.

    python -m bench.sweep
    compute-sanitizer --tool memcheck python -m bench.sweep

Runs on CUDA, or under TRITON_INTERPRET=1 on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from drowsy_kernels.tuning import ConvShape

from bench.measure import KINDS, grain_of
from bench.ways import OURS, Problem, RedCheck

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
IMAGES = 3


def sweep(
    device: torch.device, shapes: Sequence[ConvShape], numbers: Sequence[str]
) -> tuple[int, list[str]]:
    """How many cases ran, and what was wrong."""
    done, red = 0, []
    for shape in shapes:
        for number in numbers:
            problem = Problem(shape, IMAGES, number, device, copies=1)
            for kind in KINDS:
                sleep = problem.sleep_map(grain_of(kind, shape), 0.5)
                for way in OURS:
                    if not problem.eligible(way, sleep.cell):
                        continue
                    try:
                        for call in problem.copies(way, sleep, with_map=True):
                            problem.check(call(), way, sleep)
                    except RedCheck as error:
                        red.append(f"{kind}: {error}")
                    done += 1
    return done, red


def main() -> int:
    """Command line; returns the exit code."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    done, red = sweep(device, SHAPES, ("bf16", "fp16", "tf32"))
    print("\n".join([f"{done} cases, {len(red)} wrong", *red]))
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
