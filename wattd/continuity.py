"""Energies that go on over restarts of the daemon: what to add to the sampler's counters.

The sampler starts a device's counter at what the hardware shows. This decides, at the first
reading of each device, how that continues what the archive of this boot says.
"""

from collections.abc import Mapping
from typing import Any

from wattd.values import NANOSECONDS_PER_SECOND, Source

_MOST_WRAPPING_WATTS = 1_000.0
"""Mean power that no zone with a wrapping counter exceeds over a downtime."""

_MOST_WATTS = 20_000.0
"""Mean power that no device exceeds; a larger step is another counter, not energy."""


def offset_microjoules(
    device: Mapping[str, Any],
    counter_microjoules: int,
    nano: int,
    *,
    last_microjoules: int,
    last_nano: int,
    last_offset: int,
) -> int:
    """What to add to a new sampler's counter so that the archived energy never goes down.

    Where the hardware counted on while nobody looked, the energy of the downtime is in it; where
    it did not, or nobody can tell, the counter goes on where it stopped.

    Args:
        device: The device as the sampler announces it.
        counter_microjoules: The sampler's first reading.
        nano: When that was.
        last_microjoules: The energy as last archived.
        last_nano: When that was.
        last_offset: What had been added then.
    """
    counter_range = device.get("counter_range_microjoules")
    stopped = last_microjoules - counter_microjoules
    if counter_range is None or device["source"] == Source.SIMULATED or nano <= last_nano:
        return stopped
    elapsed_seconds = (nano - last_nano) / NANOSECONDS_PER_SECOND
    step = counter_microjoules - (last_microjoules - last_offset)
    most = _MOST_WATTS
    if counter_range:
        step %= counter_range
        most = _MOST_WRAPPING_WATTS
        if most * elapsed_seconds * 1e6 >= counter_range:
            return stopped  # it may have wrapped more than once
    if not 0 <= step <= most * (elapsed_seconds + 1) * 1e6:
        return stopped
    return stopped + step
