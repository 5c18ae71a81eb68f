"""Fetches a node's readings into arrays, a segment at a time, so that a node-day fits in memory."""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import duckdb
import numpy as np

from wattq.clocks import Clock
from wattq.counter import Bools, Device, Floats, Ints, Readings, in_order, thinned
from wattq.evidence import Evidence
from wattq.lines import READING, nanoseconds
from wattq.segments import Segment, reader

Columns = tuple[Ints, Ints, Floats]
"""When values were read, when the old value was last read, and the values."""

# DuckDB works outside the interpreter's lock.
_THREADS = 2
# Columns that grow get a share of this more than they need.
_SPARE = 8

# What a row of the query below is.
_TORN, _TICK, _SECOND, _POWER, _RANGE, _LIMIT, _CLOCK = range(7)


def _unnested(kind: str, prefix: str, device: str, value: str) -> str:
    """Returns SQL for a row for each entry of the lists of lines.

    A list of one number in `old_us` holds for every entry.
    """
    old = f"case when one_old then first_old else {prefix}old end"
    return f"""
        select
            kind, number, coalesce(value, 'nan'::double) as value, null::double as high,
            coalesce(monotonic_nano + coalesce({nanoseconds("read")}, 0), 0) as read_nano,
            coalesce(case when kind <> {_SECOND} then monotonic_nano + {nanoseconds(old)} end, -1) as old_nano
        from (
            select
                {kind} as kind, monotonic_nano, unnest({device}) as number, unnest({value}) as value,
                unnest({prefix}old_us) as {prefix}old, unnest({prefix}read_us) as read,
                len({prefix}old_us) = 1 as one_old, {prefix}old_us[1] as first_old
            from lines
        )
        where number is not null
    """  # noqa: S608 fixed words


# A line that cannot be read has no type. The absolute counters of each second stand in for updates that were
# lost.
_ENERGIES = _unnested(
    f"case type when 'tick' then {_TICK} when 'second' then {_SECOND} else {_TORN} end",
    "",
    "case when type is null then [-1] when type in ('tick', 'second') then device end",
    "energy_joules",
)

# Power as an observation in its own right; the copies in a line of each second are not one.
_POWERS = _unnested(str(_POWER), "power_", "case when type = 'tick' then power_device end", "power_watts")

# A reading of 0 W is a blip of the driver.
_RANGES = f"""
    select {_RANGE}, number, min(watts), max(watts), 0, -1
    from (
        select unnest(power_device) as number, unnest(power_watts) as watts
        from lines where type in ('tick', 'second')
    )
    where watts > 0 group by number
    union all
    select {_LIMIT}, gpu.number, max(gpu.power_limit_watts), null, 0, -1
    from (select unnest(gpus) as gpu from lines where type = 'state')
    where gpu.power_limit_watts is not null group by gpu.number
"""  # noqa: S608 fixed words

_CLOCKS = f"""
    select {_CLOCK}, gpu.number, gpu.sm_clock_hertz, null, monotonic_nano, -1
    from (select monotonic_nano, unnest(gpus) as gpu from lines where type = 'state')
    where gpu.sm_clock_hertz is not null
"""  # noqa: S608 fixed words


@dataclass
class NodeReadings:
    """What one boot of one node read.

    Attributes:
        readings: Readings by device.
        evidence: The readings with the power readings beside them, by device; of the devices asked for alone.
        clocks: The GPUs' clocks, likewise of those asked for alone.
        power_watts: Lowest and highest power reading by device, watts; without those that reported none.
        power_limit_watts: Highest power limit by device, watts; without those that reported none.
        torn_lines: Lines that could not be read.
    """

    readings: dict[str, Readings] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    power_watts: dict[str, tuple[float, float]] = field(default_factory=dict)
    power_limit_watts: dict[str, float] = field(default_factory=dict)
    torn_lines: int = 0


@dataclass(frozen=True)
class _Part:
    """The same of one segment."""

    energies: dict[str, Columns]
    powers: dict[str, Columns]
    clocks: dict[str, Columns]
    power_watts: dict[str, tuple[float, float]]
    power_limit_watts: dict[str, float]
    torn_lines: int


