"""Polling locked to updates: 8 GPUs of a simulated NVML, counters and powers on grids of their own.

Everything is real but the driver: `wattd serve`, a run that is open, pynvml, and a libnvidia-ml.so.1 whose
calls take 20-60 us (of which its own time is shown apart) and whose updates jitter by a millisecond.
"""

import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdclient
from tests.daemon import Daemon, lines
from tests.nvml.driver import Trace, build

GPUS = 8
QUANTITIES = 2  # counter and power
_SECONDS = 10.0
_UNTIL_LOCKED_SECONDS = 4.0


@dataclass
class Locked:
    """What a run of the daemon gave.

    Attributes:
        sampler_share: Of a core, with the driver's time.
        driver_share: Of a core, inside the driver.
        calls_per_second: Of a GPU, for each quantity.
        calls_per_update: Of a quantity.
        located_ratio: Share of the updates that lie between two readings at most 1 ms apart.
        missed_ratio: Share of the updates of which no edge was seen.
    """

    sampler_share: float
    driver_share: float
    calls_per_second: float
    calls_per_update: float
    located_ratio: float
    missed_ratio: float


def run_locked(period_ms: float) -> Locked:
    """Start a daemon, open a run, wait for the locks, and look for ten seconds."""
    with tempfile.TemporaryDirectory(prefix="wattd-bench-") as name:
        folder = Path(name)
        library = build(folder / "nvml")
        with (
            Trace.create(folder / "trace", **_settings(period_ms)) as trace,
            Daemon(folder / "d", "--sensors", "nvml", environment=trace.environment(library)) as daemon,
        ):
            client = kdclient.connect(socket=daemon.socket, spool=folder / "spool")
            with client.run("bench"):
                time.sleep(_UNTIL_LOCKED_SECONDS)
                before, begin = _look(daemon), time.monotonic_ns()
                time.sleep(_SECONDS)
                after, end = _look(daemon), time.monotonic_ns()
            client.close()
            daemon.stop()
            widths = list(_widths(daemon, begin, end))
    seconds = (end - begin) / 1e9
    cpu, driver, calls = ((now - was) / seconds for now, was in zip(after, before, strict=True))
    rate = calls / GPUS / QUANTITIES
    updates = GPUS * QUANTITIES * seconds * 1000 / period_ms
    return Locked(
        sampler_share=cpu,
        driver_share=driver,
        calls_per_second=rate,
        calls_per_update=rate * period_ms / 1000,
        located_ratio=sum(width <= 1000 for width in widths) / len(widths),
        missed_ratio=max(0.0, 1 - len(widths) / updates),
    )


def _settings(period_ms: float) -> dict[str, Any]:
    """Grids that lie apart, power that is new with each update."""
    settings: dict[str, Any] = {
        "gpus": GPUS,
        "watts": 400,
        "noise_watts": 0.5,
        "jitter_ms": 1,
        "counter_period_ms": period_ms,
        "power_period_ms": period_ms,
        "latency_least_us": 20,
        "latency_most_us": 60,
    }
    for gpu in range(GPUS):
        settings[f"counter_phase_ms@{gpu}"] = gpu * 13.7 % period_ms
        settings[f"power_phase_ms@{gpu}"] = (gpu * 17.3 + 5) % period_ms
    return settings


def _look(daemon: Daemon) -> tuple[float, float, float]:
    """So far: CPU seconds of the sampler, and by its page seconds inside the driver, and calls."""
    with urllib.request.urlopen(daemon.ready["metrics"]) as page:  # noqa: S310 - our own page on this machine
        text = page.read().decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    driver, calls = (
        float(found[f'wattd_sensor_read_seconds_{what}{{sensor="nvml"}}']) for what in ("sum", "count")
    )
    return cpu_seconds(daemon.process.pid), driver, calls


def cpu_seconds(pid: int) -> float:
    """Time on a core of all threads of a process, as the scheduler counts it (nanoseconds)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _widths(daemon: Daemon, begin: int, end: int) -> Iterator[int]:
    """Microseconds between the readings around each edge of counter and power, as the archive has them."""
    for line in lines(daemon.archive, "samples"):
        if line["type"] == "tick" and begin < line["monotonic_nano"] < end:
            yield from _brackets(line, "")
            yield from _brackets(line, "power_")


def _brackets(line: dict[str, Any], prefix: str) -> Iterator[int]:
    count = len(line.get(f"{prefix}device", ()))
    olds = line.get(f"{prefix}old_us", [])
    olds = olds * count if len(olds) == 1 else olds
    for old, read in zip(olds, line.get(f"{prefix}read_us", [0] * count), strict=False):
        if old is not None:
            yield read - old
