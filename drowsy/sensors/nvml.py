"""NVIDIA GPUs, through NVML: an energy counter, power, temperature, clocks and what holds them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from drowsy._optional import require
from drowsy.sensors.sensor import NoMeter, Sample, clock

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
