"""Count the kernels that launches ask Triton for, with no GPU; run by ``test_offline``.

Triton's own launcher, which a stand-in for the driver tells of an H100, says which compiled kernel
each launch wants; nothing is compiled and nothing is launched.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import drowsy_kernels
import torch
import triton
from drowsy_kernels import launch
from drowsy_kernels.launch import VIEWS, Launch
from drowsy_kernels.tuning import ConvShape
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

import drowsy
from bench import networks
from bench.compiling import Job, compile_job, compile_specialisation, recorded
from bench.measure import grain_of
from bench.ways import Problem


class Driver:
    """As much of a driver as compilation asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> None:
        return None


CPU = torch.device("cpu")
SHAPE = ConvShape(64, 64, (14, 14), (3, 3), padding=(1, 1, 1, 1))
IMAGES = 2


def wanted(run: Callable[[], object]) -> set[tuple[str, str]]:
    """Names and keys of the kernels that launches inside ``run`` would compile."""
    found: set[tuple[str, str]] = set()

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        found.add((fn.name, key))
        return True

    with mock.patch.object(triton.knobs.runtime, "jit_cache_hook", note):
        run()
    return found


def launched(run: Callable[[], object], *, aligned: bool = False) -> set[tuple[str, str]]:
    """The same of ``run``'s launches: with the tensors that they are given, or were all of them
    ``aligned`` to 16 bytes."""

    def ask(self: Launch, _: torch.device) -> None:
        arguments = {
            name: torch.empty(1, dtype=value.dtype, device="meta")
            if aligned and isinstance(value, Tensor)
            else value
            for name, value in self.arguments.items()
        }
        if self.grid[0]:
            self.kernel.warmup(grid=self.grid, **arguments, **self.options(90))

    with mock.patch.object(Launch, "run", ask):
        return wanted(run)


def compiled_ahead(run: Callable[[], object]) -> set[tuple[str, str]]:
    """What is compiled ahead of ``run``."""
    return wanted(lambda: [compile_specialisation(made) for made in recorded(run)])


def deployed(variant: str) -> Callable[[], object]:
    """A deployed network, each of whose layers reads its own threshold and scale."""
    model = networks.make_network("cifar_resnet20", "bf16", CPU)
    batch = networks.photographs("cifar_resnet20", IMAGES, torch.bfloat16, CPU)
    net = networks.convert(model, variant, batch)
    net.set(0.5)
    return lambda: drowsy.deploy(net, batch, graph=False)(batch)


def kernels() -> Iterator[tuple[str, JITFunction]]:
    """Every kernel that is launched, by name."""
    for module in pkgutil.iter_modules(drowsy_kernels.__path__):
        members = vars(importlib.import_module(f"drowsy_kernels.{module.name}"))
        for name, value in members.items():
            if isinstance(value, JITFunction) and name.endswith("_kernel"):
                yield name, value


def check_views() -> None:
    """No kernel is specialised on how a pointer into a shared buffer is aligned."""
    of_kernels = dict(kernels())
    assert len(of_kernels) > 15, of_kernels
    for name, kernel in of_kernels.items():
        loose = {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
        assert loose == set(VIEWS) & {p.name for p in kernel.params}, (name, loose)


def check_networks() -> None:
    """A network's launches ask for what was compiled ahead, wherever a layer's words lie."""
    for variant in networks.VARIANTS:
        run = deployed(variant)
        ahead, asked, aligned = compiled_ahead(run), launched(run), launched(run, aligned=True)
        print(f"{variant}: {len(ahead)} compiled ahead, {len(asked)} asked for")
        assert len(asked) == len(aligned), (variant, len(asked), len(aligned))
        assert ahead == asked, (variant, len(ahead), len(asked), len(ahead & asked))


def check_slices() -> None:
    """A tensor that is a slice of another is compiled for as it lies."""
    x = torch.zeros(65, dtype=torch.float16)
    weight = drowsy_kernels.pack_weight(torch.zeros(16, 16, 1, 1, dtype=torch.float16))

    def run() -> None:
        for first in (0, 1):
            rows = x[first : first + 64].view(4, 16)
            count = torch.zeros(1, dtype=torch.int32)
            drowsy_kernels.conv2d_rows(rows, weight, table=None, count=count)

    ahead, asked = compiled_ahead(run), launched(run)
    assert len(asked) == 2
    assert ahead == asked


def check_jobs() -> None:
    """What a job compiles is what measuring it launches."""
    with mock.patch.object(Launch, "run"):
        problem = Problem(SHAPE, IMAGES, "bf16", CPU, copies=1)
        for kind, way in (
            (None, "box"),
            (None, "pointer"),
            ("neuron", "pointer"),
            ("position", "rows"),
            ("tile", "cells"),
            ("channel", "channels"),
        ):
            sleep = kind and problem.sleep_map(grain_of(kind, SHAPE), 0.5)
            (call,) = problem.copies(way, sleep, checked=False, with_map=True)
            ahead = wanted(functools.partial(compile_job, Job(SHAPE, IMAGES, "bf16", kind, way)))
            assert ahead == launched(call), (kind, way)


if __name__ == "__main__":
    driver.set_active(Driver())  # type: ignore[arg-type]
    launch.interpreted = lambda: True  # type: ignore[assignment]
    for check in sys.argv[1:]:
        globals()[f"check_{check}"]()
