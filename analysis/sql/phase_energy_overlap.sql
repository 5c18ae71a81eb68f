-- grain: one row per (run_id, node, device, phase)
-- Energy per phase in SQL alone: the counter between its updates is a straight line, a phase gets its difference over
-- the phase. No intervals, and nested or simultaneous phases each get the whole: phase_energy is the answer, this is
-- the check. GPUs are cut by the phases of the ranks that use them, other devices by those of the lowest local rank.
with edges as (
    select
        phases.run_id,
        phases.node,
        phases.boot_id,
        staged_claims.device,
        phases.phase,
        phases.begin_monotonic_nano as monotonic_nano,
        -1 as direction
    from phases
    inner join staged_claims
        on
            phases.run_id = staged_claims.run_id
            and phases.node = staged_claims.node
            and phases.boot_id = staged_claims.boot_id
            and phases.rank = staged_claims.rank
    union all
    select
        phases.run_id,
        phases.node,
        phases.boot_id,
        staged_claims.device,
        phases.phase,
        phases.end_monotonic_nano as monotonic_nano,
        1 as direction
    from phases
    inner join staged_claims
        on
            phases.run_id = staged_claims.run_id
            and phases.node = staged_claims.node
            and phases.boot_id = staged_claims.boot_id
            and phases.rank = staged_claims.rank
),

bounded as (
    select
        samples.node,
        samples.boot_id,
        samples.device,
        samples.monotonic_nano,
        samples.energy_joules,
        coalesce(
            greatest(samples.energy_old_monotonic_nano, samples.monotonic_nano - devices.update_nano),
            samples.energy_old_monotonic_nano,
            samples.monotonic_nano
        ) as old_nano
    from samples
    inner join devices
        on
            samples.node = devices.node
            and samples.boot_id = devices.boot_id
            and samples.device = devices.device
    where samples.energy_joules is not null
),

updates as (
    select
        node,
        boot_id,
        device,
        energy_joules,
        old_nano + cast(floor((monotonic_nano - old_nano) / 2.0) as bigint) as edge_nano
    from bounded
),

moments as (
    select
        run_id,
        node,
        boot_id,
        device,
        phase,
        monotonic_nano,
        direction,
        cast(null as bigint) as update_nano,
        cast(null as double) as energy_joules
    from edges
    union all
    select
        cast(null as varchar) as run_id,
        node,
        boot_id,
        device,
        cast(null as varchar) as phase,
        edge_nano as monotonic_nano,
        cast(null as integer) as direction,
        edge_nano as update_nano,
        energy_joules
    from updates
),

placed as (
    select
        run_id,
        node,
        device,
        phase,
        monotonic_nano,
        direction,
        last_value(update_nano ignore nulls) over before as before_nano,
        last_value(energy_joules ignore nulls) over before as before_joules,
        first_value(update_nano ignore nulls) over after as after_nano,
        first_value(energy_joules ignore nulls) over after as after_joules
    from moments
    window
        before as (
            partition by node, boot_id, device
            order by monotonic_nano
            rows between unbounded preceding and current row
        ),
        after as (
            partition by node, boot_id, device
            order by monotonic_nano
            rows between current row and unbounded following
        )
),

interpolated as (
    select
        run_id,
        node,
        device,
        phase,
        monotonic_nano,
        direction,
        case
            when before_nano is null then after_joules
            when after_nano is null or after_nano = before_nano then before_joules
            else
                before_joules
                + (after_joules - before_joules)
                * (monotonic_nano - before_nano) / (after_nano - before_nano)
        end as energy_joules
    from placed
    where direction is not null
)

select
    run_id,
    node,
    device,
    phase,
    sum(direction * energy_joules) as energy_joules,
    sum(direction * monotonic_nano) / 1e9 as duration_seconds
from interpolated
group by run_id, node, device, phase
