"""Metrics, version 1: which families there are and where their values come from.

Energy and power of CPU and DRAM are rounded down to whole joules and watts: finer ones tell what
other users compute.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from wattd.jobs import State
from wattd.ledger import Ledger
from wattd.live import UPDATES_PER_PHASE, PhaseEnergies
from wattd.metrics.health import sensor_families, server_families
from wattd.metrics.page import Family, Labels, Sample, one
from wattd.node import DeviceView, Node
from wattd.runs import Job
from wattd.values import MICROJOULES_PER_JOULE, Domain
from wattd.vitals import Vitals

ENDED_JOB_NANO = 120_000_000_000
"""So long the series of an ended job stay: two scrapes at the usual interval, and some."""

_GAUGES = {
    "utilization_ratio": ("ratio", "Share of time the GPU was busy, as its driver says."),
    "memory_used_bytes": ("bytes", "Memory in use, bytes."),
    "memory_total_bytes": ("bytes", "Memory built in, bytes."),
    "temperature_celsius": ("celsius", "Temperature of the die, degrees Celsius."),
    "sm_clock_hertz": ("hertz", "Clock of the multiprocessors, hertz."),
    "power_limit_watts": ("watts", "Power limit in force, watts."),
    "throttle_reasons": ("", "Why clocks are held down: the driver's bit mask."),
}


@dataclass(slots=True, kw_only=True)
class Sources:
    """What a page is made of."""

    node: Node
    state: State
    ledger: Ledger
    phases: PhaseEnergies
    vitals: Vitals


def joules(view: DeviceView, microjoules: int) -> float:
    """Energy as the page shows it: CPU and DRAM in whole joules."""
    if view.domain == Domain.GPU:
        return microjoules / MICROJOULES_PER_JOULE
    return microjoules // MICROJOULES_PER_JOULE


def watts(view: DeviceView, power_watts: float) -> float:
    """Power as the page shows it: CPU and DRAM in whole watts."""
    return round(power_watts, 3) if view.domain == Domain.GPU else round(power_watts)


def shown_jobs(sources: Sources) -> list[Job]:
    """Jobs that have series: the open ones, and those that ended a short while ago."""
    now = sources.node.clock[0]
    return [
        job
        for job in sources.state.jobs.values()
        if job.end_nano is None or now - job.end_nano < ENDED_JOB_NANO
    ]


def families(sources: Sources) -> Iterator[Family]:
    """Every family of the page."""
    return chain(
        _devices(sources.node),
        _accounts(sources),
        _jobs(sources),
        sensor_families(sources.node),
        server_families(sources.vitals),
    )


def _device_labels(view: DeviceView) -> Labels:
    described = view.described
    return (
        ("device", described["device"]),
        ("domain", described["domain"]),
        ("index", str(described["index"])),
        ("source", described["source"]),
    )


def _account_labels(view: DeviceView) -> Labels:
    described = view.described
    return (
        ("device", described["device"]),
        ("domain", described["domain"]),
        ("source", described["source"]),
    )


def _devices(node: Node) -> Iterator[Family]:
    views = node.devices.values()
    yield Family(
        "wattd_device_energy_joules_total",
        "counter",
        "Energy of a device, joules. Domains gpu, package, dram add up; core and uncore lie inside package.",
        "joules",
        [
            ("", _device_labels(view), joules(view, view.history.microjoules))
            for view in views
            if view.history.microjoules is not None
        ],
    )
    yield Family(
        "wattd_device_power_watts",
        "gauge",
        "Mean power of a device over the last second, watts; for panels. Absent when unknown.",
        "watts",
        [
            ("", _device_labels(view), watts(view, view.mean_watts))
            for view in views
            if view.mean_watts is not None
        ],
    )
    for key, (unit, text) in _GAUGES.items():
        yield Family(
            f"wattd_device_{key}",
            "gauge",
            f"{text} Absent when unknown.",
            unit,
            [
                ("", _device_labels(view), view.state[key])
                for view in views
                if view.state is not None and view.state.get(key) is not None
            ],
        )
    for key, unit, text in (
        ("cpu_utilization_ratio", "ratio", "Share of time the node's CPUs were busy."),
        ("memory_used_bytes", "bytes", "Memory of the node in use, bytes."),
        ("memory_total_bytes", "bytes", "Memory of the node, bytes."),
    ):
        yield Family(f"wattd_node_{key}", "gauge", text, unit, one(node.cpu_state.get(key)))


def _accounts(sources: Sources) -> Iterator[Family]:
    accounts = sources.ledger.accounts
    pairs = [
        (view, accounts[view.name])
        for view in sources.node.accounted()
        if view.name in accounts and accounts[view.name].counted_nano
    ]
    yield Family(
        "wattd_job_energy_joules_total",
        "counter",
        "Energy of a device while one job alone had it, joules.",
        "joules",
        [
            ("", (("job_id", job.job_id), *_account_labels(view)), joules(view, account.jobs[job.job_id]))
            for job in shown_jobs(sources)
            for view, account in pairs
            if job.job_id in account.jobs
        ],
    )
    yield Family(
        "wattd_idle_energy_joules_total",
        "counter",
        "Energy of a device while no job had it, joules.",
        "joules",
        [("", _account_labels(view), joules(view, account.idle)) for view, account in pairs],
    )
    yield Family(
        "wattd_unattributed_energy_joules_total",
        "counter",
        "Energy of a device while several jobs had it at once, joules.",
        "joules",
        [("", _account_labels(view), joules(view, account.unattributed)) for view, account in pairs],
    )


def _phase_energies(sources: Sources) -> list[Sample]:
    views = sources.node.by_name()
    shown = {job.job_id for job in shown_jobs(sources)}
    return [
        (
            "",
            (
                ("job_id", job_id),
                ("phase", phase),
                ("device", device),
                ("domain", views[device].domain),
                ("estimator", "overlap"),
            ),
            joules(views[device], microjoules),
        )
        for (job_id, phase, device), microjoules in sources.phases.microjoules.items()
        if job_id in shown and device in views
    ]


def _jobs(sources: Sources) -> Iterator[Family]:
    jobs = shown_jobs(sources)
    yield Family(
        "wattd_phase_energy_joules_total",
        "counter",
        "Energy of a device during a phase, joules, by overlap in time, without an error bar. Only phases of"
        f" {UPDATES_PER_PHASE} and more updates of the device on average; shorter ones are in (unresolved)."
        " Phases of several threads at once are each given the whole. `wattq phases` has the intervals.",
        "joules",
        _phase_energies(sources),
    )
    totals = [
        ((("job_id", job.job_id), ("phase", phase)), total)
        for job in jobs
        for phase, total in job.phases.items()
    ]
    yield Family(
        "wattd_phase_tokens_total",
        "counter",
        "Tokens that the phase said it processed, over all ranks. Absent where it said nothing.",
        "tokens",
        [("", labels, total.tokens) for labels, total in totals if total.tokens is not None],
    )
    yield Family(
        "wattd_phase_seconds_total",
        "counter",
        "Time in the phase, seconds, summed over ranks and threads.",
        "seconds",
        [("", labels, total.nanoseconds / 1e9) for labels, total in totals],
    )
    yield Family(
        "wattd_phase_instances_total",
        "counter",
        "Times the phase was run, over all ranks and threads.",
        "instances",
        [("", labels, total.instances) for labels, total in totals],
    )
    yield Family(
        "wattd_job_info",
        "gauge",
        "Jobs, to join on; always 1.",
        "",
        [
            (
                "",
                (
                    ("job_id", job.job_id),
                    ("user", job.user),
                    ("account", job.account),
                    ("partition", job.partition),
                ),
                1,
            )
            for job in jobs
        ],
    )
    yield Family(
        "wattd_runs_open",
        "gauge",
        "Runs that are open.",
        "",
        [("", (), len(list(sources.state.open_runs())))],
    )
