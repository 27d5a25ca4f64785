"""What a device tells: NVIDIA GPUs through NVML, CPUs through RAPL, hwmon and thermal zones.

A sensor reads one GPU or one RAPL domain. It counts joules, or tells watts, or both, and says why
where it cannot: nothing is ever estimated. Windows, integrals and warnings are ``drowsy.energy``'s.
"""

from drowsy.sensors.devices import Device, sensors
from drowsy.sensors.nvml import THROTTLES, NvmlGpu
from drowsy.sensors.rapl import RaplDomain, rapl_domains
from drowsy.sensors.sensor import Clock, Count, NoMeter, Sample, Sensor, Unread, clock
from drowsy.sensors.thermometer import Thermometer, cpu_thermometer, thermometers

__all__ = [
    "THROTTLES",
    "Clock",
    "Count",
    "Device",
    "NoMeter",
    "NvmlGpu",
    "RaplDomain",
    "Sample",
    "Sensor",
    "Thermometer",
    "Unread",
    "clock",
    "cpu_thermometer",
    "rapl_domains",
    "sensors",
    "thermometers",
]
