"""CPUs, through RAPL: energy counters of packages and their memory, in Linux' powercap tree."""

from __future__ import annotations

from pathlib import Path

from drowsy.sensors.sensor import NoMeter, Sample, clock

RAPL = Path("/sys/class/powercap")


class RaplDomain:
    """One domain of RAPL, such as ``package-0`` or ``dram``: a folder of the powercap tree.

    RAPL counts joules and tells no watts. The counter wraps around; it is unwrapped as long as it
    is sampled more often than it wraps (minutes at full load).

    Raises:
        OSError: a file cannot be read.
    """

    driver: str | None = None
    counts = True
    power: str | None = None
    power_limit: float | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, name: str) -> None:
        self.device = f"cpu:{name}"
        self.name = f"RAPL {folder.name}"
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())
        self._total = 0

    def joules(self) -> float | None:
        try:
            now = int(self._file.read_text())
        except OSError:
            return None
        self._total += (now - self._last) % self._range
        self._last = now
        return self._total / 1e6

    def sample(self, full: bool) -> Sample:
        return Sample(clock.now(), joules=self.joules())

    def synchronize(self) -> None:
        """A CPU has done what it was given when the call returns."""


def rapl_domains() -> list[RaplDomain]:
    """Packages and their memory. (``core`` and ``uncore`` are parts of a package, ``psys`` holds
    packages: adding them would count joules twice.)

    Raises:
        NoMeter: no RAPL here, or a file of it that may not be read.
    """
    zones = sorted(RAPL.glob("intel-rapl:*"))
    domains, file = [], RAPL
    try:
        for zone in zones:
            file = zone / "name"
            name = file.read_text().strip()
            if not name.startswith(("package", "dram")):
                continue
            parent = zone.with_name(zone.name.rpartition(":")[0])
            if name == "dram" and parent in zones:
                name = f"dram of {(parent / 'name').read_text().strip()}"
            file = zone / "energy_uj"
            domains.append(RaplDomain(zone, name))
    except PermissionError as error:
        raise NoMeter(
            f"CPU energy is read from RAPL, but {file} may not be read ({error.strerror}): "
            f"run as root, or let others read it: sudo chmod a+r {RAPL}/intel-rapl:*/energy_uj"
        ) from error
    except (OSError, ValueError) as error:
        raise NoMeter(f"CPU energy is read from RAPL, but not from {file} here: {error}") from error
    if not domains:
        raise NoMeter(
            f"CPU energy is read from RAPL, but there is no {RAPL}/intel-rapl:*/energy_uj of a "
            "package: it takes Linux on an x86 CPU itself (virtual machines and most containers "
            "hide it) and its module: sudo modprobe intel_rapl_msr"
        )
    return domains
