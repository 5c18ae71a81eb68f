"""Fetches a node's readings into arrays, a segment at a time, so that a node-day fits in memory."""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from wattq.counter import Device, Floats, Ints, Readings
from wattq.evidence import Evidence
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

# Power as an observation in its own right; the copies in a line of each second are not one.
_POWER_READINGS = f"""
    with entries as (
        select
            monotonic_nano,
            unnest(power_device) as number,
            unnest(power_watts) as power_watts,
            unnest({spread("power_old_us", "power_device")}) as old_us,
            unnest({spread("power_read_us", "power_device")}) as read_us
        from segment_lines where type = 'tick'
    )
    select
        number,
        power_watts,
        monotonic_nano + coalesce({nanoseconds("read_us")}, 0) as read_nano,
        coalesce(monotonic_nano + {nanoseconds("old_us")}, -1) as old_nano
    from entries
    where number is not null and power_watts is not null and monotonic_nano is not null
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
        evidence: The readings with the power readings beside them, by device; of the devices asked for alone.
        torn_lines: Lines that could not be read.
    """

    readings: dict[str, Readings]
    evidence: dict[str, Evidence]
    power_watts: dict[str, tuple[float, float]]
    power_limit_watts: dict[str, float]
    torn_lines: int


@dataclass
class _SegmentReadings:
    """The same of one segment."""

    columns: dict[str, Columns]
    powers: dict[str, Columns]
    power_watts: dict[str, tuple[float, float]]
    power_limit_watts: dict[str, float]
    torn_lines: int


def _plain(column: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.asarray(np.ma.getdata(column))


def _by_device(
    cursor: duckdb.DuckDBPyConnection, query: str, value: str, names: dict[int, str]
) -> tuple[dict[str, Columns], int]:
    """Returns the readings of a query by device, and how many lines could not be read."""
    columns = {name: _plain(column) for name, column in cursor.execute(query).fetchnumpy().items()}
    number, known = columns["number"], ~np.isnan(columns[value])
    found = {}
    for place, name in names.items():
        chosen = (number == place) & known
        if chosen.any():
            found[name] = (columns["read_nano"][chosen], columns["old_nano"][chosen], columns[value][chosen])
    return found, int((number == -1).sum())


def _segment(cursor: duckdb.DuckDBPyConnection, part: Segment, powers: Collection[str]) -> _SegmentReadings:
    cursor.execute(_LINES.format(lines=reader([part.path], READING)))
    names = {device["number"]: device["device"] for device in part.devices}
    ranges = {names[n]: (low, high) for n, low, high in cursor.execute(_POWERS).fetchall() if n in names}
    limits = {names[n]: limit for n, limit in cursor.execute(_LIMITS).fetchall() if n in names}
    columns, torn = _by_device(cursor, _ENERGIES, "energy_joules", names)
    asked = {number: name for number, name in names.items() if name in powers}
    shown, _ = _by_device(cursor, _POWER_READINGS, "power_watts", asked) if asked else ({}, 0)
    cursor.close()
    return _SegmentReadings(columns, shown, ranges, limits, torn)


def fetch(
    connection: duckdb.DuckDBPyConnection, segments: Iterable[Segment], powers: Collection[str] = ()
) -> NodeReadings:
    """Fetches the readings of the given segments, which are of one boot of one node.

    Args:
        connection: DuckDB; each segment is read through a cursor of its own.
        segments: Segments of samples.
        powers: Names of the devices whose power readings are wanted too, in `evidence`.
    """
    columns: dict[str, list[Columns]] = {}
    shown: dict[str, list[Columns]] = {name: [] for name in powers}
    node = NodeReadings({}, {}, {}, {}, 0)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for part in pool.map(lambda part: _segment(connection.cursor(), part, powers), segments):
            for name, arrays in part.columns.items():
                columns.setdefault(name, []).append(arrays)
            for name, arrays in part.powers.items():
                shown[name].append(arrays)
            for name, (low, high) in part.power_watts.items():
                lowest, highest = node.power_watts.get(name, (low, high))
                node.power_watts[name] = (min(low, lowest), max(high, highest))
            for name, limit in part.power_limit_watts.items():
                node.power_limit_watts[name] = max(limit, node.power_limit_watts.get(name, limit))
            node.torn_lines += part.torn_lines
    for name in list(columns):
        read, old, energy = _joined(columns.pop(name))
        node.readings[name] = Readings(read, old, energy)
    nothing = Readings(*_joined([]))
    for name, parts in shown.items():
        raw = node.readings.get(name, nothing)
        node.evidence[name] = Evidence(raw.read, raw.old, raw.energy, *_joined(parts))
    return node


def _joined(parts: list[Columns]) -> Columns:
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
    read, old, value = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return read, old, value


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
