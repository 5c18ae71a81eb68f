"""CPU and DRAM energy from RAPL, by the kernel's powercap interface.

A zone is a file `energy_uj` that counts microjoules up to `max_energy_range_uj` and starts
again at 0. Zones nest: core and uncore lie inside their package and are never added to it.
"""

import os
import re
from pathlib import Path
from typing import Any

from wattd.sensors.base import ReadingError, SensorUnavailableError
from wattd.values import Device, Domain, Reading, Source

_POWERCAP = Path("/sys/class/powercap")
# The same package shows up a second time as intel-rapl-mmio: only the MSR zones are read.
_ZONE = re.compile(r"intel-rapl:(\d+)(?::(\d+))?")
_DOMAINS = {
    "package": Domain.PACKAGE,
    "core": Domain.CORE,
    "uncore": Domain.UNCORE,
    "dram": Domain.DRAM,
    "psys": Domain.PSYS,
}
_UPDATE_NANO = 1_000_000
_REMEDY = (
    "as root, or with the udev rule and group of deploy/: chgrp wattd and chmod 0440 on "
    "/sys/class/powercap/*/energy_uj"
)


class RaplChannel:
    """One zone; the file stays open and is read anew from its start."""

    def __init__(self, device: Device, fd: int) -> None:
        self.device = device
        self.fd = fd

    def read(self, monotonic_nano: int) -> Reading:
        """The zone's counter."""
        try:
            return Reading(int(os.pread(self.fd, 32, 0)), None)
        except (OSError, ValueError) as error:
            raise ReadingError(str(error)) from error

    def state(self) -> dict[str, Any]:
        """RAPL has no state."""
        return {}


class Rapl:
    """All RAPL zones of this machine, each once."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        """Args: root: the powercap tree, /sys/class/powercap unless a test says otherwise."""
        self._root = root
        self._channels: list[RaplChannel] = []

    def open(self) -> list[RaplChannel]:
        """Open every zone that may be read.

        Raises:
            SensorUnavailableError: There is no zone, or none may be read.
        """
        zones = sorted(
            (tuple(int(part) for part in match.groups() if part is not None), path)
            for path in (self._root.iterdir() if self._root.is_dir() else ())
            if (match := _ZONE.fullmatch(path.name))
        )
        if not zones:
            raise SensorUnavailableError(f"no RAPL zones under {self._root}")
        denied = 0
        counts: dict[Domain, int] = {}
        for _, path in zones:
            try:
                channel = self._open_zone(path, counts)
            except PermissionError:
                denied += 1
                continue
            except (OSError, ValueError):
                continue  # a zone that vanished or that the firmware does not fill
            if channel is not None:
                self._channels.append(channel)
        if not self._channels and denied:
            raise SensorUnavailableError(
                f"{denied} RAPL zones may not be read by this user", _REMEDY, denied=True
            )
        if not self._channels:
            raise SensorUnavailableError(f"no readable RAPL zone under {self._root}")
        return self._channels

    def _open_zone(self, path: Path, counts: dict[Domain, int]) -> RaplChannel | None:
        domain = _DOMAINS.get((path / "name").read_text().strip().split("-")[0])
        if domain is None:
            return None
        fd = os.open(path / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        try:
            int(os.pread(fd, 32, 0))
            counter_range = int((path / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            os.close(fd)
            raise
        index = counts.get(domain, 0)
        counts[domain] = index + 1
        device = Device(
            device=f"{domain}-{index}",
            index=index,
            domain=domain,
            source=Source.MEASURED,
            sensor="rapl",
            # The counter takes every value up to and including its range.
            counter_range_microjoules=counter_range + 1,
            update_nano=_UPDATE_NANO,
        )
        return RaplChannel(device, fd)

    def reopen(self) -> None:
        """The zones stay open: there is nothing to do."""

    def close(self) -> None:
        """Close the zones."""
        for channel in self._channels:
            os.close(channel.fd)
        self._channels.clear()
