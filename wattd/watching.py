"""Reading devices closely for a while, outside the daemon: every edge that they show, within a bracket."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from wattd.polling import Poller
from wattd.scheduling import be_punctual
from wattd.sensors import Channel
from wattd.values import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Tick

if TYPE_CHECKING:
    from wattq.evidence import Evidence

_TICK_NANO = 1_000_000
_LOOK_NANO = 250_000_000
_AFTER_NANO = 500_000_000
_UNKNOWN_NANO = -1

_Edge = tuple[int, int, float]


class Readings:
    """Edges of each device, by its place among those that were read."""

    def __init__(self) -> None:
        self._energies: defaultdict[int, list[_Edge]] = defaultdict(list)
        self._powers: defaultdict[int, list[_Edge]] = defaultdict(list)

    def take(self, tick: Tick) -> None:
        """Keep what a tick showed."""
        for number, microjoules, read, old in tick.energies:
            joules = microjoules / MICROJOULES_PER_JOULE
            self._energies[number].append((read, old or _UNKNOWN_NANO, joules))
        for number, watts, read, old in tick.powers:
            self._powers[number].append((read, old or _UNKNOWN_NANO, watts))

    def evidence(self, number: int) -> "Evidence":
        """What a device showed, as the analysis takes it."""
        import numpy as np  # noqa: PLC0415 - the analysis brings it
        from wattq.evidence import Evidence  # noqa: PLC0415 - likewise

        energies, powers = self._energies[number], self._powers[number]
        return Evidence(
            energy_read_nano=np.array([edge[0] for edge in energies], np.int64),
            energy_old_nano=np.array([edge[1] for edge in energies], np.int64),
            energy_joules=np.array([edge[2] for edge in energies], np.float64),
            power_read_nano=np.array([edge[0] for edge in powers], np.int64),
            power_old_nano=np.array([edge[1] for edge in powers], np.int64),
            power_watts=np.array([edge[2] for edge in powers], np.float64),
        )


def watch(channels: Sequence[Channel], seconds: float, is_over: Callable[[], bool]) -> Readings:
    """Read devices closely, locked to their updates where those can be followed.

    Args:
        channels: The devices.
        seconds: For how long.
        is_over: Asked now and then; true ends it early.
    """
    readings, stop = Readings(), threading.Event()
    # A thread of its own: its real-time scheduling ends with it.
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(
            _read,
            channels,
            round(seconds * NANOSECONDS_PER_SECOND),
            lambda: stop.is_set() or is_over(),
            readings,
        )
        try:
            reading.result()
        finally:
            stop.set()
    return readings


def _read(
    channels: Sequence[Channel], length_nano: int, is_over: Callable[[], bool], readings: Readings
) -> None:
    be_punctual()
    clock = time.monotonic_ns
    poller = Poller.of(channels, _TICK_NANO)
    for line in poller.lines:
        poller.follow(line, wanted=True)
    end = clock() + length_nano
    while clock() < end and not is_over():
        _read_until(poller, min(end, clock() + _LOOK_NANO), readings)
    # What the last switch did shows up late.
    _read_until(poller, clock() + _AFTER_NANO, readings)


def _read_until(poller: Poller, until_nano: int, readings: Readings) -> None:
    for tick in poller.ticks(until_nano):
        readings.take(tick)
    time.sleep(max(0, until_nano - time.monotonic_ns()) / NANOSECONDS_PER_SECOND)
