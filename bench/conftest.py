"""Benchmarks run on a quiet machine: ``python -m pytest bench --benchmark-enable``.

``--record FILE`` writes pytest-benchmark's JSON after every test and adds to what the file holds.
It says of every test on which GPU and with which code it was measured, and which tests were not
measured and why. ``--known FOLDER`` leaves out what any record there holds of the same GPU and the
same code.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import drowsy_kernels
import pytest
import torch
from torch import Tensor

import drowsy
from bench.compiling import Compiler
from bench.timing import Roofline, measure_roofline, reason
from drowsy import models
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance

_START = time.monotonic()
# Exit code of a session that ended because its process lost the GPU: a new one can go on.
LOST = 7


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
        "--record",
        type=Path,
        metavar="FILE",
        help="like --benchmark-json, but written after every test, and added to",
    )
    group.addoption(
        "--known",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="leave out what was measured before, by the records in this folder",
    )
    group.addoption("--frontier", metavar="FILE", help="also measure along this frontier")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that selects the headline figures."""
    config.addinivalue_line("markers", "core: what the headline figures need")
    torch.backends.cudnn.benchmark = True
    config.pluginmanager.register(Recorder(config), "drowsy-recorder")


class Recorder:
    """Keeps the record file."""

    def __init__(self, config: pytest.Config) -> None:
        self._path: Path | None = config.getoption("--record")
        self._earlier: dict[str, Any] = {"benchmarks": [], "not_measured": {}}
        if self._path is not None and self._path.exists():
            self._earlier = json.loads(self._path.read_text(encoding="utf-8"))
        self._not_measured: dict[str, str] = dict(self._earlier["not_measured"])
        self._written = 0

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what was measured before."""
        known = measured(config.getoption("--known"))
        left = [item for item in items if item.nodeid not in known]
        out = [item for item in items if item.nodeid in known]
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = left

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip what starts past the deadline, so that the recorded JSON is written in time."""
        if time.monotonic() - _START > item.config.getoption("--deadline"):
            pytest.skip("not measured: the deadline had passed")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        """Note why a test has no result; end a session that has lost its GPU."""
        report: Any = yield  # type: ignore[misc]
        if call.excinfo is not None:
            self._not_measured[item.nodeid] = reason(call.excinfo.value)
            if not report.skipped and torch.cuda.is_available():
                try:
                    torch.cuda.synchronize()
                except RuntimeError:
                    self._write(item)
                    pytest.exit(f"{item.nodeid} cost this process its GPU", LOST)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Record what has been measured so far, and make room on the GPU for the next."""
        yield
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
        self._write(item)

    def _write(self, item: pytest.Item) -> None:
        session = item.config._benchmarksession  # type: ignore[attr-defined]
        if self._path is None or session.disabled:
            return
        machine = _machine_info(session)
        made = item.config.hook.pytest_benchmark_generate_json(
            config=item.config,
            benchmarks=session.benchmarks,
            include_data=False,
            machine_info=machine,
            commit_info={},
        )
        for benchmark in made["benchmarks"]:
            benchmark |= {"gpu": machine["gpu"] and machine["gpu"]["name"], "code": code()}
            # Layers and such by name; JSON has no other form for them.
            params = benchmark["params"] or {}
            benchmark["params"] = {name: _plain(value) for name, value in params.items()}
        done = {benchmark["fullname"] for benchmark in made["benchmarks"]}
        kept = [each for each in self._earlier["benchmarks"] if each["fullname"] not in done]
        made["benchmarks"] = kept + made["benchmarks"]
        done |= {each["fullname"] for each in kept}
        made["not_measured"] = {k: v for k, v in self._not_measured.items() if k not in done}
        write_json(self._path, made)


def _plain(value: object) -> object:
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def measured(folders: Iterable[Path]) -> set[str]:
    """Tests of which a record in these folders holds a result of this GPU and this code."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = set()
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        data: Any = None
        with contextlib.suppress(ValueError):  # cut short as it was copied
            data = json.loads(path.read_text(encoding="utf-8"))
        for each in data.get("benchmarks", []) if isinstance(data, dict) else []:
            if (each.get("gpu"), each.get("code")) == (name, code()):
                found.add(each["fullname"])
    return found


@functools.lru_cache(maxsize=1)
def code() -> str:
    """Fingerprint of what is measured: the package, the kernels and their tuning tables."""
    digest = hashlib.sha256()
    for package in (drowsy, drowsy_kernels):
        folder = Path(str(package.__file__)).parent
        for path in sorted(p for kind in ("*.py", "*.json") for p in folder.rglob(kind)):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


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
