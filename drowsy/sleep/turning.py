"""Rates that change in one thread while layers run in others."""

from __future__ import annotations

import threading

TURNING = threading.Lock()
"""Held where thresholds and scales are written, and where the CPU reads a layer's: a layer then has
both of one setting. (Work on a GPU reads them later, in the order of its stream.)"""
