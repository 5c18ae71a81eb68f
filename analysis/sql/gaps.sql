-- grain: one row per (node, boot_id, device, begin_monotonic_nano, reason)
-- Stretches without readings, and why. Without a device all devices of the node are meant.
select
    node,
    boot_id,
    device,
    begin_monotonic_nano,
    end_monotonic_nano,
    reason,
    (end_monotonic_nano - begin_monotonic_nano) / 1e9 as duration_seconds
from staged_events
where type = 'gap' and begin_monotonic_nano is not null and end_monotonic_nano is not null
group by node, boot_id, device, begin_monotonic_nano, end_monotonic_nano, reason
