"""Kernels compiled ahead, by other processes, so that a GPU does not wait for a compiler.

Triton keeps what it compiles in a cache on disk, keyed by the kernel and its specialisation. A job
plans a launch on tensors that hold nothing, and compiles it exactly as the launch would; the
process that measures then finds it. What a whole network launches is recorded by running it with
nothing launched.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import triton
from drowsy_kernels.heuristics import ConvConfig
from drowsy_kernels.launch import Launch
from drowsy_kernels.tuning import ConvShape
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

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
            _compile(launch)


def _compile(launch: Launch) -> None:
    arch = triton.runtime.driver.active.get_current_target().arch
    launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options(arch))


@dataclass(frozen=True)
class _Hollow:
    """Stands for a tensor: all that Triton asks of one before it chooses a kernel."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        """An address that is a multiple of 16, or none."""
        return 0 if self.aligned else 1


@dataclass(frozen=True)
class Specialisation:
    """What a launch is compiled for, in a form that other processes understand.

    Args:
        module, kernel: where the kernel is found.
        launch: without its kernel; of the tensors there is type and alignment.
        key: equal where the compiled code is.
    """

    module: str
    kernel: str
    launch: Launch
    key: tuple[Any, ...]


def recorded(run: Callable[[], object]) -> list[Specialisation]:
    """What ``run`` would launch, each once; nothing is launched, and its results mean nothing."""
    found: dict[tuple[Any, ...], Specialisation] = {}

    def note(launch: Launch, _: torch.device) -> None:
        if launch.grid[0]:
            made = _specialised(launch)
            found.setdefault(made.key, made)

    with mock.patch.object(Launch, "run", note):
        run()
    return list(found.values())


def _specialised(launch: Launch) -> Specialisation:
    arguments: dict[str, Any] = {}
    function = launch.kernel.fn
    key: list[Any] = [function.__name__, launch.num_warps, launch.num_stages, launch.max_registers]
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if isinstance(value, Tensor):
            loose = parameter.do_not_specialize_on_alignment
            value = _Hollow(value.dtype, not loose and value.data_ptr() % 16 == 0)
        elif isinstance(value, TensorDescriptor):
            base = torch.empty(1, dtype=value.base.dtype, device="meta")
            value = TensorDescriptor(base, value.shape, value.strides, value.block_shape)
        elif type(value) is int and not parameter.is_constexpr:
            value = _alike(value, parameter)
        arguments[parameter.name] = value
        described = isinstance(value, TensorDescriptor)
        key.append((value.base.dtype, *value.block_shape) if described else value)
    hollow = replace(launch, kernel=None, arguments=arguments)
    return Specialisation(function.__module__, function.__name__, hollow, tuple(key))


def _alike(value: int, parameter: Any) -> int:
    """The one number that stands for all those which the same code serves.

    Triton makes a constant of 1, knows of multiples of 16 that they are, and takes 64 bits for
    what 32 do not hold.
    """
    wide = 0 if -(2**31) <= value < 2**31 else 2**32
    if parameter.do_not_specialize:
        return wide
    return 1 if value == 1 else wide + (16 if value % 16 == 0 else 2)


def compile_specialisation(made: Specialisation) -> None:
    """Put a kernel into Triton's cache."""
    kernel = getattr(importlib.import_module(made.module), made.kernel)
    _compile(replace(made.launch, kernel=kernel))


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
        """Begin to compile. A compiler that crashed leaves the rest to whoever runs it."""
        with contextlib.suppress(BrokenExecutor):
            for job in work:
                if job not in self._pending:
                    self._pending[job] = self._pool.submit(compile_job, job)

    def wait(self, job: Job) -> None:
        """Until a job is compiled. What went wrong shows again when it is run."""
        if job in self._pending:
            self._pending[job].exception()

    def compile(self, work: Iterable[Specialisation]) -> None:
        """Compile, and wait until all is compiled; after a crash as ``start``."""
        with contextlib.suppress(BrokenExecutor):
            wait([self._pool.submit(compile_specialisation, made) for made in work])

    def close(self) -> None:
        """Forget what was not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
