"""Kernels compiled ahead, by other processes, so that a GPU does not wait for a compiler.

Triton keeps what it compiles in a cache on disk, keyed by the kernel and its specialisation. A job
plans a launch on tensors that hold nothing, and compiles it exactly as the launch would; the
process that measures then finds it. What a whole network launches is recorded by running it with
nothing launched.

The compiling processes never touch the GPU: a stand-in for Triton's driver tells them which one it
is. So they take none of its memory, and they compile on machines without one too.
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
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
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
    for made in specialisations(job):
        compile_specialisation(made)


def _compile(launch: Launch) -> None:
    arch = triton.runtime.driver.active.get_current_target().arch
    made = launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options(arch))
    if hasattr(nvidia, "make_launcher"):
        # Up to Triton 3.6 a first launch also builds the C that passes its arguments on.
        nvidia.CudaLauncher(made.src, made.metadata)


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


def specialisations(job: Job) -> list[Specialisation]:
    """What a job would launch."""
    every = launches(job.way, job.shape, job.images, job.number, job.cell, job.config)
    return [_specialised(launch) for launch in every if launch.grid[0]]


def compile_specialisation(made: Specialisation) -> None:
    """Put a kernel into Triton's cache."""
    kernel = getattr(importlib.import_module(made.module), made.kernel)
    _compile(replace(made.launch, kernel=kernel))


class Target:
    """As much of a Triton driver as compilation asks for; names a GPU that need not be there.

    Args:
        arch: compute capability, 90 for sm_90.
    """

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """There is one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return self._target

    def get_active_torch_device(self) -> torch.device:
        """Where there is no GPU."""
        return torch.device("cpu")

    def get_device_interface(self) -> None:
        """None, for the same reason."""


def compile_for(arch: int) -> None:
    """Let this process compile for a compute capability from here on, whatever GPU is there."""
    triton.runtime.driver.set_active(Target(arch))


class Compiler:
    """Compiles jobs in the order in which they are handed over.

    Args:
        workers: processes; by default all cores but two, of which one measures and one reads power.
        arch: compute capability to compile for, 90 for sm_90; by default that of the GPU.
    """

    def __init__(self, workers: int | None = None, arch: int | None = None) -> None:
        if arch is None:
            major, minor = torch.cuda.get_device_capability()
            arch = 10 * major + minor
        # Fresh processes: a fork of one that holds a CUDA context cannot use the GPU.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            workers or max(1, (os.cpu_count() or 2) - 2),
            mp_context=context,
            initializer=compile_for,
            initargs=(arch,),
        )
        self._jobs: dict[Job, list[Future[None]]] = {}
        # Many layers launch the same code.
        self._known: dict[tuple[Any, ...], Future[None]] = {}

    def start(self, work: Iterable[Job]) -> None:
        """Begin to compile. A compiler that crashed leaves the rest to whoever runs it."""
        for job in work:
            if job not in self._jobs:
                self._jobs[job] = self._submitted(specialisations(job))

    def wait(self, job: Job) -> None:
        """Until a job is compiled. What went wrong shows again when it is run."""
        wait(self._jobs.get(job, ()))

    def compile(self, work: Iterable[Specialisation], seconds: float | None = None) -> None:
        """Compile, and wait until all is compiled or the time is over; after a crash as ``start``.

        What was compiled before is not compiled again.
        """
        wait(self._submitted(work), seconds)

    def _submitted(self, work: Iterable[Specialisation]) -> list[Future[None]]:
        found = []
        for made in work:
            with contextlib.suppress(BrokenExecutor):
                if made.key not in self._known:
                    self._known[made.key] = self._pool.submit(compile_specialisation, made)
                found.append(self._known[made.key])
        return found

    def close(self) -> None:
        """Forget what was not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
