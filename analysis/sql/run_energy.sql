-- grain: one row per (run_id)
-- A run over all nodes: gpu + package + dram, node only where a node has nothing else. core and uncore lie inside
-- package; psys is never added; a module's counter takes the place of all that it covers.
with device_totals as (
    select
        run_id,
        node,
        device,
        domain,
        max(source) as source, -- noqa: RF04
        sum(energy_joules) as energy_joules,
        -- (unresolved) repeats the time of the rows it stands for.
        sum(case when phase <> '(unresolved)' then duration_seconds * coalesce(coverage_ratio, 0) end)
        / nullif(sum(case when phase <> '(unresolved)' then duration_seconds end), 0) as covered_ratio,
        min(case when energy_joules is null and phase = '(unresolved)' then 0 else 1 end) as known
    from phase_energy
    group by run_id, node, device, domain
),

node_domains as (
    select
        run_id,
        node,
        max(case when domain = 'module' then 1 else 0 end) as has_module,
        max(case when domain in ('gpu', 'package', 'dram') then 1 else 0 end) as has_parts
    from device_totals
    group by run_id, node
),

counted as (
    select
        device_totals.run_id,
        device_totals.node,
        device_totals.domain,
        device_totals.source,
        device_totals.energy_joules,
        device_totals.covered_ratio,
        device_totals.known
    from device_totals
    inner join node_domains
        on
            device_totals.run_id = node_domains.run_id
            and device_totals.node = node_domains.node
    where
        (device_totals.domain = 'module')
        or (device_totals.domain in ('gpu', 'package', 'dram') and node_domains.has_module = 0)
        or (device_totals.domain = 'node' and node_domains.has_module = 0 and node_domains.has_parts = 0)
),

totals as (
    select
        run_id,
        count(distinct node) as node_count,
        sum(energy_joules) as known_energy_joules,
        min(case when covered_ratio < 0.5 then 0 else known end) as known,
        min(covered_ratio) as covered_ratio,
        sum(case when domain = 'gpu' then energy_joules end) as gpu_energy_joules,
        sum(case when domain = 'package' then energy_joules end) as package_energy_joules,
        sum(case when domain = 'dram' then energy_joules end) as dram_energy_joules,
        sum(case when domain = 'module' then energy_joules end) as module_energy_joules,
        sum(case when domain = 'node' then energy_joules end) as node_energy_joules,
        max(case when source = 'measured' then 1 else 0 end) as is_measured,
        max(case when source = 'estimated' then 1 else 0 end) as is_estimated,
        max(case when source = 'simulated' then 1 else 0 end) as is_simulated,
        max(case when source = 'imported' then 1 else 0 end) as is_imported
    from counted
    group by run_id
),

heads as (
    select
        run_id,
        max(run) as run, -- noqa: RF04
        max(job) as job,
        max(method) as method, -- noqa: RF04
        max(seed) as seed,
        max(tokens_phase) as tokens_phase,
        max(restarts) as restarts,
        max(duration_seconds) as duration_seconds
    from run_spans
    group by run_id
),

phase_tokens as (
    select
        run_id,
        phase,
        sum(tokens) as tokens
    from phases
    where tokens is not null
    group by run_id, phase
),

ranked_tokens as (
    select
        heads.run_id,
        phase_tokens.phase,
        phase_tokens.tokens,
        row_number() over (
            partition by heads.run_id
            order by
                case when phase_tokens.phase = 'student_forward' then 0 else 1 end,
                phase_tokens.tokens desc,
                phase_tokens.phase asc
        ) as place
    from heads
    inner join phase_tokens on heads.run_id = phase_tokens.run_id
    where coalesce(heads.tokens_phase, '') = '' or heads.tokens_phase = phase_tokens.phase
),

answers as (
    select
        heads.run_id,
        heads.run,
        heads.job,
        heads.method,
        heads.seed,
        heads.restarts,
        heads.duration_seconds,
        totals.node_count,
        totals.gpu_energy_joules,
        totals.package_energy_joules,
        totals.dram_energy_joules,
        totals.module_energy_joules,
        totals.node_energy_joules,
        cast(ranked_tokens.tokens as bigint) as tokens,
        case when totals.known = 1 then totals.known_energy_joules end as energy_joules,
        case
            when totals.is_measured + totals.is_estimated + totals.is_simulated + totals.is_imported > 1 then 'mixed'
            when totals.is_estimated = 1 then 'estimated'
            when totals.is_simulated = 1 then 'simulated'
            when totals.is_imported = 1 then 'imported'
            when totals.is_measured = 1 then 'measured'
        end as source, -- noqa: RF04
        coalesce(nullif(heads.tokens_phase, ''), ranked_tokens.phase) as tokens_phase,
        case
            when totals.known = 1 and ranked_tokens.tokens > 0 then totals.known_energy_joules / ranked_tokens.tokens
        end as energy_per_token_joules,
        case
            when totals.run_id is null then 'no device of the run has a counter'
            when totals.covered_ratio < 0.99
                then
                    'readings cover ' || cast(cast(floor(100 * totals.covered_ratio) as integer) as varchar)
                    || ' % of the run: what nobody saw may be missing'
            when totals.known = 0 then 'the energy of a device is not known: see its rows in phase_energy'
        end as reason
    from heads
    left join totals on heads.run_id = totals.run_id
    left join ranked_tokens
        on
            heads.run_id = ranked_tokens.run_id
            and ranked_tokens.place = 1
)

select
    run_id,
    run,
    job,
    method,
    seed,
    restarts,
    node_count,
    duration_seconds,
    energy_joules,
    gpu_energy_joules,
    package_energy_joules,
    dram_energy_joules,
    module_energy_joules,
    node_energy_joules,
    source,
    tokens_phase,
    tokens,
    energy_per_token_joules,
    reason
from answers
