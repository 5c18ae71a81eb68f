"""From the archive to `phase_energy`: which phases cut which device of which run, and what each got."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from wattq import readings
from wattq.choice import GOOD_ENOUGH, choose, worst
from wattq.clocks import Clock
from wattq.counter import Counter, Device, Ints, Readings, locate
from wattq.evidence import Series, power_series
from wattq.loading import Chosen, Cuts, boots, claims, gaps_of, load_run, sums
from wattq.overlap import Shares, share
from wattq.rows import Account, rows
from wattq.segments import Segment

if TYPE_CHECKING:
    from wattq.attribution import Attributed
    from wattq.calibrations import Measured

_ASSUMED = "which GPUs the run used is not known: all were counted"


def counters(
    connection: duckdb.DuckDBPyConnection, segments: Iterable[Segment], node: str, boot_id: str
) -> tuple[dict[str, tuple[Device, Counter]], int]:
    """Locates the counter edges of all devices of one boot of a node.

    Returns:
        Device and counter by the device's name, and how many lines could not be read.
    """
    chosen = [
        part for part in segments if part.kind == "samples" and (part.node, part.boot_id) == (node, boot_id)
    ]
    fetched = readings.fetch(connection, chosen)
    nothing = Readings(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    found = {}
    for device in readings.devices(connection, node, boot_id):
        name = device.device
        # Popped, so that raw readings and edges are never there together for all devices.
        raw = fetched.readings.pop(name, nothing)
        low, high = fetched.power_watts.get(name, (float("nan"), float("nan")))
        counter = locate(replace(raw, low_watts=low, high_watts=high), device.update_nano)
        limit = fetched.power_limit_watts.get(name, device.power_limit_watts)
        found[name] = (replace(device, power_limit_watts=limit), counter)
    return found, fetched.torn_lines


@dataclass
class _Part:
    """One boot of a run on a device, as both estimators want it."""

    cuts: Cuts
    ranks: frozenset[int]
    counter: Counter
    gaps: Ints
    place: tuple[str, str]
    shares: Shares


@dataclass
class _Books:
    """A device's parts of one run on one node."""

    device: Device
    head: dict[str, Any]
    note: str = ""
    parts: list[_Part] = field(default_factory=list)


@dataclass(frozen=True)
class Estimate:
    """What the estimator says.

    Attributes:
        rows: The rows of `phase_energy`.
        counters: The counter over the run by (run_id, node, device), joules; only where it is known.
        choices: Which estimator made the account of (run_id, node, device), and why.
        torn_lines: Lines of samples that could not be read.
    """

    rows: list[dict[str, Any]]
    counters: dict[tuple[str, str, str], float]
    choices: dict[tuple[str, str, str], str]
    torn_lines: int


def estimate(connection: duckdb.DuckDBPyConnection, segments: list[Segment], chosen: Chosen) -> Estimate:
    """Computes the rows of `phase_energy`.

    Args:
        connection: DuckDB with staging and the views that stand on it alone.
        segments: The archive's segments.
        chosen: Which runs, and by which estimator.
    """
    books, torn = _gather(connection, segments, chosen)
    overlaps = {key: _account(book) for key, book in books.items()}
    said = {key: rows(account) for key, account in overlaps.items()}
    choices = {key: _without(found, chosen.estimator) for key, found in said.items()}
    wanted = [key for key in books if not choices[key]]
    powers = _powers(connection, segments, {key: books[key] for key in wanted})
    responses = _measured(connection, segments, wanted)
    for key in wanted:
        again, choice = _second(books[key], powers, responses[key], said[key], chosen.estimator)
        choices[key] = choice
        if again is not None:
            said[key] = again
    return Estimate(
        rows=[row for found in said.values() for row in found],
        counters={key: account.counter_joules for key, account in overlaps.items() if account.known},
        choices=choices,
        torn_lines=torn,
    )


def _gather(
    connection: duckdb.DuckDBPyConnection, segments: list[Segment], chosen: Chosen
) -> tuple[dict[tuple[str, str, str], _Books], int]:
    """Returns the parts of each (run_id, node, device) by overlap, and how many lines are torn."""
    books: dict[tuple[str, str, str], _Books] = {}
    torn = 0
    for (node, boot_id), runs in boots(connection, chosen):
        found, unreadable = counters(connection, segments, node, boot_id)
        torn += unreadable
        gaps = {name: gaps_of(connection, node, boot_id, name) for name in found}
        for run in runs:
            cuts = Cuts(load_run(connection, run))
            claimed = claims(connection, run["run_id"], node, boot_id)
            for name, (device, counter) in found.items():
                if name not in claimed:
                    continue
                ranks, assumed = claimed[name]
                book = books.setdefault((run["run_id"], node, name), _Books(device, cuts.run.head))
                on_gpu = cuts.run.gpu_note if device.domain == "gpu" else ""
                book.note = "; ".join(filter(None, (_ASSUMED if assumed else "", on_gpu))) or book.note
                book.head["restarts"] = max(book.head["restarts"] or 0, run["restarts"] or 0)
                pieces = cuts.of(ranks, device.domain)[1]
                if not len(pieces.start):
                    continue  # a run without duration, as of a process that died at once
                shares = share(counter, device, pieces, gaps[name])
                book.parts.append(_Part(cuts, ranks, counter, gaps[name], (node, boot_id), shares))
    return books, torn


