"""Staging: the lines of the archive as tables and views, typed, with node and boot beside each line.

This is the only place that knows the form of the lines and the only SQL that is DuckDB's alone. Events are few and are
read once into tables. Samples are many and stay views over the files: nothing is copied until someone asks.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import duckdb

from wattq.segments import Segment, reader

_TICK = """
    {type: 'VARCHAR', monotonic_nano: 'BIGINT', device: 'INTEGER[]', energy_joules: 'DOUBLE[]', old_us: 'DOUBLE[]',
     read_us: 'DOUBLE[]', power_device: 'INTEGER[]', power_watts: 'DOUBLE[]', power_old_us: 'DOUBLE[]',
     power_read_us: 'DOUBLE[]', time_unix_nano: 'BIGINT', boottime_nano: 'BIGINT', ticks: 'BIGINT',
     missed_ticks: 'BIGINT', late_p99_us: 'DOUBLE'}
"""

_STATE = """
    {type: 'VARCHAR', monotonic_nano: 'BIGINT', cpu_utilization_ratio: 'DOUBLE', memory_used_bytes: 'BIGINT',
     memory_total_bytes: 'BIGINT',
     gpus: 'STRUCT("number" INTEGER, utilization_ratio DOUBLE, memory_used_bytes BIGINT, memory_total_bytes BIGINT,
            temperature_celsius DOUBLE, sm_clock_hertz DOUBLE, power_limit_watts DOUBLE, throttle_reasons VARCHAR)[]'}
"""

_MARK = """
    {type: 'VARCHAR', seq: 'BIGINT', boot_id: 'VARCHAR', client: 'VARCHAR', mark: 'BIGINT', run_id: 'VARCHAR',
     "rank": 'INTEGER', phase_number: 'BIGINT', phase: 'VARCHAR', thread: 'INTEGER', begin_monotonic_nano: 'BIGINT',
     end_monotonic_nano: 'BIGINT', tokens: 'BIGINT', failed: 'BOOLEAN', closed_by: 'VARCHAR'}
"""

_EVENT = """
    {type: 'VARCHAR', seq: 'BIGINT', boot_id: 'VARCHAR', client: 'VARCHAR', mark: 'BIGINT', monotonic_nano: 'BIGINT',
     run_id: 'VARCHAR', run: 'VARCHAR', method: 'VARCHAR', seed: 'BIGINT', tokens_phase: 'VARCHAR', "rank": 'INTEGER',
     local_rank: 'INTEGER', world_size: 'INTEGER', gpu_uuids: 'VARCHAR[]', gpu_source: 'VARCHAR', resume: 'BOOLEAN',
     synchronised: 'BOOLEAN', pid: 'BIGINT', job_id: 'VARCHAR', user: 'VARCHAR', uid: 'BIGINT', account: 'VARCHAR',
     partition: 'VARCHAR', restarts: 'INTEGER', devices: 'VARCHAR[]', closed_by: 'VARCHAR', request_id: 'VARCHAR',
     harness: 'VARCHAR', harness_version: 'VARCHAR', task: 'VARCHAR', metric: 'VARCHAR', value: 'DOUBLE',
     stderr: 'DOUBLE', n: 'BIGINT', settings_sha256: 'VARCHAR', model: 'VARCHAR', model_sha256: 'VARCHAR',
     batch: 'BIGINT', tokens_in: 'BIGINT', tokens_out: 'BIGINT', energy_prefill_joules: 'DOUBLE',
     energy_decode_joules: 'DOUBLE', energy_joules: 'DOUBLE', begin_monotonic_nano: 'BIGINT',
     end_monotonic_nano: 'BIGINT', reason: 'VARCHAR', device: 'VARCHAR', sensor: 'VARCHAR', up: 'BOOLEAN',
     what: 'VARCHAR', marks: 'BIGINT'}
