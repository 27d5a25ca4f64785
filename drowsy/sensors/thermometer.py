"""Temperatures of CPUs and systems on a chip: Linux' hwmon and thermal zones.

Both hold millidegrees in a file a sensor. hwmon knows more chips and says which part is meant;
thermal zones are what small boards have. The CPU's own sensor is told from those of disks,
batteries and mainboards by the name of its driver.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from drowsy.sensors.sensor import NoMeter, Unread
from drowsy.sensors.sysfs import read_line

SYS = Path("/sys")

# Drivers of CPU sensors, the best first, and what they call the part that is the whole CPU.
_CPU_DRIVERS = (
    ("coretemp", r"package id \d+"),
    ("k10temp", r"tctl|tdie"),
    ("zenpower", r"tctl|tdie"),
    ("x86_pkg_temp", ""),
    (r"cpu[-_]?thermal|cpu\d*[-_].*|soc[-_]?thermal", ""),
    ("acpitz", ""),
)
# What no running machine has; sensors without a chip behind them tell such.
_COLDEST, _HOTTEST = -40.0, 150.0


@dataclass(frozen=True)
class Thermometer:
    """One sensor.

    Attributes:
        name: of its driver, and of the part where the driver names one.
        file: that holds its millidegrees.
    """

    name: str
    file: Path

    def celsius(self) -> float:
        """The temperature now.

        Raises:
            Unread: the file cannot be read, or holds no number from -40 to 150 degrees.
        """
        text = read_line(self.file)
        value = int(text) / 1000 if re.fullmatch(r"-?[0-9]{1,9}", text) else None
        if value is None or not _COLDEST < value < _HOTTEST or value == 0:
            raise Unread(
                f"{self.file} holds {text[:40]!r}, allowed: millidegrees of more than "
                f"{_COLDEST:.0f} and less than {_HOTTEST:.0f} degrees, and not 0"
            )
        return value


def thermometers(root: str | Path = SYS) -> list[Thermometer]:
    """All that the machine has, those that cannot be read now too: hwmon's, then thermal zones."""
    found = []
    for chip in sorted(Path(root).glob("class/hwmon/hwmon*")):
        driver = _named(chip / "name")
        for file in sorted(chip.glob("temp*_input")):
            part = _named(file.with_name(file.name.replace("_input", "_label")))
            found.append(Thermometer(f"{driver} {part}".strip(), file))
    zones = sorted(Path(root).glob("class/thermal/thermal_zone*"))
    return found + [Thermometer(_named(zone / "type"), zone / "temp") for zone in zones]


def cpu_thermometer(root: str | Path = SYS) -> Thermometer:
    """The CPU's: of its whole package where the driver tells it.

    Raises:
        NoMeter: there is none, or none that can be read; says which there are.
    """
    there = thermometers(root)
    why = []
    for driver, part in _CPU_DRIVERS:
        pattern = re.compile(rf"(?:{driver})(?: (?:{part}))?" if part else rf"(?:{driver}).*", re.I)
        for each in there:
            if not pattern.fullmatch(each.name):
                continue
            try:
                each.celsius()
            except Unread as error:
                why.append(str(error))
            else:
                return each
    names = ", ".join(sorted({each.name or "one without a name" for each in there})) or "none"
    raise NoMeter(
        f"the CPU's temperature is read from {root}/class/hwmon or {root}/class/thermal; there: "
        f"{'; '.join([names, *why])}. Virtual machines and most containers hide them"
    )


def _named(file: Path) -> str:
    try:
        return read_line(file)
    except Unread:
        return ""
