"""Counters of CPUs that reset, leap or cannot be read: a reason each, and never a false joule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fake_nvml import FakeClock, FakeRapl, window

from drowsy.energy import Measurement, Meter, NoMeter

ZONE = "intel-rapl:0"
WATTS = 80.0


@pytest.fixture
def package(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeRapl:
    """A package that draws 80 W, whose counter has the range that most CPUs have."""
    tree = FakeRapl(tmp_path / "powercap", clock).install(monkeypatch)
    tree.add(ZONE, "package-0", WATTS)
    return tree


def told(measurement: Measurement) -> str:
    """The only warning, of a window that is long enough and whose joules are not known."""
    assert measurement.joules is None
    assert measurement.watts is None
    (warning,) = (each for each in measurement.warnings if "the window is" not in each)
    return warning


# --- wraps, resets and leaps ----------------------------------------------------------------------


def test_a_wrap_is_counted_through(package: FakeRapl, clock: FakeClock) -> None:
    package.put(ZONE, package.range / 1e6 - 100)
    with (meter := Meter("cpu")):
        clock.advance(6.0)
    assert package.count(ZONE) < 400e6  # it did wrap
    assert meter.measurement.joules == pytest.approx(6 * WATTS)
    assert meter.measurement.warnings == ()


def test_a_reset_in_a_short_window_is_not_a_wrap(package: FakeRapl, clock: FakeClock) -> None:
    """As a wrap it would be 262,093 J in 0.2 s."""
    package.put(ZONE, 50.0)
    with (meter := Meter("cpu")):
        clock.advance(0.1)
        package.put(ZONE, 0.0)
        clock.advance(0.1)
    assert told(meter.measurement) == (
        "cpu:package-0: the energy counter went back from 58.0 J to 1.6 J within 0.02 s, and a "
        "wrap would mean 262,086.9 J: was it reset?"
    )


def test_a_reset_is_noticed_where_the_counter_is_past_its_start_at_the_end(
    package: FakeRapl, clock: FakeClock
) -> None:
    package.put(ZONE, 5.0)
    with (meter := Meter("cpu")):
        clock.advance(1.0)
        package.put(ZONE, 0.0)
        clock.advance(5.0)
    assert "went back from 85.0 J to 1.6 J" in told(meter.measurement)
    samples = [each.joules for each in meter.measurement.devices[0].samples]
    assert min(samples) == pytest.approx(1.6)  # the record shows where the count began anew
    assert samples[-1] == pytest.approx(5 * WATTS)


def test_only_windows_with_the_reset_in_them_lose_their_joules(
    package: FakeRapl, clock: FakeClock
) -> None:
    with (meter := Meter("cpu")):
        meter.begin("before")
        clock.advance(5.0)
        before = meter.end("before")
        meter.begin("across")
        clock.advance(1.0)
        package.put(ZONE, 0.0)
        clock.advance(4.0)
        across = meter.end("across")
        meter.begin("after")
        clock.advance(5.0)
        after = meter.end("after")
    package.put(ZONE, 0.0)  # while nothing samples
    with meter:
        clock.advance(5.0)
    assert before.joules == pytest.approx(5 * WATTS)
    assert after.joules == meter.measurement.joules == pytest.approx(5 * WATTS)
    assert "was it reset?" in told(across)
    assert before.warnings == after.warnings == meter.measurement.warnings == ()


def test_idle_power_across_a_reset_is_not_known(package: FakeRapl, clock: FakeClock) -> None:
    meter = Meter("cpu", idle_watts=WATTS)
    stop = clock.every(2.0, lambda: package.put(ZONE, 0.0))
    assert meter.measure_idle() is None
    stop()
    with meter:
        clock.advance(5.0)
    assert meter.measurement.joules == pytest.approx(5 * WATTS)
    assert meter.measurement.joules_above_idle is None


def test_a_leap_is_not_counted(package: FakeRapl, clock: FakeClock) -> None:
    package.put(ZONE, 5.0)
    with (meter := Meter("cpu")):
        clock.advance(1.0)
        package.put(ZONE, 5000.0)
        clock.advance(4.0)
    assert told(meter.measurement) == (
        "cpu:package-0: the energy counter leapt from 85.0 J to 5,001.6 J within 0.02 s, more than "
        "5,000 W would take: was it reset?"
    )


@pytest.mark.parametrize("seconds", [40.0, 60.0])
def test_a_pause_is_counted_where_one_wrap_at_most_fits_into_it(
    seconds: float, package: FakeRapl, clock: FakeClock
) -> None:
    """5,000 W would go around 262,143 J in 52 s."""
    package.put(ZONE, package.range / 1e6 - 100)
    with (meter := Meter("cpu")):
        clock.pause(seconds)
        clock.advance(1.0)
    if seconds == 40:
        assert meter.measurement.joules == pytest.approx(41 * WATTS)
    else:
        assert meter.measurement.joules is None
        assert (
            "cpu:package-0: the energy counter was not read for 60 s, in which it may have wrapped "
            "more than once: its range is 262,143.3 J"
        ) in meter.measurement.warnings
    assert any(re.search(r"no sample for [46]0 s", each) for each in meter.measurement.warnings)


# --- files ----------------------------------------------------------------------------------------

NO_COUNT = [
    ("", "is empty"),
    ("\n", "is empty"),
    ("half", r"holds 'half', allowed: an integer"),
    ("-5\n", r"holds '-5', allowed: an integer"),
    ("1.5", r"holds '1\.5', allowed: an integer"),
    ("1_0", r"holds '1_0', allowed: an integer"),
    ("²", r"holds '²', allowed: an integer"),
]
NO_ACCESS = [
    (PermissionError(13, "Permission denied"), r"may not be read \(Permission denied\)"),
    (FileNotFoundError(2, "No such file or directory"), r"cannot be read \(No such file or dir"),
    (OSError(61, "No data available"), r"cannot be read \(No data available\)"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), r"holds no text \(invalid"),
]
OUT_OF_RANGE = ("262143328851", r"holds '262143328851', allowed: an integer from 0 to 262143328850")


@pytest.mark.parametrize(("held", "why"), [*NO_COUNT, *NO_ACCESS, OUT_OF_RANGE], ids=repr)
def test_a_counter_that_cannot_be_read_is_no_meter(
    held: str | Exception, why: str, package: FakeRapl
) -> None:
    package.files[ZONE] = held
    with pytest.raises(NoMeter, match=rf"read from RAPL, but .*{ZONE}/energy_uj {why}"):
        Meter("cpu")


@pytest.mark.parametrize(("held", "why"), [*NO_COUNT, *NO_ACCESS, OUT_OF_RANGE], ids=repr)
def test_a_counter_that_cannot_be_read_at_an_end_is_told(
    held: str | Exception, why: str, package: FakeRapl, clock: FakeClock
) -> None:
    with (meter := Meter("cpu")):
        clock.advance(3.0)
        package.files[ZONE] = held
        clock.advance(3.0)
    assert re.search(
        rf"counter could not be read at both ends .*{ZONE}/energy_uj {why}", told(meter.measurement)
    )
    with meter:
        clock.advance(3.0)
        del package.files[ZONE]
        clock.advance(3.0)
    assert re.search(f"{ZONE}/energy_uj {why}", told(meter.measurement))


@pytest.mark.parametrize(("held", "why"), [*NO_COUNT, *NO_ACCESS], ids=repr)
def test_a_counter_that_cannot_be_read_in_between_loses_nothing(
    held: str | Exception, why: str, package: FakeRapl, clock: FakeClock
) -> None:
    with (meter := Meter("cpu")):
        clock.advance(2.0)
        package.files[ZONE] = held
        clock.advance(2.0)
        del package.files[ZONE]
        clock.advance(2.0)
    assert meter.measurement.joules == pytest.approx(6 * WATTS)
    samples = meter.measurement.devices[0].samples
    assert sum(each.joules is None for each in samples) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("held", "why"), [*NO_COUNT, ("0\n", r"holds '0', allowed: .* 1 or more")])
def test_a_range_that_is_none_is_no_meter(held: str, why: str, package: FakeRapl) -> None:
    (package.folder / ZONE / "max_energy_range_uj").write_text(held)
    with pytest.raises(NoMeter, match=rf"but .*{ZONE}/max_energy_range_uj {why}"):
        Meter("cpu")


def test_thousands_of_digits_are_no_count(package: FakeRapl, clock: FakeClock) -> None:
    """More than Python makes an integer of: an error from a thread that nobody would see."""
    with (meter := Meter("cpu")):
        clock.advance(3.0)
        package.files[ZONE] = "9" * 5000
        clock.advance(3.0)
    assert re.search(r"energy_uj holds '9{40}', allowed: an integer", told(meter.measurement))
    (package.folder / ZONE / "max_energy_range_uj").write_text("9" * 5000)
    with pytest.raises(NoMeter, match=r"max_energy_range_uj holds '9{40}', allowed: an integer"):
        Meter("cpu")


@pytest.mark.parametrize("file", ["name", "max_energy_range_uj"])
def test_a_file_that_is_not_there_is_named(file: str, package: FakeRapl) -> None:
    (package.folder / ZONE / file).unlink()
    with pytest.raises(NoMeter, match=rf"{ZONE}/{file} cannot be read \(No such file"):
        Meter("cpu")


def test_a_domain_without_a_name_is_not_left_out_of_the_sum(package: FakeRapl) -> None:
    package.add("intel-rapl:1", "", 30.0)
    with pytest.raises(NoMeter, match=r"intel-rapl:1/name is empty"):
        Meter("cpu")


def test_domains_by_one_name_are_not_added(package: FakeRapl) -> None:
    """A machine with two packages names them apart; here two drivers may tell of one counter."""
    package.add("intel-rapl:1", "package-0", WATTS)
    with pytest.raises(
        NoMeter,
        match=r"has package-0 twice, as RAPL intel-rapl:0 and as RAPL intel-rapl:1: if",
    ):
        Meter("cpu")


def test_memory_of_two_packages_has_two_names(package: FakeRapl) -> None:
    package.add("intel-rapl:0:0", "dram", 5.0)
    package.add("intel-rapl:1", "package-1", WATTS)
    package.add("intel-rapl:1:0", "dram", 5.0)
    assert Meter("cpu").devices == (
        "cpu:package-0",
        "cpu:dram of package-0",
        "cpu:package-1",
        "cpu:dram of package-1",
    )


# --- several domains ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "auto", torch.device("cpu")], ids=str)
def test_rapl_counts_packages_and_memory_around_the_wrap(
    device: str, rapl: FakeRapl, clock: FakeClock
) -> None:
    got = window(Meter(device), clock, 30.0)  # 2,400 J of package 0: nine times around 262 J
    assert [each.device for each in got.devices] == [
        "cpu:package-0",
        "cpu:dram of package-0",
        "cpu:package-1",
    ]
    assert [each.joules_counter for each in got.devices] == pytest.approx([2400, 300, 900])
    assert got.joules == pytest.approx(3600)
    assert got.watts == pytest.approx(120)
    assert got.joules_integrated is None  # RAPL tells no watts to integrate
    assert got.warnings == ()
    assert "watts" not in got.to_dict()["devices"][0]["samples"]


def test_a_file_that_may_not_be_read_is_named(
    rapl: FakeRapl, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def forbidden(path: Path, **options: object) -> str:
        if path.match("*/intel-rapl:1/energy_uj"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(
        NoMeter, match=r"intel-rapl:1/energy_uj may not be read \(Permission denied\).*chmod a\+r"
    ):
        Meter("cpu")


def test_a_file_that_vanishes_is_told(rapl: FakeRapl, clock: FakeClock) -> None:
    meter = Meter("cpu")
    with meter:
        clock.advance(6.0)
        del rapl.watts["intel-rapl:1"]
        (rapl.folder / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.measurement.joules is None
    file = rapl.folder / "intel-rapl:1" / "energy_uj"
    assert meter.measurement.warnings == (
        "cpu:package-1: the energy counter could not be read at both ends of the window: "
        f"{file} cannot be read (No such file or directory)",
    )
    file.write_text("half")
    with pytest.raises(NoMeter, match=r"intel-rapl:1/energy_uj holds 'half', allowed: an integer"):
        Meter("cpu")
