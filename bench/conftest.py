"""Benchmarks run on a quiet machine: ``python -m pytest bench --benchmark-enable``."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.compiling import Compiler
from bench.timing import Roofline, measure_roofline
from drowsy import models
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance

_START = time.monotonic()


class Budget:
    """Seconds that a session may spend on something dear."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def left(self) -> bool:
        """Whether there is any."""
        return self._left > 0

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Subtract what the block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._left -= time.monotonic() - start


def pytest_addoption(parser: pytest.Parser) -> None:
    """Limits on time, for machines that are lent by the minute."""
    group = parser.getgroup("drowsy")
    group.addoption(
        "--deadline",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="skip benchmarks that would start later than this after the session's start",
    )
    group.addoption(
        "--inductor-seconds",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="leave Inductor's search out once it has taken this long in all",
    )
    group.addoption(
        "--record",
        type=Path,
        metavar="FILE",
        help="like --benchmark-json, but written after every test: a killed session keeps it",
    )
    group.addoption("--frontier", metavar="FILE", help="also measure along this frontier")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that selects the headline figures."""
    config.addinivalue_line("markers", "core: what the headline figures need")
    torch.backends.cudnn.benchmark = True


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what starts past the deadline, so that the recorded JSON is written in time."""
    if time.monotonic() - _START > item.config.getoption("--deadline"):
        pytest.skip("the deadline has passed: not measured")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Record what has been measured so far."""
    yield
    path, session = item.config.getoption("--record"), item.config._benchmarksession  # type: ignore[attr-defined]
    if path is not None and session.benchmarks:
        write_json(
            path,
            item.config.hook.pytest_benchmark_generate_json(
                config=item.config,
                benchmarks=session.benchmarks,
                include_data=True,
                machine_info=_machine_info(session),
                commit_info={},
            ),
        )


@functools.lru_cache(maxsize=1)
def _machine_info(session: Any) -> dict[str, Any]:
    return dict(session.get_machine_info())


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Put what a result depends on into the recorded JSON, and leave out the host's name."""
    machine_info.pop("node", None)
    machine_info["drowsy"] = provenance()
    machine_info["gpu"] = gpu_info()


def gpu_info() -> dict[str, Any] | None:
    """The GPU, its size and the libraries that drive it; None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; without one, benchmarks of kernels are skipped."""
    if not torch.cuda.is_available():
        pytest.skip("times of kernels need a CUDA GPU")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def roofline(device: torch.device) -> Roofline:
    """Ceilings that this GPU reached in this session."""
    return measure_roofline(device, ("bf16", "fp16", "tf32"))


@pytest.fixture(scope="session")
def compiler(device: torch.device) -> Iterator[Compiler]:
    """Processes that compile kernels ahead."""
    running = Compiler()
    yield running
    running.close()


@pytest.fixture(scope="session")
def inductor_budget(request: pytest.FixtureRequest) -> Budget:
    """What ``--inductor-seconds`` allows."""
    return Budget(request.config.getoption("--inductor-seconds"))


@pytest.fixture
def photographs() -> Tensor:
    """A batch of natural-looking inputs: smooth noise, not zeros, ``[8, 3, 224, 224]``."""
    coarse = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=224, mode="bicubic")
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Any:
    """The registry network that a benchmark names, channels_last, in eval mode."""
    torch.manual_seed(0)
    return models.create(request.param).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
