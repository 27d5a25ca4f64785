"""A GPU session walked without a GPU: ``bash bench/gpu_session.sh --dry-run`` runs this.

    python -m bench.dry_run FOLDER SECONDS MODULE ARGUMENT...

Runs ``python -m MODULE ARGUMENT...`` as it would run on an H100, through every line of ours that
wants a GPU, with stand-ins for what it would call: tensors that have shapes and no data (torch's
fake tensors), streams, events and graphs that keep a clock, a compiler and a meter that let that
clock advance. Nothing is launched. What a comparison would say is taken to be "right".

The clock tells how long the run would take on 16 cores and an empty cache, by the constants below.
FOLDER remembers, from stage to stage, the time and which kernels are compiled. Exit code 1 if a
test fails, or the run takes longer than SECONDS, and 5 if the time was over before all had begun;
the last line says what was counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import heapq
import itertools
import json
import math
import os
import re
import runpy
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import drowsy_kernels.launch
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

import drowsy.graph.overwriting
import drowsy.graph.running
import drowsy.network.folded
import drowsy.network.inference
import drowsy.network.layer
import drowsy.network.tail
import drowsy.sensors.devices
from bench import compiling, networks
from bench.tune import INCOMPLETE
from drowsy.backends import ops
from drowsy.files.atomic import write_json
from drowsy.sensors import Count, Sample

# Seconds. To start a process, torch, a CUDA context and, once, the compiling processes.
START = 15.0
# Of one kernel, its launcher included: 2 to 4 s were seen. Workers are all cores but two.
COMPILE, WORKERS = 3.5, 14
# A way's search by cuDNN, of one convolution at one size.
CUDNN_SEARCH = 0.15
# To capture a graph: the allocator is emptied, and what was warm must be allocated again.
CAPTURE = 0.05
# torch.compile with max-autotune, of a network and of a layer.
COMPILE_NETWORK, COMPILE_LAYER = 150.0, 40.0
# One operation of torch, one launch of ours, one replay, on the host.
HOST = 20e-6
# On the GPU: a kernel of ours, and what torch's operations write a second.
KERNEL, BYTES = 100e-6, 1e12
# A test on the GPU, besides the kernels that it is the first to launch.
TEST = 0.3
CYCLES_PER_SECOND = 1.98e9

GPU = SimpleNamespace(
    name="stand-in for an H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    L2_cache_size=50 << 20,
    total_memory=80 << 30,
)


@dataclass
class Machine:
    """Two clocks, the host's and the end of what the GPU has been given, and what was compiled.

    Args:
        host, gpu: the clocks, in seconds.
        compiled: names of kernels, from earlier stages too.
        ahead: how many of them by other processes before they were launched.
        late: the others', by function.
        searched: convolutions for which cuDNN has chosen a way.
        capturing: the graph that takes the GPU's work, if any.
        processes: that share the work of a session of tests.
    """

    host: float = 0.0
    gpu: float = 0.0
    compiled: set[str] = field(default_factory=set)
    ahead: int = 0
    late: list[str] = field(default_factory=list)
    searched: set[object] = field(default_factory=set)
    capturing: Graph | None = None
    processes: int = 1

    def work(self, seconds: float) -> None:
        """Give the GPU so much more to do."""
        if self.capturing is not None:
            self.capturing.seconds += seconds
            return
        self.gpu = max(self.gpu, self.host) + seconds

    def wait(self) -> None:
        """Let the host wait for the GPU."""
        self.host = max(self.host, self.gpu)

    def launch(self, launch: Any, _: torch.device) -> None:
        """In place of a kernel's launch; one that nobody compiled ahead holds up the host."""
        if not launch.grid[0]:
            return
        key = _name(compiling._specialised(launch).key)
        if key not in self.compiled:
            self.compiled.add(key)
            self.late.append(launch.kernel.fn.__name__)
            self.host += COMPILE / self.processes
        self.host += HOST
        self.work(KERNEL)


def _name(key: object) -> str:
    return repr(key)


