"""`wattq report`: one HTML page that needs nothing but a browser."""

import datetime as dt
import math
from dataclasses import dataclass
from typing import Any

import jinja2

from wattq import numbers
from wattq.loading import Chosen
from wattq.pictures import RunPicture, picture_runs
from wattq.runner import Archive
from wattq.sweep import OUTSIDE, UNRESOLVED
from wattq.tables import sum_checks

# A page of more runs than this is read by nobody; the newest are shown and the rest is named.
MOST_RUNS = 12
# Domains that make up a run's total, in the order in which they are shown; see run_energy.sql.
COUNTED = ("module", "gpu", "package", "dram", "node")
# Colours of phases: told apart with any kind of colour vision, on white and on black.
TONES = 7


_ADDED = frozenset({"gpu", "package", "dram"})
"""Domains whose energies make a total."""


@dataclass(frozen=True)
class Bar:
    """Energy of a phase in a domain.

    Attributes:
        phase: Name of the row.
        joules: Energy, joules; `None` where there is no number.
        half: 95 % half-width, joules.
        share: Length of the bar, per cent.
        low: Lower end of the interval, per cent.
        high: Upper end of the interval, per cent.
        note: Why there is no number, for all devices or for some.
    """

    phase: str
    joules: float | None
    half: float | None
    share: float
    low: float
    high: float
    note: str


def _half(row: dict[str, Any]) -> float | None:
    return numbers.half(row["energy_low_joules"], row["energy_high_joules"], row["energy_joules"])


def _gather(rows: list[dict[str, Any]]) -> tuple[float | None, float | None, str]:
    """Adds up one phase over the devices of a domain: energy, half-width, and why some have no number."""
    known = [row for row in rows if row["energy_joules"] is not None]
    missing = [row["reason"] or "" for row in rows if row["energy_joules"] is None]
    if not known:
        return None, None, missing[0]
    # The errors of several devices have common causes, so they are added as they are.
    half = sum(_half(row) or 0.0 for row in known)
    note = (
        f"{len(known)} of {len(rows)} devices; the others are in (unresolved): {missing[0]}"
        if missing
        else ""
    )
    return sum(row["energy_joules"] for row in known), half, note


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Returns the bars of one domain, largest first, then those without a number, then `(...)` rows."""
    by_phase: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["duration_seconds"] or row["energy_joules"]:
            by_phase.setdefault(row["phase"], []).append(row)
    sums = {phase: _gather(ours) for phase, ours in by_phase.items()}
    longest = max(
        (joules + (half or 0.0) for joules, half, _ in sums.values() if joules is not None), default=0.0
    )

    def percent(joules: float) -> float:
        return round(min(max(100 * joules / longest, 0.0), 100.0), 2) if longest else 0.0

    made = []
    for phase, (joules, half, note) in sums.items():
        known = joules or 0.0
        reach = half or 0.0
        low, high = percent(known - reach), percent(known + reach)
        made.append(Bar(phase, joules, half, percent(known), low, high, note))
    beside = {UNRESOLVED: 1, OUTSIDE: 2}
    return sorted(made, key=lambda bar: (beside.get(bar.phase, 0), -(bar.joules or -1.0), bar.phase))


def _domains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {row["domain"] for row in rows}
    shown = [domain for domain in COUNTED if domain in found] + sorted(found - set(COUNTED))
    made = []
    for domain in shown:
        ours = [row for row in rows if row["domain"] == domain]
        devices = {(row["node"], row["device"]) for row in ours}
        made.append({"name": domain, "devices": len(devices), "bars": bars(ours), "sources": _sources(ours)})
    return made


def _sources(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["source"] for row in rows})


def _tones(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Gives each phase a colour, those with the most time first; the eighth and later share one."""
    seconds: dict[str, float] = {}
    for row in rows:
        if row["phase"] not in {OUTSIDE, UNRESOLVED}:
            seconds[row["phase"]] = max(seconds.get(row["phase"], 0.0), row["duration_seconds"])
    order = sorted(seconds, key=lambda phase: (-seconds[phase], phase))
    tones = {phase: f"tone-{place}" if place < TONES else "tone-more" for place, phase in enumerate(order)}
    return tones | {OUTSIDE: "tone-none", UNRESOLVED: "tone-none"}


