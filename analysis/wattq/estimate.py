"""From the archive to `phase_energy`: which phases cut which device of which run, and what each got."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np

from wattq import readings
from wattq.counter import Counter, Device, Ints, Readings, locate
from wattq.overlap import share
from wattq.rows import Account, rows
from wattq.segments import Segment, quoted
from wattq.sweep import Phases, Pieces, cut, union

_ASSUMED = "which GPUs the run used is not known: all were counted"


@dataclass(frozen=True)
class Chosen:
    """Which runs are asked for; `None` means all.

    Attributes:
        job: Job id.
        run: Name or run_id of a run.
    """

    job: str | None = None
    run: str | None = None

    def condition(self, prefix: str = "") -> str:
        """Returns the choice as an SQL condition over a view that has run_id, run and job.

        Args:
            prefix: Stands before each column, as in `runs.`.
        """
        parts = ["true"]
        if self.job is not None:
            parts.append(f"{prefix}job = {quoted(self.job)}")
        if self.run is not None:
            parts.append(f"({prefix}run = {quoted(self.run)} or {prefix}run_id = {quoted(self.run)})")
        return " and ".join(parts)


@dataclass(frozen=True)
class NodeRun:
    """What a run did on one boot of a node.

    Attributes:
        head: run_id, run, restarts, job.
        windows: When the run ran, disjoint and in order, monotonic nanoseconds.
        phases: All its phases there; the lane is a thread of a client.
        ranks: Rank of each phase.
        tokens: Tokens of each phase; -1 when not told.
    """

    head: dict[str, Any]
    windows: list[tuple[int, int]]
    phases: Phases
    ranks: Ints
    tokens: Ints


def _columns(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, "np.ndarray[Any, Any]"]:
    fetched = connection.execute(query).fetchnumpy()
    return {name: np.asarray(np.ma.getdata(column)) for name, column in fetched.items()}


def _windows(
    connection: duckdb.DuckDBPyConnection, where: str, phases: Phases, fallback: tuple[int, int]
) -> list[tuple[int, int]]:
    """Returns when a run ran: begin to end of each of its starts, and never less than its phases."""
    found = connection.execute(f"""
        with begins as (
            select client, coalesce(restarts, 0) as restarts, min(monotonic_nano) as begun from staged_events
            where type = 'run_begin' and {where} group by all
        ), starts as (
            -- One client may resume what it ended before: an end belongs to the start before it.
            select *, lead(begun) over (partition by client order by begun) as begun_again from begins
        ), ends as (
            select starts.client, starts.begun, max(monotonic_nano) as ended
            from starts inner join staged_events on starts.client = staged_events.client
            where type = 'run_end' and {where} and monotonic_nano >= begun
                and (begun_again is null or monotonic_nano <= begun_again)
            group by all
        )
        select min(begun), max(coalesce(ended, begun_again, {fallback[1]}))
        from starts left join ends using (client, begun)
        group by restarts
    """).fetchall()  # noqa: S608 quoted
    limits = np.array(found or [fallback], dtype=np.int64)
    start = np.concatenate([limits[:, 0], phases.begin])
    stop = np.concatenate([limits.max(axis=1), phases.end])
    start, stop, _ = union(start, stop, np.zeros(len(start), dtype=np.int64))
    if not found or len(found) == 1:
        return [(int(start[0]), int(stop[-1]))]
    return list(zip(start.tolist(), stop.tolist(), strict=True))


def load_run(connection: duckdb.DuckDBPyConnection, run: dict[str, Any]) -> NodeRun:
    """Loads a run's phases on one boot of a node.

    Args:
        connection: DuckDB with the views.
        run: A row of the view `run_spans`.
    """
    where = " and ".join(f"{key} = {quoted(run[key])}" for key in ("run_id", "node", "boot_id"))
    columns = _columns(
        connection,
        f"""
        select begin_monotonic_nano as begin_nano, end_monotonic_nano as end_nano,
            coalesce("rank", 0) as "rank",
            coalesce(tokens, -1) as tokens, phase,
            dense_rank() over (order by client, coalesce(thread, 0)) - 1 as lane
        from phases where {where}
        """,  # noqa: S608 quoted
    )
    names, numbers = np.unique(columns["phase"].astype(str), return_inverse=True)
    phases = Phases(
        columns["begin_nano"].astype(np.int64),
        columns["end_nano"].astype(np.int64),
        numbers.astype(np.int64).reshape(-1),
        columns["lane"].astype(np.int64),
        tuple(str(name) for name in names),
    )
    span = (run["begin_monotonic_nano"], max(run["end_monotonic_nano"], run["begin_monotonic_nano"]))
    head = {key: run[key] for key in ("run_id", "run", "restarts", "job")}
    windows = _windows(connection, where, phases, span)
    return NodeRun(
        head, windows, phases, columns["rank"].astype(np.int64), columns["tokens"].astype(np.int64)
    )


def _sums(phases: Phases, tokens: Ints) -> tuple[dict[str, int], dict[str, int]]:
    """Returns instances and tokens by phase name; a name without tokens is absent from the second."""
    kinds = len(phases.names)
    counts = np.bincount(phases.name, minlength=kinds)
    told = tokens >= 0
    known = np.bincount(phases.name[told], minlength=kinds)
    sums = np.zeros(kinds, dtype=np.int64)
    np.add.at(sums, phases.name[told], tokens[told])
    return (
        {name: int(counts[place]) for place, name in enumerate(phases.names) if counts[place]},
        {name: int(sums[place]) for place, name in enumerate(phases.names) if known[place]},
    )


class Cuts:
    """Cuts of one run, shared by the devices that the same ranks cut."""

    def __init__(self, run: NodeRun) -> None:
        self.run = run
        self._made: dict[frozenset[int], tuple[Phases, Pieces, tuple[Ints, Ints, Ints]]] = {}

    def of(self, ranks: frozenset[int]) -> tuple[Phases, Pieces, tuple[Ints, Ints, Ints]]:
        """Returns the phases of the ranks, the pieces, and the merged whole intervals of each name."""
        if ranks not in self._made:
            phases = self.run.phases.pick(np.isin(self.run.ranks, list(ranks)))
            whole = union(phases.begin, phases.end, phases.name)
            self._made[ranks] = (phases, cut(phases, self.run.windows), whole)
        return self._made[ranks]

    def tokens(self, ranks: frozenset[int] | None) -> Ints:
        """Returns the tokens of each phase, -1 where the rank does not count."""
        if ranks is None:
            return self.run.tokens
        return np.where(np.isin(self.run.ranks, list(ranks)), self.run.tokens, -1)


def claims(
    connection: duckdb.DuckDBPyConnection, run_id: str, node: str, boot_id: str
) -> dict[str, tuple[frozenset[int], bool]]:
    """Returns, by device, the ranks whose phases cut it and whether that is a guess."""
    found = connection.execute(
        'select device, "rank", assumed from staged_claims where run_id = ? and node = ? and boot_id = ?',
        [run_id, node, boot_id],
    ).fetchall()
    claimed: dict[str, tuple[frozenset[int], bool]] = {}
    for device, rank, assumed in found:
        ranks, guessed = claimed.get(device, (frozenset(), False))
        claimed[device] = (ranks | {int(rank)}, guessed or bool(assumed))
    return claimed


def _book(account: Account, cuts: Cuts, ranks: frozenset[int], counter: Counter, gaps: Ints) -> None:
    """Adds one boot of a run on a device to its account."""
    phases, pieces, (start, stop, name) = cuts.of(ranks)
    if not len(pieces.start):
        return  # a run without duration, as of a process that died at once
    account.add(pieces.rows, share(counter, account.device, pieces, gaps))
    ends = counter.at(np.array(cuts.run.windows, dtype=np.int64).ravel())
    account.counter_joules += float((ends[1::2] - ends[::2]).sum())
    counts, _ = _sums(phases, np.full(len(phases.begin), -1, dtype=np.int64))
    _, tokens = _sums(cuts.run.phases, cuts.tokens(ranks if account.device.domain == "gpu" else None))
    for phase, count in counts.items():
        account.counts[phase] = account.counts.get(phase, 0) + count
    for phase, amount in tokens.items():
        account.tokens[phase] = account.tokens.get(phase, 0) + amount
    joules = np.bincount(name, weights=counter.rise(start, stop), minlength=len(phases.names))
    for place in np.unique(name).tolist():
        phase = phases.names[place]
        account.inclusive[phase] = account.inclusive.get(phase, 0.0) + float(joules[place])


def gaps_of(connection: duckdb.DuckDBPyConnection, node: str, boot_id: str, device: str) -> Ints:
    """Returns the recorded gaps of a device, one row (begin, end) each, monotonic nanoseconds."""
    found = connection.execute(
        "select begin_monotonic_nano, end_monotonic_nano from gaps "
        "where node = ? and boot_id = ? and coalesce(device, ?) = ? order by 1",
        [node, boot_id, device, device],
    ).fetchall()
    return np.array(found, dtype=np.int64).reshape(-1, 2)


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


def boots(
    connection: duckdb.DuckDBPyConnection, chosen: Chosen
) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """Yields, boot by boot of a node, its runs as rows of the view `run_spans`."""
    query = connection.execute(
        f"""
        select run_id, run, restarts, job, node, boot_id, begin_monotonic_nano, end_monotonic_nano
        from run_spans
        where {chosen.condition()} order by node, boot_id, begin_monotonic_nano, run_id"""  # noqa: S608 quoted
    )
    names = [column[0] for column in query.description or []]
    boots: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in query.fetchall():
        run = dict(zip(names, row, strict=True))
        boots.setdefault((run["node"], run["boot_id"]), []).append(run)
    yield from boots.items()


@dataclass(frozen=True)
class Estimate:
    """What the estimator says.

    Attributes:
        rows: The rows of `phase_energy`.
        counters: The counter over the run by (run_id, node, device), joules; only where it is known.
        torn_lines: Lines of samples that could not be read.
    """

    rows: list[dict[str, Any]]
    counters: dict[tuple[str, str, str], float]
    torn_lines: int


def estimate(connection: duckdb.DuckDBPyConnection, segments: list[Segment], chosen: Chosen) -> Estimate:
    """Computes the rows of `phase_energy`.

    Args:
        connection: DuckDB with staging and the views that stand on it alone.
        segments: The archive's segments.
        chosen: Which runs.
    """
    accounts: dict[tuple[str, str, str], Account] = {}
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
                account = accounts.setdefault((run["run_id"], node, name), Account(device, cuts.run.head))
                account.note = _ASSUMED if assumed else account.note
                account.head["restarts"] = max(account.head["restarts"] or 0, run["restarts"] or 0)
                _book(account, cuts, ranks, counter, gaps[name])
    return Estimate(
        rows=[row for account in accounts.values() for row in rows(account)],
        counters={key: account.counter_joules for key, account in accounts.items() if account.known},
        torn_lines=torn,
    )
