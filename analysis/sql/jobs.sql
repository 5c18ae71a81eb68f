-- grain: one row per (node, boot_id, job, restarts)
-- Jobs that were announced, and those that only their runs tell of (then without a job's own begin and end).
with told as (
    select
        node,
        boot_id,
        job_id as job,
        coalesce(restarts, 0) as restarts,
        max(user) as user, -- noqa: RF04
        max(uid) as uid, -- noqa: RF04
        max(account) as account, -- noqa: RF04
        max(partition) as partition, -- noqa: RF04
        min(case when type = 'job_begin' then monotonic_nano end) as begin_monotonic_nano,
        max(case when type = 'job_end' then monotonic_nano end) as end_monotonic_nano,
        max(case when type = 'job_end' then closed_by end) as closed_by
    from staged_events
    where type in ('job_begin', 'job_end') and job_id is not null
    group by node, boot_id, job_id, coalesce(restarts, 0)
),

by_runs as (
    select
        node,
        boot_id,
        job_id as job,
        cast(0 as integer) as restarts,
        max(user) as user, -- noqa: RF04
        max(account) as account, -- noqa: RF04
        max(partition) as partition -- noqa: RF04
    from staged_events
    where type = 'run_begin' and job_id is not null
    group by node, boot_id, job_id
)

select
    told.node,
    told.boot_id,
    told.job,
    told.restarts,
    told.user,
    told.uid,
    told.account,
    told.partition,
    told.begin_monotonic_nano,
    told.end_monotonic_nano,
    told.closed_by
from told
union all
select
    by_runs.node,
    by_runs.boot_id,
    by_runs.job,
    by_runs.restarts,
    by_runs.user,
    cast(null as bigint) as uid, -- noqa: RF04
    by_runs.account,
    by_runs.partition,
    cast(null as bigint) as begin_monotonic_nano,
    cast(null as bigint) as end_monotonic_nano,
    cast(null as varchar) as closed_by
from by_runs
left join told
    on
        by_runs.node = told.node
        and by_runs.boot_id = told.boot_id
        and by_runs.job = told.job
where told.job is null