def _when(time_unix_nano: int | None) -> str:
    if time_unix_nano is None:
        return "time not known"
    moment = dt.datetime.fromtimestamp(time_unix_nano // 1_000_000_000, dt.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _scaled(joules: float | None) -> str:
    """Returns an energy with a prefix that fits; `-` when it is not known."""
    if joules is None:
        return numbers.DASH
    for factor, unit in ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")):
        if joules >= 10 * factor:
            return f"{numbers.number(joules / factor)} {unit}"
    return f"{numbers.number(joules)} J"


def _total_half(rows: list[dict[str, Any]], devices: list[dict[str, Any]]) -> float | None:
    """Returns the 95 % half-width of a run's energy, joules; `None` where there is nothing to add.

    A device's counter over the run is known but for the run's two ends, whose uncertainty the row
    `(outside)` has. An estimate is worth what its model is: that part does not average out over rows.
    """
    ratios = {(place["node"], place["device"]): place["uncertainty_ratio"] or 0.0 for place in devices}
    totals = dict.fromkeys(ratios, 0.0)
    square = 0.0
    for row in rows:
        key = row["node"], row["device"]
        if row["domain"] not in _ADDED or key not in totals or row["energy_joules"] is None:
            continue
        totals[key] += row["energy_joules"]
        if row["phase"] == "(outside)":
            square += (row["energy_statistical_joules"] or 0.0) ** 2
    square += sum((ratios[key] * joules) ** 2 for key, joules in totals.items())
    return math.sqrt(square) or None


def _row_text(row: dict[str, Any]) -> dict[str, Any]:
    joules, seconds = row["energy_joules"], row["duration_seconds"]
    width = _half(row)
    watts = joules / seconds if joules is not None and seconds else None
    token, unit = numbers.per_token(row["energy_per_token_joules"])
    return row | {
        "count_text": numbers.whole(row["count"]),
        "seconds_text": numbers.plain(seconds),
        "energy_text": numbers.number(joules, width),
        "half_text": numbers.DASH if width is None else numbers.number(width, width),
        "watts_text": numbers.number(watts, width / seconds if width and seconds else None),
        "tokens_text": numbers.whole(row["tokens"]),
        "token_text": token if token == numbers.DASH else f"{token} {unit}",
        "inclusive_text": numbers.number(row["energy_inclusive_joules"], width),
        "coverage_text": numbers.share(row["coverage_ratio"]),
        "gap_text": numbers.plain(row["max_gap_seconds"]),
    }


def _run_section(archive: Archive, run: dict[str, Any], pictures: list[RunPicture]) -> dict[str, Any]:
    """Gathers all that the page says of one run."""
    run_id = run["run_id"]
    rows = archive.query("select * from phase_energy where run_id = ? order by rowid", [run_id]).records()
    places = archive.query("select * from runs where run_id = ? order by node, boot_id", [run_id]).records()
    nodes = sorted({place["node"] for place in places})
    gaps = archive.query(
        """
        select gaps.* from gaps inner join runs on gaps.node = runs.node and gaps.boot_id = runs.boot_id
        where runs.run_id = ? and gaps.end_monotonic_nano > runs.begin_monotonic_nano
            and gaps.begin_monotonic_nano < runs.end_monotonic_nano
        order by gaps.node, gaps.begin_monotonic_nano limit 50
        """,
        [run_id],
    ).records()
    devices = archive.query(
        """
        select distinct devices.* from devices
        inner join runs on devices.node = runs.node and devices.boot_id = runs.boot_id
        where runs.run_id = ? order by devices.node, devices.domain, devices.index
        """,
        [run_id],
    ).records()
    told = {(row["node"], row["device"]) for row in rows}
    token, unit = numbers.per_token(run["energy_per_token_joules"])
    seconds = run["duration_seconds"]
    half = _total_half(rows, devices)
    return run | {
        "half_text": numbers.number(half, half),
        "rows": [_row_text(row) for row in rows],
        "nodes": nodes,
        "when": _when(places[0]["begin_time_unix_nano"] if places else None),
        "open": any(place["open"] for place in places),
        "total_text": _scaled(run["energy_joules"]),
        "watt_hours_text": numbers.number(
            run["energy_joules"] / 3600 if run["energy_joules"] is not None else None
        ),
        "watts_text": numbers.number(
            run["energy_joules"] / seconds if run["energy_joules"] and seconds else None
        ),
        "seconds_text": numbers.plain(seconds),
        "tokens_text": numbers.whole(run["tokens"]),
        "token_text": token if token == numbers.DASH else f"{token} {unit}",
        "sources": _sources(rows),
        "domains": _domains(rows),
        "tones": _tones(rows),
        "pictures": [picture for picture in pictures if picture.run_id == run_id],
        "checks": sum_checks(rows, archive.counters),
        "gaps": gaps,
        "devices": [device for device in devices if (device["node"], device["device"]) in told],
        "evaluations": archive.query(
            "select * from evaluations where run_id = ? order by model, task, metric", [run_id]
        ).records(),
        "ept": archive.query("select * from ept where run_id = ? order by batch", [run_id]).records(),
    }


def write_report(archive: Archive, chosen: Chosen) -> str | None:
    """Makes the page.

    Args:
        archive: The archive.
        chosen: Which runs; the newest dozen of them are shown.

    Returns:
        HTML, or `None` when there is no run with a device that measured it.
    """
    runs = archive.query(
        f"""
        with begins as (
            select run_id, max(begin_time_unix_nano) as began, max(begin_monotonic_nano) as begun
            from runs group by run_id
        )
        select run_energy.* from run_energy inner join begins on run_energy.run_id = begins.run_id
        where {chosen.condition("run_energy.")}
        order by begins.began desc nulls last, begins.begun desc, run_energy.run_id
        """,  # noqa: S608 quoted by Chosen
        chosen=chosen,
    ).records()
    runs = [run for run in runs if any(key[0] == run["run_id"] for key in archive.counters)]
    if not runs:
        return None
    shown = runs[:MOST_RUNS]
    pictures = picture_runs(archive, [run["run_id"] for run in shown])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wattq", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": numbers.number, "plain": numbers.plain}
    return environment.get_template("report.html.j2").render(
        runs=[_run_section(archive, run, pictures) for run in shown],
        left_out=len(runs) - len(shown),
        warnings=archive.warnings(),
    )
