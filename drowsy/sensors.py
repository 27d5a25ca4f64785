"""What can be read of energy here: NVIDIA GPUs through NVML, CPUs through RAPL.

A sensor reads one GPU or one RAPL domain. It counts joules, or tells watts, or both, and says why
where it cannot: nothing is ever estimated. Windows, integrals and warnings are ``drowsy.energy``'s.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from drowsy._optional import require

RAPL = Path("/sys/class/powercap")

# NVML's bits of what holds a GPU's clocks, by nvidia-smi's names, and which of them mean less
# work a second than the GPU would do otherwise.
_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
THROTTLES = frozenset(
    {
        "sw_power_cap",
        "hw_slowdown",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
    }
)


class NoMeter(RuntimeError):
    """Energy cannot be measured: what was looked for, what is missing, and how to get it."""


class Clock:
    """The time; one place, so that tests can put theirs here."""

    now = staticmethod(time.perf_counter)
    sleep = staticmethod(time.sleep)

    @staticmethod
    def every(seconds: float, call: Callable[[], object]) -> Callable[[], None]:
        """Call again and again from a thread, this long after the last call returned.

        Returns:
            What ends it, and waits for a call that is under way.
        """
        stopped = threading.Event()

        def run() -> None:
            while not stopped.wait(seconds):
                call()

        def stop() -> None:
            stopped.set()
            thread.join()

        thread = threading.Thread(target=run, name="drowsy-energy", daemon=True)
        thread.start()
        return stop


clock = Clock()


@dataclass(frozen=True)
class Sample:
    """What a sensor told at one moment. None: cannot be read, or was not read this time.

    Attributes:
        seconds: when; since the window's start in a measurement.
        watts: power.
        joules: the counter since some moment in the past (RAPL only, which has no watts).
        celsius: temperature.
        sm_mhz, memory_mhz: clocks.
        reasons: what holds the clocks, by nvidia-smi's names.
    """

    seconds: float
    watts: float | None = None
    joules: float | None = None
    celsius: float | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    reasons: tuple[str, ...] | None = None


class Sensor(Protocol):
    """One GPU or one RAPL domain.

    Attributes:
        device: ``cuda:0`` or ``cpu:package-0``.
        name: the product's, or the domain's.
        driver: version of what is asked, or None.
        counts: whether there is an energy counter.
        power: what the watts are: ``instant``, ``usage`` (NVML's, often an average over the last
            second), or None where there are none.
        power_limit: watts, or None.
        notes: what a reader of the numbers must know: what cannot be read, and why.
    """

    device: str
    name: str
    driver: str | None
    counts: bool
    power: str | None
    power_limit: float | None
    notes: tuple[str, ...]

    def joules(self) -> float | None:
        """The energy counter, since some moment in the past; None where it cannot be read."""

    def sample(self, full: bool) -> Sample:
        """What is told now; ``full`` also reads temperature, clocks and their reasons."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""


# --- NVIDIA GPUs ----------------------------------------------------------------------------------


