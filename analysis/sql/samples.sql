-- grain: one row per (node, boot_id, device, monotonic_nano)
-- Each published reading: a new value of the counter, a new power reading, or both at once.
-- The counter moved between energy_old_monotonic_nano, the last reading of the old value, and monotonic_nano.
with readings as (
    select
        filename,
        number,
        monotonic_nano,
        energy_joules,
        energy_old_monotonic_nano,
        power_watts,
        power_old_monotonic_nano
    from staged_readings
    union all
    select
        filename,
        number,
        monotonic_nano,
        cast(null as double) as energy_joules,
        cast(null as bigint) as energy_old_monotonic_nano,
        power_watts,
        power_old_monotonic_nano
    from staged_powers
)

select
    staged_devices.node,
    staged_devices.boot_id,
    staged_devices.device,
    staged_devices.domain,
    staged_devices.source,
    readings.monotonic_nano,
    readings.energy_joules,
    readings.energy_old_monotonic_nano,
    readings.power_watts,
    readings.power_old_monotonic_nano
from readings
inner join staged_devices
    on
        readings.filename = staged_devices.filename
        and readings.number = staged_devices.number
