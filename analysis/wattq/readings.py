"""Fetches a node's readings into arrays, a segment at a time, so that a node-day fits in memory."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from wattq.counter import Device, Floats, Ints, Readings
from wattq.lines import READING, nanoseconds, spread
from wattq.segments import Segment, reader

# One pass over the file serves all that follows: parsing is what costs.
_LINES = "create or replace temp table segment_lines as select * exclude (filename) from {lines}"

# A line that cannot be read has no type, and is counted as device -1. The absolute counters of each second
# stand in for updates that were lost.
_ENERGIES = f"""
    with entries as (
        select
            monotonic_nano,
            type = 'tick' as ticked,
            unnest(case when type is null then [-1] when type in ('tick', 'second') then device end)
                as number,
            unnest(energy_joules) as energy_joules,
            unnest({spread("old_us", "device")}) as old_us,
            unnest({spread("read_us", "device")}) as read_us
        from segment_lines
    )
    select
        number,
        coalesce(energy_joules, 'nan'::double) as energy_joules,
        coalesce(monotonic_nano, 0) + coalesce({nanoseconds("read_us")}, 0) as read_nano,
        coalesce(case when ticked then monotonic_nano + {nanoseconds("old_us")} end, -1) as old_nano
    from entries where number is not null
"""  # noqa: S608 fixed words

# A reading of 0 W is a blip of the driver.
_POWERS = """
    with entries as (
        select unnest(power_device) as number, unnest(power_watts) as power_watts from segment_lines
        where type in ('tick', 'second')
    )
    select number, min(power_watts), max(power_watts) from entries where power_watts > 0 group by number
"""

_LIMITS = """
    with entries as (
        select unnest(gpus) as gpu from segment_lines where type = 'state'
    )
    select gpu.number, max(gpu.power_limit_watts) from entries
    where gpu.power_limit_watts is not null group by gpu.number
"""

Columns = tuple[Ints, Ints, Floats]


@dataclass
class NodeReadings:
    """What one boot of one node read.

    Attributes:
        readings: Readings by device.
        power_watts: Lowest and highest power reading by device, watts; without those that reported none.
        power_limit_watts: Highest power limit by device, watts; without those that reported none.
        torn_lines: Lines that could not be read.
    """

    readings: dict[str, Readings]
    power_watts: dict[str, tuple[float, float]]
    power_limit_watts: dict[str, float]
    torn_lines: int


@dataclass
class _SegmentReadings:
    """The same of one segment."""

    columns: dict[str, Columns]
    power_watts: dict[str, tuple[float, float]]
    power_limit_watts: dict[str, float]
    torn_lines: int


def _plain(column: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.asarray(np.ma.getdata(column))


def _segment(cursor: duckdb.DuckDBPyConnection, part: Segment) -> _SegmentReadings:
    cursor.execute(_LINES.format(lines=reader([part.path], READING)))
    names = {device["number"]: device["device"] for device in part.devices}
    powers = {names[n]: (low, high) for n, low, high in cursor.execute(_POWERS).fetchall() if n in names}
    limits = {names[n]: limit for n, limit in cursor.execute(_LIMITS).fetchall() if n in names}
    columns = cursor.execute(_ENERGIES).fetchnumpy()
    cursor.close()
    number = _plain(columns["number"])
    energy = _plain(columns["energy_joules"])
    read, old = _plain(columns["read_nano"]), _plain(columns["old_nano"])
    found = {}
    for place, name in names.items():
        chosen = (number == place) & ~np.isnan(energy)
        if chosen.any():
            found[name] = (read[chosen], old[chosen], energy[chosen])
    return _SegmentReadings(found, powers, limits, int((number == -1).sum()))


def fetch(connection: duckdb.DuckDBPyConnection, segments: Iterable[Segment]) -> NodeReadings:
    """Fetches the readings of the given segments, which are of one boot of one node.

    Args:
        connection: DuckDB; each segment is read through a cursor of its own.
        segments: Segments of samples.
    """
    columns: dict[str, list[Columns]] = {}
    node = NodeReadings({}, {}, {}, 0)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for part in pool.map(lambda part: _segment(connection.cursor(), part), segments):
            for name, arrays in part.columns.items():
                columns.setdefault(name, []).append(arrays)
            for name, (low, high) in part.power_watts.items():
                lowest, highest = node.power_watts.get(name, (low, high))
                node.power_watts[name] = (min(low, lowest), max(high, highest))
            for name, limit in part.power_limit_watts.items():
                node.power_limit_watts[name] = max(limit, node.power_limit_watts.get(name, limit))
            node.torn_lines += part.torn_lines
    for name in list(columns):
        read, old, energy = (np.concatenate(arrays) for arrays in zip(*columns.pop(name), strict=True))
        node.readings[name] = Readings(read, old, energy)
    return node


def devices(connection: duckdb.DuckDBPyConnection, node: str, boot_id: str) -> list[Device]:
    """Returns the devices of one boot of a node; of power limits those that models have."""
    rows = connection.execute(
        """
        select device, domain, source, sensor, update_nano, uncertainty_ratio, power_limit_watts
        from devices
        where node = ? and boot_id = ? order by domain, "index", device
        """,
        [node, boot_id],
    ).fetchall()
    return [
        Device(node, name, domain, source or "measured", sensor or "", update, uncertainty, limit)
        for name, domain, source, sensor, update, uncertainty, limit in rows
    ]
