"""A clock for sensors, which tests turn by hand."""

from fake_nvml import clock

__all__ = ["clock"]
