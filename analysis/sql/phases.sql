-- grain: one row per (run_id, node, boot_id, client, phase_number)
-- Each tagged interval. A mark that was delivered twice counts once, and the client's own end wins over the daemon's.
-- gpu_*: when the GPU reached the edges, within gpu_error_nano either way, else why that is not known.
-- A phase without an end is open: it lasts until its client's run ended, else until the archive ends.
with ranked as (
    select
        run_id,
        node,
        boot_id,
        client,
        phase_number,
        rank,
        thread,
        phase,
        begin_monotonic_nano,
        end_monotonic_nano,
        tokens,
        failed,
        closed_by,
        gpu_begin_monotonic_nano,
        gpu_end_monotonic_nano,
        gpu_error_nano,
        gpu_reason,
        row_number() over (
            partition by run_id, node, boot_id, client, phase_number
            order by
                case
                    when end_monotonic_nano is null then 2
                    when closed_by is not null then 1
                    else 0
                end,
                segment,
                seq
        ) as place
    from staged_marks
    where begin_monotonic_nano is not null
),

run_ends as (
    select
        run_id,
        node,
        boot_id,
        client,
        max(monotonic_nano) as monotonic_nano
    from staged_events
    where type = 'run_end'
    group by run_id, node, boot_id, client
),

ended as (
    select
        ranked.run_id,
        ranked.node,
        ranked.boot_id,
        ranked.client,
        ranked.phase_number,
        ranked.rank,
        ranked.thread,
        ranked.phase,
        ranked.begin_monotonic_nano,
        ranked.tokens,
        ranked.failed,
        ranked.closed_by,
        ranked.gpu_begin_monotonic_nano,
        ranked.gpu_end_monotonic_nano,
        ranked.gpu_error_nano,
        ranked.gpu_reason,
        coalesce(
            ranked.end_monotonic_nano, run_ends.monotonic_nano, staged_ends.monotonic_nano
        ) as end_monotonic_nano,
        ranked.end_monotonic_nano is null as open
    from ranked
    left join run_ends
        on
            ranked.run_id = run_ends.run_id
            and ranked.node = run_ends.node
            and ranked.boot_id = run_ends.boot_id
            and ranked.client = run_ends.client
    left join staged_ends
        on
            ranked.node = staged_ends.node
            and ranked.boot_id = staged_ends.boot_id
    where ranked.place = 1
),

answers as (
    select
        run_id,
        node,
        boot_id,
        client,
        phase_number,
        rank,
        thread,
        phase,
        begin_monotonic_nano,
        tokens,
        failed,
        open,
        closed_by,
        gpu_begin_monotonic_nano,
        gpu_end_monotonic_nano,
        gpu_error_nano,
        gpu_reason,
        case
            when end_monotonic_nano > begin_monotonic_nano then end_monotonic_nano
            else begin_monotonic_nano
        end as end_monotonic_nano,
        case
            when end_monotonic_nano > begin_monotonic_nano then (end_monotonic_nano - begin_monotonic_nano) / 1e9
            else 0.0
        end as duration_seconds
    from ended
)

select
    run_id,
    node,
    boot_id,
    client,
    phase_number,
    rank,
    thread,
    phase,
    begin_monotonic_nano,
    end_monotonic_nano,
    duration_seconds,
    tokens,
    failed,
    open,
    closed_by,
    gpu_begin_monotonic_nano,
    gpu_end_monotonic_nano,
    gpu_error_nano,
    gpu_reason
from answers
