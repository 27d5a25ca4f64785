"""Kernels compiled ahead, by other processes, so that a GPU does not wait for a compiler.

Triton keeps what it compiles in a cache on disk, keyed by the kernel and its specialisation. A job
plans a launch on tensors that hold nothing, and compiles it exactly as the launch would; the
process that measures then finds it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from drowsy_kernels.heuristics import ConvConfig
from drowsy_kernels.tuning import ConvShape

from bench.measure import grain_of
from bench.ways import launches
from drowsy.sleep import Grain


@dataclass(frozen=True)
class Job:
    """A way over a convolution.

    Args:
        shape, images, number: as for ``Problem``.
        kind: of the sleep map's grain; None where nobody sleeps.
        way: one of ``bench.ways.OURS``.
        config: block shape; None for the kernel's own heuristic.
    """

    shape: ConvShape
    images: int
    number: str
    kind: str | None
    way: str
    config: ConvConfig | None = None

    @property
    def cell(self) -> tuple[int, int] | None:
        """Of the sleep map."""
        if self.kind is None:
            return None
        grain = Grain.parse(grain_of(self.kind, self.shape))
        return grain.cell(self.shape.out_channels, self.shape.positions)


def compile_job(job: Job) -> None:
    """Put a job's kernels into Triton's cache."""
    for launch in launches(job.way, job.shape, job.images, job.number, job.cell, job.config):
        if launch.grid[0]:
            launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options)


class Compiler:
    """Compiles jobs in the order in which they are handed over.

    Args:
        workers: processes; by default all cores but two.
    """

    def __init__(self, workers: int | None = None) -> None:
        # Fresh processes: a fork of one that holds a CUDA context cannot use the GPU.
        context = multiprocessing.get_context("spawn")
        workers = workers or max(1, (os.cpu_count() or 2) - 2)
        self._pool = ProcessPoolExecutor(workers, mp_context=context)
        self._pending: dict[Job, Future[None]] = {}

    def start(self, work: Iterable[Job]) -> None:
        """Begin to compile."""
        for job in work:
            if job not in self._pending:
                self._pending[job] = self._pool.submit(compile_job, job)

    def wait(self, job: Job) -> None:
        """Until a job is compiled. What went wrong shows again when it is run."""
        if job in self._pending:
            self._pending[job].exception()

    def close(self) -> None:
        """Forget what was not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
