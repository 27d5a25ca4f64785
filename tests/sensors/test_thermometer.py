"""Temperatures in trees of hwmon and thermal zones as machines have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from drowsy.sensors import NoMeter, Thermometer, Unread, cpu_thermometer, thermometers


def hwmon(root: Path, number: int, driver: str, **parts: tuple[str, int]) -> Path:
    """A chip; parts: ``temp1=("Package id 0", 48000)``, the label empty for none."""
    folder = root / f"class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{driver}\n")
    for name, (label, value) in parts.items():
        (folder / f"{name}_input").write_text(f"{value}\n")
        if label:
            (folder / f"{name}_label").write_text(f"{label}\n")
    return folder


def zone(root: Path, number: int, kind: str, value: int) -> Path:
    folder = root / f"class/thermal/thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{kind}\n")
    (folder / "temp").write_text(f"{value}\n")
    return folder


def test_an_intel_machine_tells_its_package(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "nvme", temp1=("Composite", 38850))
    hwmon(tmp_path, 1, "coretemp", temp1=("Core 0", 51000), temp2=("Package id 0", 53000))
    zone(tmp_path, 0, "acpitz", 27800)
    found = cpu_thermometer(tmp_path)
    assert (found.name, found.celsius()) == ("coretemp Package id 0", 53.0)
    assert [each.name for each in thermometers(tmp_path)] == [
        "nvme Composite",
        "coretemp Core 0",
        "coretemp Package id 0",
        "acpitz",
    ]


def test_an_amd_machine_tells_its_control_temperature(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "k10temp", temp1=("Tctl", 61125), temp3=("Tccd1", 58000))
    assert cpu_thermometer(tmp_path).celsius() == 61.125


@pytest.mark.parametrize(
    "kind", ["x86_pkg_temp", "cpu-thermal", "cpu_thermal", "cpu0-thermal", "soc_thermal"]
)
def test_a_board_tells_a_thermal_zone(kind: str, tmp_path: Path) -> None:
    zone(tmp_path, 0, "battery", 30000)
    zone(tmp_path, 1, kind, 44251)
    assert cpu_thermometer(tmp_path).celsius() == 44.251


def test_one_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    chip = hwmon(tmp_path, 0, "coretemp", temp1=("Package id 0", 50000))
    (chip / "temp1_input").write_text("")
    zone(tmp_path, 0, "x86_pkg_temp", 49000)
    assert cpu_thermometer(tmp_path).name == "x86_pkg_temp"


@pytest.mark.parametrize("text", ["", "hot", "0", "-273200", "200000", "1_0", "99999999999", "4.5"])
def test_what_is_no_temperature(text: str, tmp_path: Path) -> None:
    file = tmp_path / "temp"
    file.write_text(text)
    with pytest.raises(Unread, match=r"temp (holds|is empty)"):
        Thermometer("cpu", file).celsius()


def test_what_is_no_text_or_vanishes(tmp_path: Path) -> None:
    file = tmp_path / "temp"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Unread, match="holds no text"):
        Thermometer("cpu", file).celsius()
    file.unlink()
    with pytest.raises(Unread, match="cannot be read"):
        Thermometer("cpu", file).celsius()
    file.mkdir()
    with pytest.raises(Unread, match="cannot be read"):
        Thermometer("cpu", file).celsius()


def test_frost_is_a_temperature(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", -12500)
    assert cpu_thermometer(tmp_path).celsius() == -12.5


def test_none_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NoMeter, match="there: none"):
        cpu_thermometer(tmp_path)
    hwmon(tmp_path, 0, "nvme", temp1=("Composite", 38850))
    with pytest.raises(NoMeter, match="there: nvme Composite"):
        cpu_thermometer(tmp_path)