# --- in place of torch.cuda ----------------------------------------------------------------------


def cuda(machine: Machine) -> dict[str, Any]:
    """What stands in for the names of ``torch.cuda``."""

    class Event:
        def __init__(self, **_: Any) -> None:
            self.at = 0.0

        def record(self, *_: Any) -> None:
            machine.host += HOST / 10
            machine.gpu = self.at = max(machine.gpu, machine.host)

        def query(self) -> bool:
            return machine.host >= self.at

        def synchronize(self) -> None:
            machine.host = max(machine.host, self.at)

        def wait(self, *_: Any) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def wait_stream(self, _: Stream) -> None:
            pass

    @contextlib.contextmanager
    def graph(captured: Graph) -> Iterator[None]:
        machine.host += CAPTURE
        machine.capturing = captured
        try:
            yield
        finally:
            machine.capturing = None

    def sleep(cycles: int) -> None:
        machine.host += HOST / 10
        machine.work(cycles / CYCLES_PER_SECOND)

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: GPU,
        "get_device_name": lambda *_: GPU.name,
        "get_device_capability": lambda *_: (GPU.major, GPU.minor),
        "synchronize": lambda *_: machine.wait(),
        "empty_cache": lambda: None,
        "current_stream": lambda *_: Stream(),
        "is_current_stream_capturing": lambda: machine.capturing is not None,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": lambda: Graph(machine),
        "graph": graph,
        "_sleep": sleep,
    }


