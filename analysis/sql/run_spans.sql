-- grain: one row per (run_id, node, boot_id)
-- A run on a node, from its first rank's begin to its last rank's end, without wall times, which cost a look at all
-- samples. Open where a rank has not ended: then it lasts until the archive ends.
with begins as (
    select
        run_id,
        node,
        boot_id,
        max(run) as run, -- noqa: RF04
        max(job_id) as job,
        max(method) as method, -- noqa: RF04
        max(seed) as seed,
        max(tokens_phase) as tokens_phase,
        max(world_size) as world_size,
        count(distinct rank) as rank_count,
        coalesce(max(restarts), 0) as restarts,
        max(case when synchronised then 1 else 0 end) = 1 as synchronised,
        min(monotonic_nano) as begin_monotonic_nano,
        count(distinct client) as client_count
    from staged_events
    where type = 'run_begin' and monotonic_nano is not null
    group by run_id, node, boot_id
),

ends as (
    select
        run_id,
        node,
        boot_id,
        max(monotonic_nano) as end_monotonic_nano,
        max(closed_by) as closed_by,
        count(distinct client) as client_count
    from staged_events
    where type = 'run_end' and monotonic_nano is not null
    group by run_id, node, boot_id
),

spans as (
    select
        begins.run_id,
        begins.node,
        begins.boot_id,
        begins.run,
        begins.job,
        begins.method,
        begins.seed,
        begins.tokens_phase,
        begins.world_size,
        begins.rank_count,
        begins.restarts,
        begins.synchronised,
        begins.begin_monotonic_nano,
        ends.closed_by,
        coalesce(ends.client_count, 0) < begins.client_count as open,
        case
            when coalesce(ends.client_count, 0) < begins.client_count
                then coalesce(staged_ends.monotonic_nano, ends.end_monotonic_nano, begins.begin_monotonic_nano)
            else ends.end_monotonic_nano
        end as end_monotonic_nano
    from begins
    left join ends
        on
            begins.run_id = ends.run_id
            and begins.node = ends.node
            and begins.boot_id = ends.boot_id
    left join staged_ends
        on
            begins.node = staged_ends.node
            and begins.boot_id = staged_ends.boot_id
)

select
    run_id,
    run,
    job,
    node,
    boot_id,
    method,
    seed,
    tokens_phase,
    world_size,
    rank_count,
    restarts,
    synchronised,
    begin_monotonic_nano,
    end_monotonic_nano,
    open,
    closed_by,
    (end_monotonic_nano - begin_monotonic_nano) / 1e9 as duration_seconds
from spans