def _read(cursor: duckdb.DuckDBPyConnection, segment: Segment, asked: Collection[str]) -> _Part:
    """Reads a segment in one pass: parsing is what costs."""
    names = {device["number"]: device["device"] for device in segment.devices}
    wanted = [_ENERGIES, _RANGES]
    wanted += [] if set(asked).isdisjoint(names.values()) else [_POWERS, _CLOCKS]
    lines = f"select * exclude (filename) from {reader([segment.path], READING)}"  # noqa: S608 quoted
    cursor.execute(f"with lines as materialized ({lines}) {' union all '.join(wanted)}")
    columns = {name: np.ma.getdata(column) for name, column in cursor.fetchnumpy().items()}
    cursor.close()
    kind, number, value = columns["kind"], columns["number"], columns["value"]

    def readings(wanted: Bools, numbers: Iterable[int]) -> dict[str, Columns]:
        found = {}
        for place in numbers:
            chosen = wanted & (number == place)
            if chosen.any():
                found[names[place]] = (
                    columns["read_nano"][chosen],
                    columns["old_nano"][chosen],
                    value[chosen],
                )
        return found

    told = ~np.isnan(value)
    ranges = {
        what: [
            (names[n], v, h)
            for n, v, h in zip(number[row], value[row], columns["high"][row], strict=True)
            if n in names
        ]
        for what, row in ((what, kind == what) for what in (_RANGE, _LIMIT))
    }
    energies = readings(told & ((kind == _TICK) | (kind == _SECOND)), names)
    numbers = [place for place, name in names.items() if name in asked]
    return _Part(
        {name: thinned(*found) for name, found in energies.items()},
        readings(told & (kind == _POWER), numbers),
        readings(told & (kind == _CLOCK), numbers),
        {name: (float(low), float(high)) for name, low, high in ranges[_RANGE]},
        {name: float(limit) for name, limit, _ in ranges[_LIMIT]},
        int((kind == _TORN).sum()),
    )


class _Growing:
    """Columns that grow in place: a list of parts and its sum would be there together, twice a node-day."""

    def __init__(self) -> None:
        self._length = 0
        self._read = np.zeros(0, dtype=np.int64)
        self._old = np.zeros(0, dtype=np.int64)
        self._value = np.zeros(0, dtype=np.float64)

    def extend(self, columns: Columns) -> None:
        length = self._length + len(columns[0])
        for grown, part in zip((self._read, self._old, self._value), columns, strict=True):
            if len(grown) < length:
                # A view of it would see memory that is no longer there; nobody has one.
                grown.resize(length + length // _SPARE, refcheck=False)
            grown[self._length : length] = part
        self._length = length

    def columns(self) -> Columns:
        """Returns the columns; nothing can be added then."""
        for grown in (self._read, self._old, self._value):
            grown.resize(self._length, refcheck=False)
        return self._read, self._old, self._value


def fetch(
    connection: duckdb.DuckDBPyConnection, segments: Iterable[Segment], powers: Collection[str] = ()
) -> NodeReadings:
    """Fetches the readings of the given segments, which are of one boot of one node.

    Args:
        connection: DuckDB; each segment is read through a cursor of its own.
        segments: Segments of samples.
        powers: Names of the devices whose power readings and clocks are wanted too.

    Raises:
        duckdb.IOException: A segment is gone; it may have been compressed in the meantime.
    """
    node, energies = NodeReadings(), dict[str, _Growing]()
    shown, clocks = {name: _Growing() for name in powers}, {name: _Growing() for name in powers}
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for part in pool.map(lambda part: _read(connection.cursor(), part, powers), segments):
            for name, columns in part.energies.items():
                energies.setdefault(name, _Growing()).extend(columns)
            for name, columns in part.powers.items():
                shown[name].extend(columns)
            for name, columns in part.clocks.items():
                clocks[name].extend(columns)
            for name, (low, high) in part.power_watts.items():
                lowest, highest = node.power_watts.get(name, (low, high))
                node.power_watts[name] = (min(low, lowest), max(high, highest))
            for name, limit in part.power_limit_watts.items():
                node.power_limit_watts[name] = max(limit, node.power_limit_watts.get(name, limit))
            node.torn_lines += part.torn_lines
    node.readings = {name: Readings(*found.columns()) for name, found in energies.items()}
    nothing = Readings(*_Growing().columns())
    for name, found in shown.items():
        raw = node.readings.get(name, nothing)
        node.evidence[name] = Evidence(raw.read, raw.old, raw.energy, *found.columns())
    for name, found in clocks.items():
        nano, _, hertz = in_order(*found.columns())
        node.clocks[name] = Clock(nano, hertz)
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
