"""NVIDIA GPUs, through NVML: an energy counter, power, temperature, clocks and what holds them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from drowsy._optional import pip_line, require
from drowsy.sensors.counter import Counter
from drowsy.sensors.sensor import MOST_WATTS, Count, NoMeter, Sample, Unread, clock

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


_COUNTER_UPDATE = 0.1  # seconds, at most, between steps of the counter


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
        self._handle = self._find()
        self.name: str = self._known(nvml.nvmlDeviceGetName) or "of unknown name"
        self.driver: str | None = nvml.nvmlSystemGetDriverVersion()
        notes = []
        mig = self._known(nvml.nvmlDeviceGetMigMode)
        if mig is not None and mig[0] == nvml.NVML_FEATURE_ENABLED:
            notes.append(
                "is split by MIG, and NVML meters the whole board: the figures hold the work of "
                "every instance on it"
            )
        self._counter: Counter | None = None
        try:
            self._counter = Counter(self._millijoules, per_joule=1000, update=_COUNTER_UPDATE)
        except Unread as error:
            notes.append(
                f"has no energy counter ({error}); it takes Volta or later, and a whole GPU "
                "rather than a MIG instance"
            )
        self.counts = self._counter is not None
        self.power: str | None = None
        for power, watts in (("instant", self._instant), ("usage", self._usage)):
            try:
                watts()
            except Unread as error:
                untold = error
            else:
                self.power, self._watts = power, watts
                break
        else:
            notes.append(f"tells no power ({untold})")
        if not self.counts and self.power is None:
            raise NoMeter(f"{self.device} ({self.name}) {' and '.join(notes)}")
        limit = self._known(nvml.nvmlDeviceGetEnforcedPowerLimit)
        self.power_limit = None if limit is None else limit / 1e3
        self.notes = tuple(notes)

    def count(self) -> Count:
        return Count(None) if self._counter is None else self._counter.count()

    def sample(self, full: bool) -> Sample:
        before = clock.now()
        watts = self._power()
        when = (before + clock.now()) / 2
        if not full:
            return Sample(when, watts)
        nvml = self._nvml
        reasons = self._known(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return Sample(
            when,
            watts,
            celsius=self._known(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            sm_mhz=self._known(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_mhz=self._known(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            reasons=None if reasons is None else _names(reasons),
        )

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._index)

    def _find(self) -> Any:
        """NVML's handle of torch's device.

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
                return attempt()
            except nvml.NVMLError as error:
                why = error
        raise NoMeter(f"{self.device}: NVML does not know torch's GPU {uuid} (NVML: {why})")

    def _millijoules(self) -> int:
        return self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def _power(self) -> float | None:
        try:
            return None if self.power is None else self._watts()
        except Unread:
            return None

    def _usage(self) -> float:
        return _believed(self._ask(self._nvml.nvmlDeviceGetPowerUsage) / 1e3)

    def _instant(self) -> float:
        field = self._nvml.NVML_FI_DEV_POWER_INSTANT
        (value,) = self._ask(self._nvml.nvmlDeviceGetFieldValues, [field])
        if value.nvmlReturn != self._nvml.NVML_SUCCESS:
            raise Unread(f"NVML: {self._nvml.NVMLError(value.nvmlReturn)}")
        return _believed(value.value.uiVal / 1e3)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML says of this GPU; ``Unread`` where it says why not."""
        try:
            return call(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            raise Unread(f"NVML: {error}") from error

    def _known(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML says of this GPU, or None."""
        try:
            return self._ask(call, *arguments)
        except Unread:
            return None


def _nvml() -> ModuleType:
    try:
        nvml = require("pynvml", "energy")
    except ImportError as error:
        raise NoMeter(f"GPU energy is read by NVML: {error}") from error
    if not hasattr(nvml, "NVML_FI_DEV_POWER_INSTANT"):
        raise NoMeter(
            f"GPU energy is read by NVML, and the pynvml in {nvml.__file__} does not know a GPU's "
            f"power at one moment; it is another package or too old: {pip_line('energy')}"
        )
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


def _believed(watts: float) -> float:
    """No GPU that answers draws nothing, and none draws megawatts: drivers say so for "unknown"."""
    if 0 < watts <= MOST_WATTS:
        return watts
    raise Unread(f"NVML tells {watts:,.7g} W, believed: above 0, up to {MOST_WATTS:,.0f} W")
