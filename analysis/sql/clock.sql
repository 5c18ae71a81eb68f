-- grain: one row per (node, boot_id, monotonic_nano)
-- Pairs of monotonic and wall time, once a second. The only source of wall times; durations are never made of them.
with pairs as (
    select
        staged_segments.node,
        staged_segments.boot_id,
        staged_ticks.monotonic_nano,
        staged_ticks.time_unix_nano,
        staged_ticks.boottime_nano
    from staged_ticks
    inner join staged_segments on staged_ticks.filename = staged_segments.filename
    where staged_ticks.type = 'second' and staged_ticks.time_unix_nano is not null
    union all
    select
        node,
        boot_id,
        monotonic_nano,
        time_unix_nano,
        cast(null as bigint) as boottime_nano
    from staged_segments
    where monotonic_nano is not null and time_unix_nano is not null
)

select
    node,
    boot_id,
    monotonic_nano,
    max(time_unix_nano) as time_unix_nano,
    max(boottime_nano) as boottime_nano
from pairs
group by node, boot_id, monotonic_nano
