-- grain: one row per (run_id, model_sha256, batch, request_id)
-- Energy per token of a model at one batch size, as a benchmark measured it. A result that was sent twice counts once.
with ranked as (
    select
        run_id,
        node,
        model_sha256,
        batch,
        tokens_in,
        tokens_out,
        energy_prefill_joules,
        energy_decode_joules,
        energy_joules,
        request_id,
        monotonic_nano,
        row_number() over (
            partition by run_id, model_sha256, batch, request_id
            order by segment, seq
        ) as place
    from staged_events
    where type = 'ept'
)

select
    run_id,
    node,
    model_sha256,
    batch,
    tokens_in,
    tokens_out,
    energy_prefill_joules,
    energy_decode_joules,
    energy_joules,
    request_id,
    monotonic_nano
from ranked
where place = 1
