"""CPUs, through RAPL: energy counters of packages and their memory, in Linux' powercap tree."""

from __future__ import annotations

import re
from pathlib import Path

from drowsy.sensors.counter import Counter
from drowsy.sensors.sensor import Count, NoMeter, Sample, Unread, clock
from drowsy.sensors.sysfs import read_line

RAPL = Path("/sys/class/powercap")

_COUNTER_UPDATE = 0.01  # seconds, at most, between steps of the counter (about 1 ms)


class RaplDomain:
    """One domain of RAPL, such as ``package-0`` or ``dram``: a folder of the powercap tree.

    RAPL counts joules and tells no watts. The counter wraps around; it is unwrapped as long as it
    is sampled more often than it can wrap (about every 50 s).

    Raises:
        Unread: a file cannot be read, or holds no number that is allowed there.
    """

    driver: str | None = None
    counts = True
    power: str | None = None
    power_limit: float | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, name: str) -> None:
        self.device = f"cpu:{name}"
        self.name = f"RAPL {folder.name}"
        span = _microjoules(folder / "max_energy_range_uj", least=1)
        file = folder / "energy_uj"
        self._counter = Counter(
            lambda: _microjoules(file, most=span),
            per_joule=10**6,
            update=_COUNTER_UPDATE,
            span=span,
        )

    def count(self) -> Count:
        return self._counter.count()

    def sample(self, full: bool) -> Sample:
        return Sample(clock.now(), joules=self.count().joules)

    def synchronize(self) -> None:
        """A CPU has done what it was given when the call returns."""


def rapl_domains() -> list[RaplDomain]:
    """Packages and their memory. (``core`` and ``uncore`` are parts of a package, ``psys`` holds
    packages: adding them would count joules twice.)

    Raises:
        NoMeter: no RAPL here, a file of it that may not be read or holds no number, or two domains
            by one name.
    """
    zones = sorted(RAPL.glob("intel-rapl:*"))
    domains: dict[str, RaplDomain] = {}
    try:
        for zone in zones:
            name = _text(zone / "name")
            if not name.startswith(("package", "dram")):
                continue
            parent = zone.with_name(zone.name.rpartition(":")[0])
            if name == "dram" and parent in zones:
                name = f"dram of {_text(parent / 'name')}"
            if name in domains:
                raise Unread(
                    f"{RAPL} has {name} twice, as {domains[name].name} and as RAPL {zone.name}: "
                    "if both are one counter, their sum holds every joule twice"
                )
            domains[name] = RaplDomain(zone, name)
    except Unread as error:
        raise NoMeter(f"CPU energy is read from RAPL, but {error}") from error
    if not domains:
        raise NoMeter(
            f"CPU energy is read from RAPL, but there is no {RAPL}/intel-rapl:*/energy_uj of a "
            "package: it takes Linux on an x86 CPU itself (virtual machines and most containers "
            "hide it) and its module: sudo modprobe intel_rapl_msr"
        )
    return list(domains.values())


def _microjoules(file: Path, least: int = 0, most: int | None = None) -> int:
    text = _text(file)
    # Stricter than int(), which takes "-1" and "1_0" and breaks at 4,300 digits; 2**64 has 20.
    value = int(text) if re.fullmatch("[0-9]{1,20}", text) else -1
    if value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise Unread(f"{file} holds {text[:40]!r}, allowed: an integer {allowed} (microjoules)")
    return value


def _text(file: Path) -> str:
    denied = f"run as root, or let others read it: sudo chmod a+r {RAPL}/intel-rapl:*/{file.name}"
    return read_line(file, denied)