"""

# The entries of a tick become rows. `old_us` of one number holds for every entry; the sign says "before the tick".
_READINGS = """
    create or replace view staged_readings as
    with entries as (
        select filename, monotonic_nano, power_device, power_watts, power_old_us, power_read_us,
            unnest(device) as number, unnest(energy_joules) as energy_joules,
            unnest(case when len(old_us) = 1 then list_resize(old_us, len(device), old_us[1]) else old_us end) as old_us,
            unnest(case when len(read_us) = 1 then list_resize(read_us, len(device), read_us[1]) else read_us end)
                as read_us
        from staged_ticks where type = 'tick' and device is not null
    ), placed as (
        select *, coalesce(list_position(power_device, number), 0) as place from entries
    )
    select filename, number, monotonic_nano + coalesce(cast(round(read_us * 1000) as bigint), 0) as monotonic_nano,
        energy_joules, monotonic_nano + cast(round(old_us * 1000) as bigint) as energy_old_monotonic_nano,
        case when coalesce(power_read_us[least(place, len(power_read_us))], 0) = coalesce(read_us, 0) and place > 0
            then power_watts[place] end as power_watts,
        case when coalesce(power_read_us[least(place, len(power_read_us))], 0) = coalesce(read_us, 0) and place > 0
            then monotonic_nano + cast(round(power_old_us[least(place, len(power_old_us))] * 1000) as bigint)
        end as power_old_monotonic_nano
    from placed where energy_joules is not null
"""

# Power readings that no energy reading of the same moment carries.
_POWERS = """
    create or replace view staged_powers as
    with entries as (
        select filename, monotonic_nano, device, read_us, unnest(power_device) as number,
            unnest(power_watts) as power_watts,
            unnest(case when len(power_old_us) = 1 then list_resize(power_old_us, len(power_device), power_old_us[1])
                else power_old_us end) as old_us,
            unnest(case when len(power_read_us) = 1
                then list_resize(power_read_us, len(power_device), power_read_us[1]) else power_read_us end) as power_us
        from staged_ticks where type = 'tick' and power_device is not null
    ), placed as (
        select *, coalesce(list_position(device, number), 0) as place from entries
    )
    select filename, number, monotonic_nano + coalesce(cast(round(power_us * 1000) as bigint), 0) as monotonic_nano,
        power_watts, monotonic_nano + cast(round(old_us * 1000) as bigint) as power_old_monotonic_nano
    from placed
    where power_watts is not null and (
        place = 0 or coalesce(read_us[least(place, len(read_us))], 0) <> coalesce(power_us, 0)
    )
"""

# Which rank's phases cut which device. A GPU is cut by the ranks that use it; where a rank could not say, all GPUs of
# its job count, or all of the node. Everything else of the node is cut by the rank of the run that is lowest there.
_CLAIMS = """
    create or replace table staged_claims as
    with ranks as (
        select run_id, node, boot_id, coalesce("rank", 0) as "rank", min(local_rank) as local_rank,
            max(job_id) as job_id, arg_max(gpu_uuids, monotonic_nano) filter (where len(gpu_uuids) > 0) as gpu_uuids
        from staged_events where type in ('run_begin', 'run_update') group by all
    ), known as (
        select distinct node, boot_id, device, domain from staged_devices
    ), job_devices as (
        select node, boot_id, job_id, unnest(devices) as device from staged_events where type = 'job_begin'
    ), named as (
        select run_id, node, boot_id, "rank", unnest(gpu_uuids) as device, false as assumed from ranks
        union
        select ranks.run_id, ranks.node, ranks.boot_id, ranks."rank", job_devices.device, true as assumed
        from ranks inner join job_devices using (node, boot_id, job_id) where ranks.gpu_uuids is null
        union
        select ranks.run_id, ranks.node, ranks.boot_id, ranks."rank", known.device, true as assumed
        from ranks inner join known using (node, boot_id)
        left join job_devices using (node, boot_id, job_id)
        where ranks.gpu_uuids is null and known.domain = 'gpu' and job_devices.device is null
    ), lowest as (
        select run_id, node, boot_id, arg_min("rank", (coalesce(local_rank, "rank"), "rank")) as "rank"
        from ranks group by all
    )
    select named.run_id, named.node, named.boot_id, named."rank", named.device, known.domain, named.assumed
    from named inner join known using (node, boot_id, device) where known.domain = 'gpu'
    union all
    select lowest.run_id, lowest.node, lowest.boot_id, lowest."rank", known.device, known.domain, false as assumed
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
    connection.execute(f"create or replace view staged_ticks as select * from {_lines(samples, _TICK)}")  # noqa: S608 paths are quoted
    connection.execute(f"create or replace view staged_states as select * from {_lines(samples, _STATE)}")  # noqa: S608 paths are quoted
    connection.execute(_READINGS)
    connection.execute(_POWERS)
    for table, columns, chosen in (
        ("staged_marks", _MARK, "type in ('phase', 'phase_begin')"),
        ("staged_events", _EVENT, "type not in ('phase', 'phase_begin', 'segment', 'end')"),
    ):
        connection.execute(f"""
            create or replace table {table} as
            select line.* exclude (filename, boot_id), segment.node, segment.segment,
                coalesce(line.boot_id, segment.boot_id) as boot_id
            from {_lines(events, columns)} as line
            inner join staged_segments as segment on line.filename = segment.filename
            where {chosen}
        """)  # noqa: S608 paths are quoted
    _register_gpu_states(connection)
    connection.execute(_CLAIMS)
    _register_ends(connection, samples)
    counted = f"select count(*) from {_lines(events, _MARK)} where type is null"  # noqa: S608 paths are quoted
    torn = connection.execute(counted).fetchone()
    return int(torn[0]) if torn else 0