class Graph:
    """A captured graph: so much work for the GPU."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.seconds = machine, 0.0

    def replay(self) -> None:
        """Give it to the GPU."""
        self._machine.host += HOST
        self._machine.work(self.seconds)


class Shapes(FakeTensorMode):
    """Tensors without data; every operation takes its time."""

    avoid_device_init = True  # whatever ``torch.cuda.is_available`` says meanwhile

    def __init__(self, machine: Machine) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._machine = machine
        self.shapes_only = False

    def dispatch(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run an operation on shapes alone."""
        machine, aten = self._machine, torch.ops.aten
        machine.host += HOST
        if func is aten._local_scalar_dense.default:
            machine.wait()
            if args[0].dtype == torch.bool:
                # What is compared is right: ``all`` holds; ``any`` is asked of what must not be.
                return not getattr(args[0], "is_any", False)
            return 1
        if func is aten.allclose.default:
            return True
        if func is torch.ops.drowsy.conv2d.default and args[0].is_cuda and not self.shapes_only:
            with self:
                return ops._conv2d(*args)
        if func is aten.nonzero.default:
            with self:
                return torch.empty(1, args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is aten.bincount.default:
            size = (kwargs or {}).get("minlength", 1)
            with self:
                return torch.empty(size, dtype=torch.int64, device=args[0].device)
        if func is aten.split_with_sizes.default:
            # Sizes are counted from data, of which the rows above know nothing.
            x, sizes, dim = (*args, 0)[:3]
            if sum(sizes) != x.shape[dim]:
                shape = [*x.shape]
                shape[dim] = sum(sizes)
                with self:
                    args = (torch.empty(shape, dtype=x.dtype, device=x.device), sizes, dim)
        if func is aten.cudnn_convolution_relu.default:
            x, weight, bias, stride, padding, dilation, groups = args
            return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if func is aten.convolution.default and torch.backends.cudnn.benchmark:
            found = (args[0].shape, args[0].dtype, args[1].shape, *args[3:])
            if repr(found) not in machine.searched:
                machine.searched.add(repr(found))
                machine.host += CUDNN_SEARCH
        moves = getattr(func, "overloadpacket", None) in (aten.to, aten._to_copy)
        if moves and getattr(args[0], "constant", None) is not None:
            # A number whose value is known would be moved in earnest.
            args[0].constant = None
        made = super().dispatch(func, types, args, kwargs)
        if isinstance(made, Tensor) and func.namespace == "aten" and not func.is_view:
            machine.work(made.numel() * made.element_size() / BYTES)
        if func in (aten.any.default, aten.any.dim, aten.any.dims):
            made.is_any = True  # type: ignore[attr-defined]
        return made


class Indexed(TorchFunctionMode):
    """Takes ``cuda`` for ``cuda:0``: what `_guard_cuda` leaves torch with knows no current GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call with the index."""
        if func is Tensor.to:
            args = [_indexed(each) for each in args]
            kwargs = {name: _indexed(each) for name, each in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _indexed(value: object) -> object:
    bare = isinstance(value, (str, torch.device)) and str(value) == "cuda"
    return torch.device("cuda", 0) if bare else value


class Generator:
    """Draws nothing, on a GPU."""

    def __init__(self, device: Any = None) -> None:
        self.device = torch.device(device or "cpu")

    def manual_seed(self, _: int) -> Generator:
        """Itself."""
        return self


class Profile(contextlib.nullcontext):
    """In place of torch's profiler; sees nothing."""

    def __init__(self, **_: Any) -> None:
        super().__init__(self)

    def key_averages(self) -> list[Any]:
        """None."""
        return []


# --- in place of compilers and meters ------------------------------------------------------------


class Pool:
    """In place of the compiling processes: each kernel takes one of them for a while."""

    machine: Machine

    def __init__(self, *_: Any, **__: Any) -> None:
        self._free = [self.machine.host + START / 2] * WORKERS

    def submit(self, _: Callable[..., None], made: compiling.Specialisation) -> float:
        """When it is compiled."""
        begin = max(heapq.heappop(self._free), self.machine.host)
        key = _name(made.key)
        seconds = 0.0 if key in self.machine.compiled else COMPILE
        if seconds:
            self.machine.compiled.add(key)
            self.machine.ahead += 1
        heapq.heappush(self._free, begin + seconds)
        return begin + seconds

    def shutdown(self, **_: Any) -> None:
        """Nothing runs."""


class GpuSensor:
    """In place of NVML."""

    device, name, driver, counts = "cuda:0", str(GPU.name), None, True
    power, power_limit, notes = "instant", 700.0, ()
    machine: Machine

    def __init__(self, index: int) -> None:
        pass

    def count(self) -> Count:
        """At 500 W."""
        return Count(500 * self.machine.host)

    def sample(self, full: bool) -> Sample:
        """500 W."""
        return Sample(self.machine.host, watts=500.0)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self.machine.wait()


def _compiled(machine: Machine) -> Callable[..., Any]:
    """In place of ``torch.compile``; the first call searches."""

    def compile(model: Any, *, options: Any = None, **_: Any) -> Callable[..., Any]:
        begun = False

        def run(*inputs: Any) -> Any:
            nonlocal begun
            if not begun:
                machine.host += COMPILE_LAYER if options else COMPILE_NETWORK
            begun = True
            return model(*inputs)

        return run

    return compile


def _apply(module: torch.nn.Module, fn: Callable[[Tensor], Tensor], _: bool = True) -> Any:
    """``Module._apply``, which cannot change parameters without data; they stay who they are.

    A converted network shares them with what it stands in for, and asks whether they are the same.
    """
    for child in module.children():
        child._apply(fn)
    for parameter in module._parameters.values():
        if parameter is not None and (made := fn(parameter)) is not parameter:
            made = torch.nn.Parameter(made, parameter.requires_grad)
            # As ``torch.utils.swap_tensors``, which refuses where there are weak references.
            torch._C._swap_tensor_impl(parameter, made)
            parameter.__dict__, made.__dict__ = made.__dict__, parameter.__dict__
            _SWAPPED.append(made)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else _descended(fn(buffer), buffer)
    return module


_ORIGINS = itertools.count()
_SWAPPED: list[Tensor] = []


def _descended(now: Tensor, was: Tensor) -> Tensor:
    """What a module's tensor has become, which tells what it comes from; so do copies of it."""
    if now is not was:
        if not hasattr(was, "origin"):
            was.origin = next(_ORIGINS)  # type: ignore[attr-defined]
        now.origin = was.origin  # type: ignore[attr-defined]
    return now


def _stands_for(now: Tensor | None, was: Tensor) -> bool:
    """Whether a module's tensor has become another by moves alone: their numbers would be equal."""
    return now is was or getattr(now, "origin", None) == getattr(was, "origin", now)


def _kept(method: Callable[..., Any], kept: list[Any] = []) -> Callable[..., Any]:  # noqa: B006
    """A method whose object lives as long as the process; also what is made by copying."""

    def keeping(self: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(self)
        return method(self, *arguments, **options)

    return keeping


def _guard_cuda() -> None:
    """Let torch built without CUDA switch to a CUDA device, which is as little work as for CPUs.

    It keeps what switches devices in a table by type of device, CPU first and then CUDA.
    """
    if not torch.backends.cuda.is_built():
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        symbol = "_ZN3c104impl26device_guard_impl_registryE"
        table = (ctypes.c_void_p * 2).in_dll(library, symbol)
        table[1] = table[0]


@contextlib.contextmanager
def standing_in(machine: Machine) -> Iterator[None]:
    """Let this process believe that it has a GPU."""
    _guard_cuda()
    gc.disable()
    mode = Shapes(machine)

    def drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *size, generator=None, **options: draw(*size, **options)

    def advance(seconds: float) -> None:
        machine.host += seconds

    def now() -> float:
        return machine.host

    # pytest-benchmark looks its timer up by name.
    now.__module__, now.__name__ = "time", "perf_counter"

    def wait(futures: Iterable[float], seconds: float | None = None) -> None:
        end = max(futures, default=machine.host)
        if seconds is not None:
            end = min(end, machine.host + seconds)
        machine.host = max(machine.host, end)

    @contextlib.contextmanager
    def same_mode(**_: Any) -> Iterator[Any]:
        mode.shapes_only = True
        try:
            yield mode
        finally:
            mode.shapes_only = False

    Pool.machine = GpuSensor.machine = machine
    clock = drowsy.sensors.clock
    with contextlib.ExitStack() as stack:
        # The address of a tensor without data is 0, which torch thinks worth a warning.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        for name, value in cuda(machine).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for target, name, value in (
            (torch, "Generator", Generator),
            (torch, "randn", drawn(torch.randn)),
            (torch, "rand", drawn(torch.rand)),
            (torch.profiler, "profile", Profile),
            (torch.nn.Module, "_apply", _apply),
            # Parameters without data that die take the process with them (torch 2.13): none does.
            (networks, "fuse", lambda model: model),
            (torch.nn.Module, "__init__", _kept(torch.nn.Module.__init__)),
            (torch.nn.Module, "__setstate__", _kept(torch.nn.Module.__setstate__)),
            (gc, "collect", lambda: 0),
            (torch, "compile", _compiled(machine)),
            (torch._dynamo, "reset", lambda: None),
            # Another rate gives other outputs, the same seed the same: what test_turn is about.
            (torch, "equal", lambda *_: "-set" not in os.environ.get("PYTEST_CURRENT_TEST", "")),
            (time, "monotonic", now),
            (time, "perf_counter", now),
            (clock, "now", lambda: machine.host),
            (clock, "sleep", advance),
            (clock, "every", lambda *_: lambda: None),
            (drowsy.sensors.devices, "NvmlGpu", GpuSensor),
            # Tensors without data are what runs here, no compiler's and no exporter's.
            (drowsy.network.inference, "Tensor", FakeTensor),
            # Nor can they be marked: a module that a layer stands in for hands on what it is given.
            (drowsy.network.layer, "mark", lambda y, *_: y),
            (drowsy.network.folded, "_stands_for", _stands_for),
            (drowsy.network.tail.Absorbed, "forward", lambda _, y: y),
            (drowsy.graph.running, "FakeTensorMode", same_mode),
            (drowsy.graph.overwriting, "FakeTensorMode", same_mode),
            (
                drowsy_kernels.launch.Launch,
                "run",
                lambda self, device: machine.launch(self, device),
            ),
            (compiling, "ProcessPoolExecutor", Pool),
            (compiling, "wait", wait),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        with mode, Indexed():
            yield


# --- a run ---------------------------------------------------------------------------------------


# What a test that looks at data raises where there is none, by type and by what torch says.
NO_DATA = (
    AssertionError,
    pytest.fail.Exception,
    IndexError,
    DataDependentOutputException,
    DynamicOutputShapeException,
)
FAKE = re.compile(
    "FakeTensor|UntypedStorage|not supported for tensor subclasses|Can't pickle|holds NaN"
    "|Error while serializing"
)


def _needs_data(error: BaseException) -> bool:
    if FAKE.search(str(error)):
        return True
    # What is refused with another message depends on no data.
    return isinstance(error, NO_DATA) and "Regex pattern did not match" not in str(error)


class Outcomes:
    """Counts what pytest's tests came to.

    Args:
        machine: whose clock tests take.
        tests: whether these are tests of ours, and no benchmarks: comparisons of their own, which
            mean nothing without data, may fail.
    """

    def __init__(self, machine: Machine, tests: bool) -> None:
        self.ran, self.left, self.failed, self.without_data = 0, 0, 0, 0
        self.incomplete = False
        self._machine, self._tests = machine, tests

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        """Forgive what needs data."""
        report: Any = yield  # type: ignore[misc]
        error = call.excinfo and call.excinfo.value
        if self._tests and error is not None and _needs_data(error):
            self.without_data += 1
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, "needs data")
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one; a failure is told at once."""
        if self._tests and report.when == "call":
            self._machine.host += TEST / self._machine.processes
        if report.failed:
            self.failed += 1
            print(f"{report.nodeid}\n{report.longreprtext}")
        elif report.skipped:
            self.left += "the deadline" in str(report.longrepr)
        elif report.when == "call":
            self.ran += 1


def run(module: str, arguments: list[str], machine: Machine) -> Outcomes:
    """Run a module's command line on the stand-in."""
    # Other processes would not share the clock: pytest-xdist's share of the work is reckoned.
    workers = [each for each in arguments if re.fullmatch(r"-n\d+", each)]
    if workers:
        machine.processes = int(workers[-1][2:])
        arguments = ["-p", "no:xdist", *(each for each in arguments if each not in workers)]
    outcomes = Outcomes(machine, tests="bench.checking" in arguments)
    machine.host += START * (2 if workers else 1)
    with standing_in(machine):
        if module == "pytest":
            code = int(pytest.main([*arguments, "--tb=short"], plugins=[outcomes]))
            # 5: nothing is left to measure, or the time was over.
            outcomes.failed += code not in (0, 1, 5)
        else:
            with mock.patch.object(sys, "argv", [module, *arguments]):
                try:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                except SystemExit as end:
                    outcomes.incomplete = end.code == INCOMPLETE
                    outcomes.failed += end.code not in (0, None, INCOMPLETE)
        machine.wait()
    return outcomes


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code."""
    folder, limit, module, *rest = arguments
    memory = Path(folder) / "dry_run.json"
    begin, compiled = json.loads(memory.read_text()) if memory.exists() else (0.0, [])
    machine = Machine(begin, begin, set(compiled))
    outcomes = run(module, rest, machine)
    seconds = machine.host - begin
    write_json(memory, [machine.host, sorted(machine.compiled)])
    (Path(folder) / "seconds").write_text(str(math.ceil(machine.host)))
    late = f", {len(machine.late)} while measuring" if machine.late else ""
    without = (
        f", {outcomes.without_data} end where data are compared" if outcomes.without_data else ""
    )
    print(
        f"{outcomes.ran} tests, {outcomes.failed} failed, {outcomes.left} past the deadline"
        f"{without}; {machine.ahead} kernels compiled ahead{late}; {seconds:.0f} of {limit} s"
    )
    if machine.late:
        print(f"compiled while measuring: {', '.join(sorted(set(machine.late)))}")
    if outcomes.failed or seconds > float(limit):
        return 1
    return INCOMPLETE if outcomes.left or outcomes.incomplete else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
