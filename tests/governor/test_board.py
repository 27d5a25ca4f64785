"""Boards: what they read of stand-ins for NVML, RAPL and thermal zones, and who shares them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_nvml import FakeClock, FakeRapl

from drowsy.governor.board import Board, Reader, Reading, board_of
from drowsy.sensors import NoMeter, rapl_domains
from drowsy.sensors.thermometer import Thermometer

WATTS = 120.0  # of the packages and the memory of the fixture


def zone(root: Path, millidegrees: int) -> Path:
    folder = root / "class/thermal/thermal_zone0"
    folder.mkdir(parents=True)
    (folder / "type").write_text("x86_pkg_temp\n")
    (folder / "temp").write_text(f"{millidegrees}\n")
    return folder / "temp"


class Member:
    """Stands for a governor."""


def empty(rapl: FakeRapl) -> None:
    """Take RAPL away."""
    shutil.rmtree(rapl.folder)


def test_counters_tell_the_mean_since_the_last_reading(rapl: FakeRapl, clock: FakeClock) -> None:
    read = Reader(list(rapl_domains()))
    assert read().watts is None
    clock.advance(0.2)
    reading = read()
    assert reading.watts == pytest.approx(WATTS, rel=1e-3)
    assert reading.at - reading.since == pytest.approx(0.2)


def test_a_counter_that_is_reset_tells_nothing_once(rapl: FakeRapl, clock: FakeClock) -> None:
    read = Reader(list(rapl_domains()))
    clock.advance(10)
    read()
    rapl.put("intel-rapl:0", 0.0)
    clock.advance(0.2)
    reading = read()
    assert reading.watts is None
    assert "anew" in reading.why
    clock.advance(0.2)
    assert read().watts == pytest.approx(WATTS, rel=1e-3)


def test_a_thermometer_that_vanishes_is_told_and_the_watts_stay(
    tmp_path: Path, rapl: FakeRapl, clock: FakeClock
) -> None:
    file = zone(tmp_path, 51_000)
    read = Reader(list(rapl_domains()), Thermometer("cpu", file).celsius)
    read()
    clock.advance(0.2)
    assert read().celsius == 51.0
    file.unlink()
    clock.advance(0.2)
    reading = read()
    assert (reading.celsius, reading.watts) == (None, pytest.approx(WATTS, rel=1e-3))
    assert "cannot be read" in reading.why


def test_the_cpu_has_one_board_that_a_thread_reads(
    tmp_path: Path, rapl: FakeRapl, clock: FakeClock
) -> None:
    zone(tmp_path, 51_000)
    board = board_of("cpu", {"watts", "celsius"}, tmp_path)
    try:
        assert board_of("cpu", {"celsius"}, tmp_path) is board
        clock.advance(1.0)
        readings = board.after(0)
        assert [number for number, _ in readings] == list(range(1, len(readings) + 1))
        assert len(readings) >= 5
        assert readings[-1][1].watts == pytest.approx(WATTS, rel=1e-2)
        assert board.after(readings[-1][0]) == []
    finally:
        board.leave(Member())
    assert clock.running == []


def test_the_thread_ends_with_the_last_governor_and_begins_anew(
    tmp_path: Path, rapl: FakeRapl, clock: FakeClock
) -> None:
    board = board_of("cpu", {"watts"}, tmp_path)
    first, second = Member(), Member()
    board.join(first)
    board.join(second)
    board.leave(first)
    assert len(clock.running) == 1
    board.leave(second)
    assert clock.running == []
    assert board_of("cpu", {"watts"}, tmp_path) is board
    assert len(clock.running) == 1
    board.leave(second)


def test_temperature_alone_needs_no_meter(tmp_path: Path, rapl: FakeRapl) -> None:
    zone(tmp_path, 51_000)
    empty(rapl)
    board = board_of("cpu", {"celsius"}, tmp_path)
    board.leave(Member())
    assert board.tells == ("celsius",)


def test_what_cannot_be_read_here_is_an_error(tmp_path: Path, rapl: FakeRapl) -> None:
    empty(rapl)
    with pytest.raises(NoMeter, match="RAPL"):
        board_of("cpu", {"watts"}, tmp_path)
    with pytest.raises(NoMeter, match="temperature is read from"):
        board_of("cpu", {"celsius"}, tmp_path)


def test_readings_are_bounded_and_never_raised() -> None:
    def read() -> Reading:
        raise MemoryError

    board = Board("b", read)
    for _ in range(1000):
        board.sample()
    readings = board.after(0)
    assert len(readings) == 256
    assert readings[-1] == (1000, readings[-1][1])
    assert readings[-1][1].why == "MemoryError: "