def _register_segments(connection: duckdb.DuckDBPyConnection, segments: list[Segment]) -> None:
    connection.execute("""
        create or replace table staged_segments (filename varchar, kind varchar, node varchar, boot_id varchar,
            segment bigint, wattd_version varchar, monotonic_nano bigint, time_unix_nano bigint)
    """)
    connection.execute("""
        create or replace table staged_devices (filename varchar, node varchar, boot_id varchar, segment bigint,
            "number" integer, device varchar, "index" integer, domain varchar, source varchar, sensor varchar,
            model varchar, update_nano bigint, uncertainty_ratio double)
    """)
    keys = ("number", "device", "index", "domain", "source", "sensor", "model", "update_nano", "uncertainty_ratio")
    for part in segments:
        place = (str(part.path), part.kind, part.node, part.boot_id, part.number)
        row = (*place, part.wattd_version, part.monotonic_nano, part.time_unix_nano)
        connection.execute("insert into staged_segments values (?, ?, ?, ?, ?, ?, ?, ?)", row)
        for device in part.devices:
            values = [str(part.path), part.node, part.boot_id, part.number, *(device.get(key) for key in keys)]
            connection.execute(f"insert into staged_devices values ({', '.join('?' * 13)})", values)  # noqa: S608 marks


def _register_gpu_states(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        create or replace view staged_gpu_states as
        with entries as (
            select filename, monotonic_nano, unnest(gpus) as gpu from staged_states where type = 'state'
        )
        select filename, monotonic_nano, gpu.* from entries
    """)


def _register_ends(connection: duckdb.DuckDBPyConnection, samples: list[Segment]) -> None:
    """Notes when each boot's evidence ends: only its newest segment is read."""
    newest = {(part.node, part.boot_id): part for part in sorted(samples, key=lambda part: part.number)}
    connection.execute(f"""
        create or replace table staged_ends as
        with lasts as (
            select node, boot_id, greatest(max(line.monotonic_nano), max(segment.monotonic_nano)) as monotonic_nano
            from staged_segments as segment
            left join {_lines(newest.values(), _TICK)} as line on line.filename = segment.filename
            group by node, boot_id
        ), marks as (
            select node, boot_id, max(coalesce(end_monotonic_nano, begin_monotonic_nano)) as monotonic_nano
            from staged_marks group by node, boot_id
        )
        select node, boot_id, greatest(lasts.monotonic_nano, marks.monotonic_nano) as monotonic_nano
        from lasts left join marks using (node, boot_id)
    """)  # noqa: S608 paths are quoted