def _account(book: _Books, attributed: "Sequence[Attributed] | None" = None) -> Account:
    """Makes the account of a device over a run, by overlap unless the regression's answers are given."""
    account = Account(book.device, book.head, note=book.note)
    if attributed is not None:
        account.estimator = "regression"
    for place, part in enumerate(book.parts):
        phases, pieces, (start, stop, name) = part.cuts.of(part.ranks, book.device.domain)
        account.add(pieces.rows, part.shares if attributed is None else attributed[place].shares)
        ends = part.counter.at(np.array(part.cuts.run.windows, dtype=np.int64).ravel())
        account.counter_joules += float((ends[1::2] - ends[::2]).sum())
        counts, _ = sums(phases, np.full(len(phases.begin), -1, dtype=np.int64))
        _, tokens = sums(
            part.cuts.run.phases, part.cuts.tokens(part.ranks if book.device.domain == "gpu" else None)
        )
        joules = np.bincount(name, weights=part.counter.rise(start, stop), minlength=len(phases.names))
        inclusive = {phases.names[number]: float(joules[number]) for number in np.unique(name).tolist()}
        if attributed is not None:
            inclusive |= attributed[place].inclusive
            account.reasons |= attributed[place].reasons
        for mine, theirs in (
            (account.counts, counts),
            (account.tokens, tokens),
            (account.inclusive, inclusive),
        ):
            _add(mine, theirs)
    return account


def _add(sums_so_far: dict[str, Any], more: dict[str, Any]) -> None:
    for name, amount in more.items():
        sums_so_far[name] = sums_so_far.get(name, 0) + amount


def _without(found: list[dict[str, Any]], estimator: str) -> str:
    """Returns why the regression need not look at an account, or an empty text."""
    if estimator == "overlap":
        return "overlap, as asked"
    if estimator == "regression":
        return ""
    if any(row["source"] == "estimated" for row in found):
        return "overlap: what is estimated is no better known by a second estimate"
    return f"overlap: every phase is known to {GOOD_ENOUGH:.0%}" if worst(found) <= GOOD_ENOUGH else ""


def _powers(
    connection: duckdb.DuckDBPyConnection,
    segments: Iterable[Segment],
    books: dict[tuple[str, str, str], _Books],
) -> dict[tuple[str, str, str], tuple[Series, Clock]]:
    """Returns the power readings and clocks of the devices by (node, boot_id, device)."""
    asked: dict[tuple[str, str], set[str]] = {}
    for book in books.values():
        for part in book.parts:
            asked.setdefault(part.place, set()).add(book.device.device)
    found: dict[tuple[str, str, str], tuple[Series, Clock]] = {}
    for (node, boot_id), names in asked.items():
        chosen = [
            part
            for part in segments
            if part.kind == "samples" and (part.node, part.boot_id) == (node, boot_id)
        ]
        shown = readings.fetch(connection, chosen, powers=names)
        for name, one in shown.evidence.items():
            found[node, boot_id, name] = (power_series(one), shown.clocks[name])
    return found


def _measured(
    connection: duckdb.DuckDBPyConnection, segments: list[Segment], wanted: Sequence[tuple[str, str, str]]
) -> "dict[tuple[str, str, str], Measured | None]":
    """Returns what calibrations say of the devices of some accounts."""
    if not wanted:
        return {}
    from wattq.calibrations import measured_of, measured_responses  # noqa: PLC0415 scipy where it is needed

    responses = measured_responses(connection, segments)
    return {key: measured_of(responses, key[1], key[2]) for key in wanted}


def _second(
    book: _Books,
    powers: dict[tuple[str, str, str], tuple[Series, Clock]],
    measured: "Measured | None",
    overlap: list[dict[str, Any]],
    estimator: str,
) -> tuple[list[dict[str, Any]] | None, str]:
    """Returns the rows by regression where they are wanted or better, and what was chosen and why."""
    from wattq.attribution import NotApplicableError, attribute  # noqa: PLC0415 scipy where it is needed

    try:
        attributed = [
            attribute(
                part.counter,
                *powers[(*part.place, book.device.device)],
                book.device,
                cut=part.cuts.of(part.ranks, book.device.domain),
                gaps=part.gaps,
                overlap=part.shares,
                measured=measured.fit if measured else None,
            )
            for part in book.parts
        ]
    except NotApplicableError as error:
        if estimator == "auto":
            return None, f"overlap: {error}"
        return _refused(book, str(error)), f"regression, as asked: {error}"
    account = _account(book, attributed)
    account.response = _response(attributed, measured)
    found = rows(account)
    if estimator == "regression":
        return found, f"regression, as asked; {account.response}"
    if not choose(overlap, found):
        return None, "overlap: the regression gives no more numbers and no narrower ones"
    period = f"{account.period_seconds * 1000:.3g} ms"
    return (
        found,
        f"regression: phases are too short for overlap against updates of {period}; {account.response}",
    )


def _response(attributed: "Sequence[Attributed]", measured: "Measured | None") -> str:
    """Returns where the response is from."""
    if measured is None:
        return "response fitted from the run"
    if any(part.fitted_from_run for part in attributed):
        return f"response fitted from the run, which contradicts that measured {measured.when}"
    return f"response measured {measured.when}"


def _refused(book: _Books, reason: str) -> list[dict[str, Any]]:
    """Returns the rows of an account in which no phase has a number."""
    account = _account(book)
    account.estimator = "regression"
    account.reasons = dict.fromkeys(account.tallies, reason)
    return rows(account)
