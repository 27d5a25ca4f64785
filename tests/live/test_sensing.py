"""What the device tells, or why it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_nvml import FakeClock, FakeRapl, clock

from drowsy.live.sensing import Sensing

__all__ = ["clock"]


@pytest.fixture
def rapl(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeRapl:
    tree = FakeRapl(tmp_path / "powercap", clock).install(monkeypatch)
    tree.add("intel-rapl:0", "package-0", 100.0)
    return tree


def zone(root: Path) -> None:
    folder = root / "class/thermal/thermal_zone0"
    folder.mkdir(parents=True)
    (folder / "type").write_text("x86_pkg_temp\n")
    (folder / "temp").write_text("51000\n")


def test_both_are_told_where_both_are(tmp_path: Path, rapl: FakeRapl, clock: FakeClock) -> None:
    zone(tmp_path)
    sensing = Sensing("cpu", tmp_path)
    assert sensing.why == {}
    assert sensing.now() == {"watts": None, "celsius": 51.0}
    clock.advance(1.0)
    assert sensing.now()["watts"] == pytest.approx(100.0, rel=1e-3)
    sensing.close()
    assert clock.running == []


@pytest.mark.usefixtures("clock")
def test_what_is_missing_is_said(tmp_path: Path, rapl: FakeRapl) -> None:
    sensing = Sensing("cpu", tmp_path)
    assert sensing.why.keys() == {"celsius"}
    assert "temperature" in sensing.why["celsius"]
    assert sensing.board is not None
    sensing.close()
    shutil.rmtree(rapl.folder)
    sensing = Sensing("cpu", tmp_path)
    assert sensing.why.keys() == {"watts", "celsius"}
    assert sensing.board is None
    assert sensing.now() == {"watts": None, "celsius": None}
    sensing.close()
    zone(tmp_path)
    sensing = Sensing("cpu", tmp_path)
    assert sensing.why.keys() == {"watts"}
    assert sensing.now() == {"watts": None, "celsius": 51.0}
    sensing.close()
