"""A clock that tests turn by hand, and a CPU whose counters follow it."""

from fake_nvml import clock, rapl

__all__ = ["clock", "rapl"]
