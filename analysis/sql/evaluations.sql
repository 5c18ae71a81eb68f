-- grain: one row per (run_id, harness, task, metric, model, request_id)
-- Scores of evaluation harnesses. A result that was sent twice counts once.
with ranked as (
    select
        run_id,
        node,
        harness,
        harness_version,
        task,
        metric,
        model,
        value,
        stderr,
        n,
        settings_sha256,
        request_id,
        monotonic_nano,
        row_number() over (
            partition by run_id, harness, task, metric, model, request_id
            order by segment, seq
        ) as place
    from staged_events
    where type = 'evaluation'
)

select
    run_id,
    node,
    harness,
    harness_version,
    task,
    metric,
    model,
    value,
    stderr,
    n,
    settings_sha256,
    request_id,
    monotonic_nano
from ranked
where place = 1
