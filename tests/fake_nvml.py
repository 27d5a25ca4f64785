"""Stand-ins for a machine that meters energy: a clock, NVML with GPUs that replay traces, RAPL.

A trace (``traces/*.json``) has the columns of a recording: seconds, watts, the counter in mJ,
degrees, clocks in MHz and NVML's bits of what holds them. Those here are made up, and describe no
real GPU. Between two rows the earlier one holds, and after the last row the trace starts again.
"""

from __future__ import annotations

import bisect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drowsy import sensors
from drowsy.energy import Measurement, Meter

TRACES = Path(__file__).parent / "traces"


class FakeClock:
    """Time that stands still until ``advance``, which makes the calls that are due meanwhile."""

    def __init__(self) -> None:
        self.time = 100.0
        self.running: list[_Repeated] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sensors.clock, "now", self.now)
        monkeypatch.setattr(sensors.clock, "sleep", self.advance)
        monkeypatch.setattr(sensors.clock, "every", self.every)

    def now(self) -> float:
        return self.time

    def every(self, seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        repeated = _Repeated(seconds, call, self.time + seconds)
        self.running.append(repeated)
        return lambda: self.running.remove(repeated)

    def pause(self, seconds: float) -> None:
        """Time passes and no thread gets to run."""
        self.time += seconds
        for each in self.running:
            each.due += seconds

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            self.time = min([end, *(each.due for each in self.running)])
            for each in self.running:
                if each.due <= self.time:
                    each.call()
                    each.due = self.time + each.seconds


@dataclass(eq=False)
class _Repeated:
    seconds: float
    call: Callable[[], object]
    due: float


class NVMLError(Exception):
    """As NVML's: made from a number, printed as a text."""

    TEXTS = {3: "Not Supported", 4: "Insufficient Permissions", 6: "Not Found", 15: "GPU is lost"}

    def __str__(self) -> str:
        return self.TEXTS[self.args[0]]


class FakeGpu:
    """A GPU that replays a trace.

    ``errors`` maps a reading (``counter``, ``power``, ``instant``, ``state``, ``mig``) to the NVML
    error that it gives. ``error_times`` limits them to a span of the trace. ``scale`` multiplies
    the counter. ``frozen`` stops it.
    """

    def __init__(self, clock: FakeClock, trace: str, **options: Any) -> None:
        data = json.loads((TRACES / f"{trace}.json").read_text())
        self.name, self.uuid, self.bus = data["name"], data["uuid"], data["bus"]
        self.limit = data["power_limit_watts"]
        self.columns: dict[str, list[float]] = data["columns"]
        self.clock, self.start = clock, clock.time
        self.errors: dict[str, int] = options.pop("errors", {})
        self.error_times: tuple[float, float] = options.pop("error_times", (0.0, float("inf")))
        self.scale: float = options.pop("scale", 1.0)
        self.frozen: bool = options.pop("frozen", False)
        self.mig: bool = options.pop("mig", False)
        assert not options

    def read(self, column: str, error: str) -> float:
        now = self.clock.time - self.start
        if error in self.errors and self.error_times[0] <= now <= self.error_times[1]:
            raise NVMLError(self.errors[error])
        seconds, values = self.columns["seconds"], self.columns[column]
        # Sums of 0.02 s fall short of a row's time by rounding.
        cycles, rest = divmod(now + 1e-9, seconds[-1])
        value = values[bisect.bisect_right(seconds, rest) - 1]
        if column == "mJ":
            first = 0 if self.frozen else cycles * (values[-1] - values[0])
            value = round(((0 if self.frozen else value) + first) * self.scale)
        return value


class FakeNvml:
    """The part of pynvml that drowsy calls, for these GPUs, in NVML's order."""

    NVMLError = NVMLError
    NVML_SUCCESS = 0
    NVML_FEATURE_ENABLED = 1
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_FI_DEV_POWER_INSTANT = 186

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = gpus

    def install(
        self, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...] | None = None
    ) -> list[int]:
        """Put it in pynvml's place; torch sees the GPUs in this order. Returns the list to which
        every ``torch.cuda.synchronize`` appends its device."""
        seen = [self.gpus[i] for i in (order or range(len(self.gpus)))]
        synchronized: list[int] = []

        def properties(index: int) -> SimpleNamespace:
            domain, bus, device = seen[index].bus.removesuffix(".0").split(":")
            return SimpleNamespace(
                uuid=seen[index].uuid.removeprefix("GPU-"),
                pci_domain_id=int(domain, 16),
                pci_bus_id=int(bus, 16),
                pci_device_id=int(device, 16),
            )

        monkeypatch.setitem(sys.modules, "pynvml", self)
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: len(seen))
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        monkeypatch.setattr("torch.cuda.get_device_properties", properties)
        monkeypatch.setattr("torch.cuda.synchronize", synchronized.append)
        return synchronized

    def nvmlInit(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return "600.00"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        return self._find("uuid", uuid)

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str) -> FakeGpu:
        return self._find("bus", pciBusId)

    def _find(self, attribute: str, value: str) -> FakeGpu:
        for gpu in self.gpus:
            # NVML does not find a MIG instance's parent by the instance's UUID.
            if getattr(gpu, attribute) == value and not (gpu.mig and attribute == "uuid"):
                return gpu
        raise NVMLError(6)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return handle.name

    def nvmlDeviceGetMigMode(self, device: FakeGpu) -> list[int]:
        handle = device
        if "mig" in handle.errors:
            raise NVMLError(handle.errors["mig"])
        return [int(handle.mig), int(handle.mig)]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:
        return int(handle.read("mJ", "counter"))

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return round(1000 * handle.read("watts", "power"))

    def nvmlDeviceGetFieldValues(self, handle: FakeGpu, fieldIds: list[int]) -> list[Any]:
        assert fieldIds == [self.NVML_FI_DEV_POWER_INSTANT]
        try:
            milliwatts, result = round(1000 * handle.read("watts", "instant")), 0
        except NVMLError as error:
            milliwatts, result = 0, error.args[0]
        return [SimpleNamespace(nvmlReturn=result, value=SimpleNamespace(uiVal=milliwatts))]

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return int(handle.read("celsius", "state"))

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, type: int) -> int:
        return int(handle.read({1: "sm_mhz", 2: "memory_mhz"}[type], "state"))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: FakeGpu) -> int:
        return int(handle.read("reasons", "state"))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: FakeGpu) -> int:
        return 1000 * handle.limit


