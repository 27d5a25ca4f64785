"""Joules, measured: of a block of code, of a function repeated, of a network's operating points.

    meter = Meter(device=0)
    meter.measure_idle()               # before any work: what the GPU draws anyway
    with meter:
        ...                            # 5 seconds of work, or more
    meter.measurement                  # joules_counter, joules_integrated, joules_above_idle, ...

A window, opened by ``with`` or by ``begin(name)`` and closed by its end or ``end(name)``:

        begin                                                                  end
          | wait for the device                            wait for the device  |
          | sample; read the counter                  read the counter; sample  |
          v                                                                     v
    ------[=====================================================================]-----> time
         o       o       o       o       o       o       o       o       o       o
         |       |_______|                                                       |
         |           |                                                           |
         |           trapezoids between samples of power; their sum, cut at the  |
         |           window's ends, is joules_integrated                         |
         first sample, just before            last sample, just after the window

``joules_counter`` is the counter's difference between the two ends. Samples come from a thread:
power every 20 ms; temperature, clocks and what holds them every 200 ms. Windows may nest and
overlap. A repeated function:

    idle ------------- warm-up -- pace --[ calls, back to back, for 5 s or more ]
    measure_idle()     measure(fn): joules, seconds and calls of the window in brackets

What cannot be read is None, with a warning that says why; nothing is estimated, and a machine that
meters nothing raises ``NoMeter``. Counter and integral are two sums over one sensor of the GPU's:
where they agree, no sample was lost and the ends are right, but the sensor may still be wrong. On
the A100 and H100 it looks a quarter of the time (Yang et al., arXiv 2312.02741), and counters move
in steps of up to 100 ms: hence windows of many calls and of 5 seconds or more.
"""

from drowsy.energy.measurement import DeviceMeasurement, Measurement, Spread, Temperature
from drowsy.energy.meter import Availability, Meter, available, measure
from drowsy.energy.profiling import Profile, measured_gains, profile, profile_table
from drowsy.sensors.sensor import NoMeter

__all__ = [
    "Availability",
    "DeviceMeasurement",
    "Measurement",
    "Meter",
    "NoMeter",
    "Profile",
    "Spread",
    "Temperature",
    "available",
    "measure",
    "measured_gains",
    "profile",
    "profile_table",
]
