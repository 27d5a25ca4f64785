"""A clock that tests turn by hand, and a CPU whose counters follow it."""

from pathlib import Path

import pytest
from fake_nvml import FakeClock, FakeRapl, clock

__all__ = ["clock", "rapl"]


@pytest.fixture
def rapl(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeRapl:
    """A package and its memory, 120 W together."""
    tree = FakeRapl(tmp_path / "powercap", clock).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 100.0)
    tree.add("intel-rapl:0:0", "dram", 20.0)
    return tree
