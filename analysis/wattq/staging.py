"""Staging: the lines of the archive as tables and views, typed, with node and boot beside each line.

Only this SQL is DuckDB's alone. Events are few and are read once into tables. Samples are many and stay views
over the files: nothing is copied until someone asks.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb

from wattq.lines import EVENT, MARK, STATE, TICK, nanoseconds, spread
from wattq.segments import Segment, reader

# The entries of a tick become rows; a power reading of the same device and moment stands in the same row.
_READINGS = f"""
    create or replace view staged_readings as
    with entries as (
        select
            filename, monotonic_nano, power_device, power_watts, power_old_us, power_read_us,
            unnest(device) as number,
            unnest(energy_joules) as energy_joules,
            unnest({spread("old_us", "device")}) as old_us,
            unnest({spread("read_us", "device")}) as read_us
        from staged_ticks where type = 'tick' and device is not null
    ), placed as (
        select *, coalesce(list_position(power_device, number), 0) as place from entries
    ), paired as (
        select
            *,
            place > 0 and coalesce(power_read_us[least(place, len(power_read_us))], 0) = coalesce(read_us, 0)
                as together,
            power_old_us[least(place, len(power_old_us))] as old_power_us
        from placed
    )
    select
        filename,
        number,
        monotonic_nano + coalesce({nanoseconds("read_us")}, 0) as monotonic_nano,
        energy_joules,
        monotonic_nano + {nanoseconds("old_us")} as energy_old_monotonic_nano,
        case when together then power_watts[place] end as power_watts,
        case when together then monotonic_nano + {nanoseconds("old_power_us")} end as power_old_monotonic_nano
    from paired where energy_joules is not null
"""  # noqa: S608 fixed words

# Power readings that no energy reading of the same moment carries.
_POWERS = f"""
    create or replace view staged_powers as
    with entries as (
        select
            filename, monotonic_nano, device, energy_joules, read_us,
            unnest(power_device) as number,
            unnest(power_watts) as power_watts,
            unnest({spread("power_old_us", "power_device")}) as old_us,
            unnest({spread("power_read_us", "power_device")}) as power_us
        from staged_ticks where type = 'tick' and power_device is not null
    ), placed as (
        select *, coalesce(list_position(device, number), 0) as place from entries
    )
    select
        filename,
        number,
        monotonic_nano + coalesce({nanoseconds("power_us")}, 0) as monotonic_nano,
        power_watts,
        monotonic_nano + {nanoseconds("old_us")} as power_old_monotonic_nano
    from placed
    where power_watts is not null and (
        place = 0
        or energy_joules[place] is null
        or coalesce(read_us[least(place, len(read_us))], 0) <> coalesce(power_us, 0)
    )
"""  # noqa: S608 fixed words

_GPU_STATES = """
    create or replace view staged_gpu_states as
    with entries as (
        select filename, monotonic_nano, unnest(gpus) as gpu from staged_states where type = 'state'
    )
    select filename, monotonic_nano, gpu.* from entries
"""

# Which rank's phases cut which device. A GPU is cut by the ranks that use it; where a rank could not say, all
# GPUs of its job count, or all of the node. Everything else is cut by the lowest rank of the run on the node.
_CLAIMS = """
    create or replace table staged_claims as
    with told as (
        select
            run_id, node, boot_id, coalesce("rank", 0) as "rank", min(local_rank) as local_rank,
            max(job_id) as job_id,
            arg_max(gpu_uuids, monotonic_nano) filter (where len(gpu_uuids) > 0) as gpu_uuids
        from staged_events where type in ('run_begin', 'run_update') group by all
    ), known as (
        select distinct node, boot_id, device, domain from staged_devices
    ), present as (
        select node, boot_id, list(device) as devices from known group by all
    ), ranks as (
        -- UUIDs that name no device of the node (MIG instances, cut ones) say nothing: as if not told.
        select told.* exclude (gpu_uuids),
            case when list_has_any(told.gpu_uuids, present.devices) then told.gpu_uuids end as gpu_uuids
        from told left join present using (node, boot_id)
    ), job_devices as (
        select distinct node, boot_id, job_id, unnest(devices) as device
        from staged_events where type = 'job_begin'
    ), named as (
        select run_id, node, boot_id, "rank", unnest(gpu_uuids) as device, false as assumed from ranks
        union
        select ranks.run_id, ranks.node, ranks.boot_id, ranks."rank", job_devices.device, true as assumed
        from ranks inner join job_devices using (node, boot_id, job_id) where ranks.gpu_uuids is null
        union
        select ranks.run_id, ranks.node, ranks.boot_id, ranks."rank", known.device, true as assumed
        from ranks inner join known using (node, boot_id) left join job_devices using (node, boot_id, job_id)
        where ranks.gpu_uuids is null and job_devices.device is null
    ), lowest as (
        select run_id, node, boot_id, arg_min("rank", (coalesce(local_rank, "rank"), "rank")) as "rank"
        from ranks group by all
    )
    select named.run_id, named.node, named.boot_id, named."rank", named.device, known.domain, named.assumed
    from named inner join known using (node, boot_id, device) where known.domain = 'gpu'
    union all
    select lowest.run_id, lowest.node, lowest.boot_id, lowest."rank", known.device, known.domain, false
    from lowest inner join known using (node, boot_id) where known.domain <> 'gpu'
