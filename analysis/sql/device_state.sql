-- grain: one row per (node, boot_id, device, monotonic_nano)
-- State of each GPU and, without a device, of the node, once a second.
select
    staged_devices.node,
    staged_devices.boot_id,
    staged_devices.device,
    staged_gpu_states.monotonic_nano,
    staged_gpu_states.utilization_ratio,
    staged_gpu_states.memory_used_bytes,
    staged_gpu_states.memory_total_bytes,
    staged_gpu_states.temperature_celsius,
    staged_gpu_states.sm_clock_hertz,
    staged_gpu_states.power_limit_watts,
    staged_gpu_states.throttle_reasons,
    cast(null as double) as cpu_utilization_ratio
from staged_gpu_states
inner join staged_devices
    on
        staged_gpu_states.filename = staged_devices.filename
        and staged_gpu_states.number = staged_devices.number
union all
select
    staged_segments.node,
    staged_segments.boot_id,
    cast(null as varchar) as device,
    staged_states.monotonic_nano,
    cast(null as double) as utilization_ratio,
    staged_states.memory_used_bytes,
    staged_states.memory_total_bytes,
    cast(null as double) as temperature_celsius,
    cast(null as double) as sm_clock_hertz,
    cast(null as double) as power_limit_watts,
    cast(null as varchar) as throttle_reasons,
    staged_states.cpu_utilization_ratio
from staged_states
inner join staged_segments on staged_states.filename = staged_segments.filename
where staged_states.type = 'state'
