-- grain: one row per (node, boot_id, sensor)
-- Each sensor that was seen or missed, with its last word.
with words as (
    select
        node,
        boot_id,
        sensor,
        monotonic_nano,
        up,
        reason,
        row_number() over (
            partition by node, boot_id, sensor
            order by monotonic_nano desc, seq desc
        ) as place
    from staged_events
    where type = 'sensor'
),

known as (
    select
        node,
        boot_id,
        sensor,
        cast(0 as bigint) as device_count
    from words
    where place = 1
    union all
    select
        node,
        boot_id,
        sensor,
        count(*) as device_count
    from devices
    where sensor is not null
    group by node, boot_id, sensor
),

counted as (
    select
        node,
        boot_id,
        sensor,
        sum(device_count) as device_count
    from known
    group by node, boot_id, sensor
)

select
    counted.node,
    counted.boot_id,
    counted.sensor,
    cast(counted.device_count as bigint) as device_count,
    words.reason,
    words.monotonic_nano,
    coalesce(words.up, counted.device_count > 0) as up
from counted
left join words
    on
        counted.node = words.node
        and counted.boot_id = words.boot_id
        and counted.sensor = words.sensor
        and words.place = 1