class FakeRapl:
    """A powercap tree whose counters follow the clock, as they are read, and wrap around.

    ``files`` maps a counter's zone to what its file holds in place of what it counted, or to the
    error that reading it gives.
    """

    RANGE = 262_143_328_850  # microjoules: what most CPUs say, 2^32 units of 2^-14 J or so

    def __init__(self, folder: Path, clock: FakeClock, span: int = RANGE) -> None:
        self.folder, self.clock, self.start = folder, clock, clock.time
        self.range = span
        self.watts: dict[str, float] = {}
        self.offsets: dict[str, int] = {}
        self.files: dict[str, str | Exception] = {}

    def add(self, zone: str, name: str, watts: float) -> None:
        path = self.folder / zone
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "max_energy_range_uj").write_text(f"{self.range}\n")
        (path / "energy_uj").write_text("0\n")
        self.watts[zone], self.offsets[zone] = watts, int(0.9 * self.range)

    def put(self, zone: str, joules: float) -> None:
        """The counter stands here now and goes on: 0 is what a reset does."""
        self.offsets[zone] += int(1e6 * joules) - self.count(zone)

    def count(self, zone: str) -> int:
        taken = int(1e6 * self.watts[zone] * (self.clock.time - self.start))
        return (taken + self.offsets[zone]) % self.range

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeRapl:
        real = Path.read_text

        def read_text(path: Path, **options: Any) -> str:
            zone = path.parent.name
            if path.name != "energy_uj" or zone not in self.watts:
                return real(path, **options)
            held = self.files.get(zone, f"{self.count(zone)}\n")
            if isinstance(held, Exception):
                raise held
            return held

        monkeypatch.setattr(Path, "read_text", read_text)
        monkeypatch.setattr("drowsy.sensors.rapl.RAPL", self.folder)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        return self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """The time of a test, in place of the machine's."""
    clock = FakeClock()
    clock.install(monkeypatch)
    yield clock
    assert clock.running == []  # no test leaves a meter sampling


@pytest.fixture
def rapl(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeRapl:
    """Two packages, one of which tells of its memory; what is inside others must not count."""
    tree = FakeRapl(tmp_path / "powercap", clock, span=262_000_000).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 80.0)
    tree.add("intel-rapl:0:0", "core", 60.0)
    tree.add("intel-rapl:0:1", "dram", 10.0)
    tree.add("intel-rapl:1", "package-1", 30.0)
    tree.add("intel-rapl:2", "psys", 150.0)
    return tree


def gpu_meter(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, trace: str = "burst", **gpu: object
) -> Meter:
    FakeNvml(FakeGpu(clock, trace, **gpu)).install(monkeypatch)
    return Meter(0)


def window(meter: Meter, clock: FakeClock, seconds: float = 6.0) -> Measurement:
    with meter:
        clock.advance(seconds)
    return meter.measurement
