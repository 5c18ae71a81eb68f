"""A labelled estimate of CPU energy for machines without RAPL, from utilisation.

Power is taken as linear in utilisation: all threads draw their idle figure all the time, and a
thread that runs draws the difference to its full-load figure on top. The figures are those that
Cloud Carbon Footprint derives from SPECpower_ssj2008 results (project ccf-coefficients, Apache-2.0;
watts per thread at rest and at full load). They hold for servers of a kind, not for one machine: the
interval is wide, and everything made from them says `estimated`.
"""

import os
from pathlib import Path
from typing import Any

from wattd.config import CpuEstimateConfig
from wattd.sensors.base import ReadingError, SensorUnavailableError
from wattd.values import NANOSECONDS_PER_SECOND, Device, Domain, Reading, Source

_TICK_NANO = NANOSECONDS_PER_SECOND // os.sysconf("SC_CLK_TCK")
"""The kernel counts CPU time in ticks, usually of 10 ms: nothing new is seen more often."""

_THREADS_A_TICK = 16
"""The kernel sums up all CPUs for each reading: on a large machine it is asked less often."""

_SLOWEST_TICKS = 10

_WATTS_PER_THREAD = {
    # micro-architecture: (vendor, family, models, idle watts, full-load watts)
    "Haswell": ("GenuineIntel", 6, (60, 63, 69, 70), 1.90, 5.99),
    "Broadwell": ("GenuineIntel", 6, (61, 71, 79, 86), 0.71, 3.54),
    "Skylake or Cascade Lake": ("GenuineIntel", 6, (85,), 0.64, 3.93),
    "EPYC, first generation": ("AuthenticAMD", 23, range(16), 0.82, 2.55),
    "EPYC, second generation": ("AuthenticAMD", 23, range(48, 64), 0.47, 1.64),
    "EPYC, third generation": ("AuthenticAMD", 25, range(16), 0.45, 1.87),
}
_UNKNOWN_WATTS = (0.83, 3.25)
"""The mean of the table, for a CPU that is not in it."""

_KNOWN_UNCERTAINTY, _UNKNOWN_UNCERTAINTY = 0.4, 0.7
"""Half-widths: the spread of SPECpower servers of one kind, and that of the whole table."""


class CpuEstimate:
    """One `package` device for all CPUs of the machine; also the channel that reads it."""

    def __init__(self, config: CpuEstimateConfig, proc: Path = Path("/proc")) -> None:
        """Args: config: overrides; proc: the proc file system, unless a test says otherwise."""
        self._config = config
        self._proc = proc
        self._fd = -1
        self._busy = 0
        self._updated_nano = 0
        self._microjoules = 0.0
        self.device: Device

    def open(self) -> "list[CpuEstimate]":
        """Choose the power figures for this CPU and begin.

        Raises:
            SensorUnavailableError: /proc/stat can't be read.
        """
        try:
            self._fd = os.open(self._proc / "stat", os.O_RDONLY | os.O_CLOEXEC)
            cpuinfo = (self._proc / "cpuinfo").read_text(errors="replace")
            self._busy = self._read_ticks()
        except (OSError, ReadingError) as error:
            raise SensorUnavailableError(f"{self._proc}/stat can't be read: {error}") from error
        threads = os.cpu_count() or 1
        self._update_nano = _TICK_NANO * min(_SLOWEST_TICKS, 1 + threads // _THREADS_A_TICK)
        kind, idle, full, uncertainty = _figures(cpuinfo)
        config = self._config
        self._idle_watts = config.idle_watts if config.idle_watts is not None else idle * threads
        self._max_watts = config.max_watts if config.max_watts is not None else full * threads
        # One thread that runs for a tick, in microjoules.
        self._tick_microjoules = (self._max_watts - self._idle_watts) / threads * _TICK_NANO / 1000
        if config.idle_watts is not None and config.max_watts is not None:
            kind = "configured"
        self.device = Device(
            device="package-0",
            index=0,
            domain=Domain.PACKAGE,
            source=Source.ESTIMATED,
            sensor="cpu_estimate",
            model=f"{threads} threads, {self._idle_watts:.3g} to {self._max_watts:.3g} W ({kind})",
            update_nano=self._update_nano,
            power_limit_watts=self._max_watts,
            uncertainty_ratio=(
                config.uncertainty_ratio if config.uncertainty_ratio is not None else uncertainty
            ),
        )
        return [self]

    def _read_ticks(self) -> int:
        """Busy time of all threads in ticks; waiting for I/O is idle, stolen time is not ours."""
        try:
            fields = os.pread(self._fd, 256, 0).split(b"\n", 1)[0].split()
            user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[1:8])
        except (OSError, ValueError) as error:
            raise ReadingError(str(error)) from error
        return user + nice + system + irq + softirq

    def read(self, monotonic_nano: int) -> Reading:
        """The integrated estimate, renewed when the kernel may have counted a tick."""
        elapsed = monotonic_nano - self._updated_nano
        # A tenth early is in time: the sampler's own period is a tick, too, and not exact.
        if elapsed < self._update_nano * 9 // 10:
            return Reading(int(self._microjoules), None)
        busy = self._read_ticks()
        if self._updated_nano:
            # Linear in both, so that the rounding of one update is made good by the next.
            self._microjoules += self._idle_watts * elapsed / 1000
            self._microjoules += self._tick_microjoules * max(0, busy - self._busy)
        self._busy = busy
        self._updated_nano = monotonic_nano
        return Reading(int(self._microjoules), None)

    def state(self) -> dict[str, Any]:
        """The node's own state says it all."""
        return {}

    def reopen(self) -> None:
        """/proc/stat stays open: there is nothing to do."""

    def close(self) -> None:
        """Close /proc/stat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _figures(cpuinfo: str) -> tuple[str, float, float, float]:
    """(kind, idle watts, full-load watts, uncertainty) per thread for what /proc/cpuinfo says."""
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    for kind, (vendor, family, models, idle, full) in _WATTS_PER_THREAD.items():
        if (
            facts.get("vendor_id") == vendor
            and facts.get("cpu family") == str(family)
            and facts.get("model", "").isdigit()
            and int(facts["model"]) in models
        ):
            return kind, idle, full, _KNOWN_UNCERTAINTY
    return "mean of published servers", *_UNKNOWN_WATTS, _UNKNOWN_UNCERTAINTY
