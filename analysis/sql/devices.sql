-- grain: one row per (node, boot_id, device)
-- What each device is, as its newest segment says.
with ranked as (
    select
        node,
        boot_id,
        device,
        index,
        domain,
        source,
        sensor,
        model,
        update_nano,
        uncertainty_ratio,
        power_limit_watts,
        row_number() over (
            partition by node, boot_id, device
            order by segment desc
        ) as place
    from staged_devices
)

select
    node,
    boot_id,
    device,
    index,
    domain,
    source,
    sensor,
    model,
    update_nano,
    uncertainty_ratio,
    power_limit_watts
from ranked
where place = 1
