-- grain: one row per (run_id, node, boot_id)
-- A run on a node (see run_spans), with the wall times of its begin and end.
with moments as (
    select
        node,
        boot_id,
        begin_monotonic_nano as monotonic_nano,
        cast(null as bigint) as offset_nano
    from run_spans
    union all
    select
        node,
        boot_id,
        end_monotonic_nano as monotonic_nano,
        cast(null as bigint) as offset_nano
    from run_spans
    union all
    select
        node,
        boot_id,
        monotonic_nano,
        time_unix_nano - monotonic_nano as offset_nano
    from clock
),

placed as (
    select
        node,
        boot_id,
        monotonic_nano,
        offset_nano,
        last_value(offset_nano ignore nulls) over (
            partition by node, boot_id
            order by monotonic_nano
            rows between unbounded preceding and current row
        ) as offset_before_nano,
        first_value(offset_nano ignore nulls) over (
            partition by node, boot_id
            order by monotonic_nano
            rows between current row and unbounded following
        ) as offset_after_nano
    from moments
),

walls as (
    select
        node,
        boot_id,
        monotonic_nano,
        max(monotonic_nano + coalesce(offset_before_nano, offset_after_nano)) as time_unix_nano
    from placed
    where offset_nano is null
    group by node, boot_id, monotonic_nano
),

answers as (
    select
        run_spans.run_id,
        run_spans.run,
        run_spans.job,
        run_spans.node,
        run_spans.boot_id,
        run_spans.method,
        run_spans.seed,
        run_spans.tokens_phase,
        run_spans.world_size,
        run_spans.rank_count,
        run_spans.restarts,
        run_spans.synchronised,
        run_spans.begin_monotonic_nano,
        run_spans.end_monotonic_nano,
        begun.time_unix_nano as begin_time_unix_nano,
        ended.time_unix_nano as end_time_unix_nano,
        run_spans.open,
        run_spans.closed_by,
        run_spans.duration_seconds
    from run_spans
    left join walls as begun
        on
            run_spans.node = begun.node
            and run_spans.boot_id = begun.boot_id
            and run_spans.begin_monotonic_nano = begun.monotonic_nano
    left join walls as ended
        on
            run_spans.node = ended.node
            and run_spans.boot_id = ended.boot_id
            and run_spans.end_monotonic_nano = ended.monotonic_nano
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
    duration_seconds,
    begin_time_unix_nano,
    end_time_unix_nano,
    open,
    closed_by
from answers