"""


def _lines(segments: Iterable[Segment], columns: str) -> str:
    # The reader needs a file; the null device is one without lines.
    return reader([segment.path for segment in segments] or [Path(os.devnull)], columns)


def register(connection: duckdb.DuckDBPyConnection, segments: list[Segment]) -> int:
    """Registers staging for the segments of an archive, replacing what was registered before.

    Returns:
        How many lines of events could not be read.
    """
    _register_segments(connection, segments)
    samples = [segment for segment in segments if segment.kind == "samples"]
    events = [segment for segment in segments if segment.kind == "events"]
    for view, columns in (("staged_ticks", TICK), ("staged_states", STATE)):
        connection.execute(f"create or replace view {view} as select * from {_lines(samples, columns)}")  # noqa: S608 quoted
    # A compressed file is read by one thread; two tables are filled at once.
    with ThreadPoolExecutor() as pool:
        for filled in [
            pool.submit(_fill, connection.cursor(), table, _lines(events, columns), chosen)
            for table, columns, chosen in (
                ("staged_marks", MARK, "type in ('phase', 'phase_begin') or type is null"),
                ("staged_events", EVENT, "type not in ('phase', 'phase_begin', 'segment', 'end')"),
            )
        ]:
            filled.result()
    # A line that cannot be read came along as a row of nulls: it is counted and goes.
    torn = len(connection.execute("delete from staged_marks where type is null returning 1").fetchall())
    for statement in (_READINGS, _POWERS, _GPU_STATES, _CLAIMS):
        connection.execute(statement)
    _register_ends(connection, samples)
    return torn


def _fill(cursor: duckdb.DuckDBPyConnection, table: str, lines: str, chosen: str) -> None:
    cursor.execute(f"""
        create or replace table {table} as
        select
            line.* exclude (filename, boot_id), segment.node, segment.segment,
            coalesce(line.boot_id, segment.boot_id) as boot_id
        from {lines} as line
        inner join staged_segments as segment on line.filename = segment.filename
        where {chosen}
    """)  # noqa: S608 paths are quoted
    cursor.close()


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[tuple[Any, ...]]) -> None:
    """Inserts rows in one statement: one for each would take seconds for a day."""
    if rows:
        columns = ", ".join(["unnest(?)"] * len(rows[0]))
        values = [list(column) for column in zip(*rows, strict=True)]
        connection.execute(f"insert into {table} select {columns}", values)


def _register_segments(connection: duckdb.DuckDBPyConnection, segments: list[Segment]) -> None:
    connection.execute("""
        create or replace table staged_segments (
            filename varchar, kind varchar, node varchar, boot_id varchar, segment bigint,
            wattd_version varchar, monotonic_nano bigint, time_unix_nano bigint
        )
    """)
    connection.execute("""
        create or replace table staged_devices (
            filename varchar, node varchar, boot_id varchar, segment bigint, "number" integer,
            device varchar, "index" integer, domain varchar, source varchar, sensor varchar, model varchar,
            update_nano bigint, uncertainty_ratio double, power_limit_watts double
        )
    """)
    heads, devices = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    for part in segments:
        place = (str(part.path), part.node, part.boot_id, part.number)
        times = (part.monotonic_nano, part.time_unix_nano)
        heads.append((str(part.path), part.kind, *place[1:], part.wattd_version, *times))
        # The reader gives a device's keys in the order of the table's columns.
        devices += [(*place, *device.values()) for device in part.devices]
    _insert(connection, "staged_segments", heads)
    _insert(connection, "staged_devices", devices)


def _register_ends(connection: duckdb.DuckDBPyConnection, samples: list[Segment]) -> None:
    """Notes when each boot's evidence ends: of the samples only the newest segment is read."""
    newest = {(part.node, part.boot_id): part for part in sorted(samples, key=lambda part: part.number)}
    connection.execute(f"""
        create or replace table staged_ends as
        with moments as (
            select node, boot_id, monotonic_nano from staged_segments
            union all
            select segment.node, segment.boot_id, line.monotonic_nano
            from {_lines(newest.values(), TICK)} as line
            inner join staged_segments as segment on line.filename = segment.filename
            union all
            select node, boot_id, coalesce(end_monotonic_nano, begin_monotonic_nano) from staged_marks
        )
        select node, boot_id, max(monotonic_nano) as monotonic_nano from moments group by all
    """)  # noqa: S608 paths are quoted
