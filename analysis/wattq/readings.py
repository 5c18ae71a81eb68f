"""Fetches a node's readings into arrays, a segment at a time, so that a node-day fits in memory."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from wattq.counter import Device, Floats, Ints, Readings
from wattq.lines import READING, nanoseconds, spread
from wattq.segments import Segment, quoted, reader

# A line that cannot be read has no type, and is counted as device -1. The absolute counters of each second
# stand in for updates that were lost.
_QUERY = f"""
    with entries as (
        select
            monotonic_nano,
            type = 'tick' as ticked,
            unnest(case when type is null then [-1] when type in ('tick', 'second') then device end)
                as number,
            unnest(energy_joules) as energy_joules,
            unnest({spread("old_us", "device")}) as old_us,
            unnest({spread("read_us", "device")}) as read_us
        from {{lines}}
    )
    select
        number,
        coalesce(energy_joules, 'nan'::double) as energy_joules,
        coalesce(monotonic_nano, 0) + coalesce({nanoseconds("read_us")}, 0) as read_nano,
        coalesce(case when ticked then monotonic_nano + {nanoseconds("old_us")} end, -1) as old_nano
    from entries where number is not null
"""  # noqa: S608 fixed words


@dataclass
class NodeReadings:
    """What one boot of one node read.

    Attributes:
        readings: Readings by device.
        torn_lines: Lines that could not be read.
    """

    readings: dict[str, Readings]
    torn_lines: int


def _plain(column: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.asarray(np.ma.getdata(column))


def _segment(
    cursor: duckdb.DuckDBPyConnection, part: Segment
) -> tuple[dict[str, tuple[Ints, Ints, Floats]], int]:
    columns = cursor.execute(_QUERY.format(lines=reader([part.path], READING))).fetchnumpy()
    number = _plain(columns["number"])
    energy = _plain(columns["energy_joules"])
    read, old = _plain(columns["read_nano"]), _plain(columns["old_nano"])
    found = {}
    for device in part.devices:
        chosen = (number == device["number"]) & ~np.isnan(energy)
        if chosen.any():
            found[device["device"]] = (read[chosen], old[chosen], energy[chosen])
    return found, int((number == -1).sum())


def fetch(connection: duckdb.DuckDBPyConnection, segments: Iterable[Segment]) -> NodeReadings:
    """Fetches the readings of the given segments, which are of one boot of one node.

    Args:
        connection: DuckDB; each segment is read through a cursor of its own.
        segments: Segments of samples.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        parts = list(pool.map(lambda part: _segment(connection.cursor(), part), segments))
    columns: dict[str, list[tuple[Ints, Ints, Floats]]] = {}
    for found, _ in parts:
        for device, arrays in found.items():
            columns.setdefault(device, []).append(arrays)
    readings = {}
    for device in list(columns):
        read, old, energy = (np.concatenate(arrays) for arrays in zip(*columns.pop(device), strict=True))
        readings[device] = Readings(read, old, energy)
    return NodeReadings(readings, sum(torn for _, torn in parts))


def power_range(
    connection: duckdb.DuckDBPyConnection, node: str, boot_id: str
) -> dict[str, tuple[float, float]]:
    """Returns the lowest and highest power that each device reported, watts; 0 W is a blip."""
    rows = connection.execute(
        f"""
        select device, min(power_watts), max(power_watts) from samples
        where node = {quoted(node)} and boot_id = {quoted(boot_id)} and power_watts > 0 group by device
        """  # noqa: S608 quoted
    ).fetchall()
    return {device: (float(low), float(high)) for device, low, high in rows}


def devices(connection: duckdb.DuckDBPyConnection, node: str, boot_id: str) -> list[Device]:
    """Returns the devices of one boot of a node, with the highest power limit that each ever had."""
    rows = connection.execute(
        f"""
        with limits as (
            select device, max(power_limit_watts) as power_limit_watts from device_state
            where node = {quoted(node)} and boot_id = {quoted(boot_id)} group by device
        )
        select device, domain, source, sensor, update_nano, uncertainty_ratio, power_limit_watts
        from devices left join limits using (device)
        where node = {quoted(node)} and boot_id = {quoted(boot_id)} order by domain, "index", device
        """  # noqa: S608 quoted
    ).fetchall()
    return [
        Device(node, name, domain, source or "measured", sensor or "", update, uncertainty, limit)
        for name, domain, source, sensor, update, uncertainty, limit in rows
    ]