class NvmlGpu:
    """One NVIDIA GPU, found by the UUID or the PCI bus id of torch's device.

    Power is NVML's *instant* field where the driver has it: from Ampere on (the A100 aside), plain
    ``nvmlDeviceGetPowerUsage`` is an average over the last second.

    Raises:
        NoMeter: no pynvml, no driver, no such GPU, or one that tells neither joules nor watts.
    """

    def __init__(self, index: int) -> None:
        self.device = f"cuda:{index}"
        self._index = index
        self._nvml = nvml = _nvml()
        self._handle, mig = self._find()
        self.name = nvml.nvmlDeviceGetName(self._handle)
        self.driver: str | None = nvml.nvmlSystemGetDriverVersion()
        notes = []
        if mig:
            notes.append(
                "is split by MIG, and NVML meters the whole board: the figures hold the work of "
                "every instance on it"
            )
        self.counts, why = self._try(self._counter)
        if not self.counts:
            notes.append(
                f"has no energy counter (NVML: {why}); it takes Volta or later, and a whole GPU "
                "rather than a MIG instance"
            )
        instant, _ = self._try(self._instant)
        usage, why = (True, "") if instant else self._try(self._usage)
        self.power: str | None = "instant" if instant else "usage" if usage else None
        if self.power is None:
            notes.append(f"tells no power (NVML: {why})")
        if not self.counts and self.power is None:
            raise NoMeter(f"{self.device} ({self.name}) {' and '.join(notes)}")
        limit = self._read(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle))
        self.power_limit = None if limit is None else limit / 1e3
        self.notes = tuple(notes)

    def joules(self) -> float | None:
        return self._read(self._counter) if self.counts else None

    def sample(self, full: bool) -> Sample:
        watts: Callable[[], float] = self._instant if self.power == "instant" else self._usage
        before = clock.now()
        power = None if self.power is None else self._read(watts)
        when = (before + clock.now()) / 2
        if not full:
            return Sample(when, power)
        nvml, handle = self._nvml, self._handle
        return Sample(
            when,
            power,
            celsius=self._read(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            sm_mhz=self._read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_mhz=self._read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            reasons=self._read(
                lambda: _names(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            ),
        )

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def _find(self) -> tuple[Any, bool]:
        """NVML's handle of torch's device, and whether MIG splits it.

        CUDA_VISIBLE_DEVICES renumbers torch's devices and not NVML's, so an index is no name.
        """
        nvml = self._nvml
        properties: Any = torch.cuda.get_device_properties(self._index)
        uuid = str(properties.uuid)
        tried = [lambda: nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")]
        # A MIG instance has a UUID of its own; the bus id is the board's. Older torch lacks it.
        if hasattr(properties, "pci_bus_id"):
            bus = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
            tried.append(
                lambda: nvml.nvmlDeviceGetHandleByPciBusId("{:08x}:{:02x}:{:02x}.0".format(*bus))
            )
        for attempt in tried:
            try:
                handle = attempt()
            except nvml.NVMLError as error:
                why = error
                continue
            mode = self._read(functools.partial(nvml.nvmlDeviceGetMigMode, handle))
            return handle, mode is not None and mode[0] == nvml.NVML_FEATURE_ENABLED
        raise NoMeter(f"{self.device}: NVML does not know torch's GPU {uuid} (NVML: {why})")

    def _counter(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3

    def _usage(self) -> float:
        return self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3

    def _instant(self) -> float:
        field = self._nvml.NVML_FI_DEV_POWER_INSTANT
        (value,) = self._nvml.nvmlDeviceGetFieldValues(self._handle, [field])
        if value.nvmlReturn != self._nvml.NVML_SUCCESS:
            raise self._nvml.NVMLError(value.nvmlReturn)
        return value.value.uiVal / 1e3

    def _try(self, read: Callable[[], Any]) -> tuple[bool, str]:
        try:
            read()
        except self._nvml.NVMLError as error:
            return False, str(error)
        return True, ""

    def _read(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._nvml.NVMLError:
            return None


def _nvml() -> ModuleType:
    try:
        nvml = require("pynvml", "energy")
    except ImportError as error:
        raise NoMeter(f"GPU energy is read by NVML: {error}") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoMeter(
            f"GPU energy is read by NVML, which does not start ({error}): it comes with NVIDIA's "
            "driver, and a container must be given it (docker run --gpus all)"
        ) from error
    return nvml


def _names(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _REASONS.items() if bits & bit)


# --- CPUs -----------------------------------------------------------------------------------------


class RaplDomain:
    """One domain of RAPL, such as ``package-0`` or ``dram``: a folder of the powercap tree.

    RAPL counts joules and tells no watts. The counter wraps around; it is unwrapped as long as it
    is sampled more often than it wraps (minutes at full load).

    Raises:
        OSError: a file cannot be read.
    """

    driver: str | None = None
    counts = True
    power: str | None = None
    power_limit: float | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, name: str) -> None:
        self.device = f"cpu:{name}"
        self.name = f"RAPL {folder.name}"
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())
        self._total = 0

    def joules(self) -> float | None:
        try:
            now = int(self._file.read_text())
        except OSError:
            return None
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6

    def sample(self, full: bool) -> Sample:
        return Sample(clock.now(), joules=self.joules())

    def synchronize(self) -> None:
        """A CPU has done what it was given when the call returns."""


def rapl_domains() -> list[RaplDomain]:
    """Packages and their memory. (``core`` and ``uncore`` are parts of a package, ``psys`` holds
    packages: adding them would count joules twice.)

    Raises:
        NoMeter: no RAPL here, or a file of it that may not be read.
    """
    zones = sorted(RAPL.glob("intel-rapl:*"))
    domains, file = [], RAPL
    try:
        for zone in zones:
            file = zone / "name"
            name = file.read_text().strip()
            if not name.startswith(("package", "dram")):
                continue
            parent = zone.with_name(zone.name.rpartition(":")[0])
            if name == "dram" and parent in zones:
                name = f"dram of {(parent / 'name').read_text().strip()}"
            file = zone / "energy_uj"
            domains.append(RaplDomain(zone, name))
    except PermissionError as error:
        raise NoMeter(
            f"CPU energy is read from RAPL, but {file} may not be read ({error.strerror}): "
            f"run as root, or let others read it: sudo chmod a+r {RAPL}/intel-rapl:*/energy_uj"
        ) from error
    except (OSError, ValueError) as error:
        raise NoMeter(f"CPU energy is read from RAPL, but not from {file} here: {error}") from error
    if not domains:
        raise NoMeter(
            f"CPU energy is read from RAPL, but there is no {RAPL}/intel-rapl:*/energy_uj of a "
            "package: it takes Linux on an x86 CPU itself (virtual machines and most containers "
            "hide it) and its module: sudo modprobe intel_rapl_msr"
        )
    return domains


# --- choosing -------------------------------------------------------------------------------------

Device = int | str | torch.device


def sensors(device: Device | Sequence[Device]) -> list[Sensor]:
    """The sensors of a device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, 1, or several of these.

    ``auto`` is torch's current GPU where torch has one, and otherwise the CPU.

    Raises:
        NoMeter: it cannot be metered here.
        ValueError: no device by this name, none at all, or one twice.
    """
    each = device if isinstance(device, (list, tuple)) else [device]
    found = [sensor for one in each for sensor in _of(one)]
    names = [sensor.device for sensor in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"device: got {device!r}, allowed: one or more, each once")
    return found


def _of(device: Any) -> list[Sensor]:
    auto, name = device == "auto", device
    if auto:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif isinstance(device, int) and not isinstance(device, bool):
        name = f"cuda:{device}"
    try:
        where = torch.device(name)
    except (RuntimeError, TypeError):
        where = torch.device("meta")  # refused below
    if where.type == "cpu":
        try:
            return list(rapl_domains())
        except NoMeter as error:
            no_gpu = "torch finds no CUDA device, and " if auto else ""
            raise NoMeter(f"{no_gpu}{error}") from error
    if where.type != "cuda":
        raise ValueError(
            f"device: got {device!r}, allowed: auto, cpu, cuda, cuda:N or N, or a list of these"
        )
    if not torch.cuda.is_available():
        raise NoMeter(f"{where}: torch finds no CUDA device here")
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if where.index is None else where.index
    if index >= count:
        raise ValueError(f"device: got {device!r}, allowed: cuda:0 to cuda:{count - 1}")
    return [NvmlGpu(index)]
