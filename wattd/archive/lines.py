"""The lines of kind=samples: how what the sampler published is written (docs/archive.md).

A body is a line without its opening brace and without `seq`, which the segment puts in front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from wattd.values import MICROJOULES_PER_JOULE, Tick

_TOGETHER_US = 50
"""Readings this close to their tick count as taken at it, microseconds."""

_SAME_EDGE_US = 100
"""Earlier sides of edges that lie this close are written as one, microseconds."""


_LOCATED_US = 5_000
"""The sides of wider brackets than this need not be exact: they are rounded to `_SAME_EDGE_US`, outwards."""


def body(line: dict[str, Any]) -> bytes:
    """Encode a line that has its `type` first."""
    return orjson.dumps(line)[1:]


def tick_body(tick: Tick, offsets: Mapping[int, int]) -> bytes:
    """Encode what one wake of the sampler published.

    Args:
        tick: The sampler's record.
        offsets: Microjoules to add, by device number, so that energies go on over restarts.
    """
    _, energies, powers, calls = tick
    nano = _moment(tick)
    line: dict[str, Any] = {"type": "tick", "monotonic_nano": nano}
    if energies:
        numbers, microjoules, reads, olds = zip(*energies, strict=True)
        line["device"] = numbers
        line["energy_joules"] = [
            (energy + offsets[number]) / MICROJOULES_PER_JOULE
            for number, energy in zip(numbers, microjoules, strict=True)
        ]
        _add_times(line, "", nano, reads, olds)
    if powers:
        numbers, watts, reads, olds = zip(*powers, strict=True)
        line["power_device"] = numbers
        line["power_watts"] = watts
        _add_times(line, "power_", nano, reads, olds)
    if calls:
        line["call_us"] = calls
    return orjson.dumps(line)[1:]


def _moment(tick: Tick) -> int:
    """The time a line carries: that of its readings where they are close together, else the wake's.

    A reading comes after its wake and before the next one, so that lines stay in order.
    """
    reads = [edge[2] for edge in tick.energies] + [edge[2] for edge in tick.powers]
    if not reads:
        return tick.monotonic_nano
    first, last = min(reads), max(reads)
    if last - first > 2 * _TOGETHER_US * 1000:
        return tick.monotonic_nano
    return max(tick.monotonic_nano, (first + last) // 2)


def _add_times(
    line: dict[str, Any], prefix: str, nano: int, reads: Sequence[int], olds: Sequence[int]
) -> None:
    """Add `read_us` and `old_us` where they say something; rounding only ever widens the bracket."""
    if max(reads) - nano > _TOGETHER_US * 1000 or nano - min(reads) > _TOGETHER_US * 1000:
        line[prefix + "read_us"] = [
            0 if abs(read - nano) <= _TOGETHER_US * 1000 else -((nano - read) // 1000) for read in reads
        ]
    earliest = min(olds)
    if earliest and max(olds) - earliest <= _SAME_EDGE_US * 1000:
        line[prefix + "old_us"] = [(earliest - nano) // 1000]
    elif any(olds):
        line[prefix + "old_us"] = [_old_us(old, read, nano) for old, read in zip(olds, reads, strict=True)]


def _old_us(old: int, read: int, nano: int) -> int | None:
    """The earlier side of an edge: exact where the edge was located, coarse where it was not."""
    if not old:
        return None
    step_us = _SAME_EDGE_US if read - old > _LOCATED_US * 1000 else 1
    return (old - nano) // (step_us * 1000) * step_us


def second_body(second: dict[str, Any], offsets: Mapping[int, int]) -> bytes:
    """Encode the sampler's `second` record; offsets as in `tick_body`."""
    line: dict[str, Any] = {}
    for key, value in second.items():
        if key == "energy_microjoules":
            line["energy_joules"] = [
                (energy + offsets[number]) / MICROJOULES_PER_JOULE
                for number, energy in zip(second["device"], value, strict=True)
            ]
        else:
            line[key] = value
    return orjson.dumps(line)[1:]


def microjoules(energy_joules: float) -> int:
    """The whole microjoules that a written `energy_joules` stands for."""
    return round(energy_joules * MICROJOULES_PER_JOULE)
