"""Which sensors a device has, by the names that torch gives to devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from drowsy.sensors.nvml import NvmlGpu
from drowsy.sensors.rapl import rapl_domains
from drowsy.sensors.sensor import NoMeter, Sensor

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
