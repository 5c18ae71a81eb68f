"""What an archive holds of its runs: when they ran, their phases, and which ranks cut which device."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np

from wattq.counter import Ints
from wattq.segments import quoted
from wattq.sweep import Phases, Pieces, cut, union

# The share of phases of which the GPU's edges have to be known for them to count.
_MOST_KNOWN = 0.95
# How far an edge may be off to count: so much, or this share of the phase.
_EXACT_NANO, _MOST_ERROR = 50_000, 0.02


@dataclass(frozen=True)
class Chosen:
    """Which runs are asked for, and how; `None` means all.

    Attributes:
        job: Job id.
        run: Name or run_id of a run.
        estimator: How their energy is attributed: `auto`, `overlap` or `regression`.
    """

    job: str | None = None
    run: str | None = None
    estimator: str = "auto"

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
        phases: All its phases there, as the host saw them; the lane is a thread of a client.
        gpu_phases: The same with the edges at which the GPU reached them, where those are known of the run.
        gpu_note: What is to be said of them, or empty.
        ranks: Rank of each phase.
        tokens: Tokens of each phase; -1 when not told.
    """

    head: dict[str, Any]
    windows: list[tuple[int, int]]
    phases: Phases
    gpu_phases: Phases
    gpu_note: str
    ranks: Ints
    tokens: Ints


def _columns(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, "np.ndarray[Any, Any]"]:
    fetched = connection.execute(query).fetchnumpy()
    return {name: np.asarray(np.ma.getdata(column)) for name, column in fetched.items()}


def _windows(
    connection: duckdb.DuckDBPyConnection, where: str, views: tuple[Phases, ...], fallback: tuple[int, int]
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
    start = np.concatenate([limits[:, 0], *(phases.begin for phases in views)])
    stop = np.concatenate([limits.max(axis=1), *(phases.end for phases in views)])
    start, stop, _ = union(start, stop, np.zeros(len(start), dtype=np.int64))
    if not found or len(found) == 1:
        return [(int(start[0]), int(stop[-1]))]
    return list(zip(start.tolist(), stop.tolist(), strict=True))


def _marks(
    connection: duckdb.DuckDBPyConnection, where: str
) -> tuple[dict[str, "np.ndarray[Any, Any]"], tuple[str, ...]]:
    """Returns the phases of a run as columns, and their names: numbers, for a million texts take seconds."""
    connection.execute(f"""
        create or replace temp table loaded_phases as
        select begin_monotonic_nano as begin_nano, end_monotonic_nano as end_nano,
            coalesce("rank", 0) as "rank", coalesce(tokens, -1) as tokens, phase,
            coalesce(gpu_begin_monotonic_nano, -1) as gpu_begin_nano,
            coalesce(gpu_end_monotonic_nano, -1) as gpu_end_nano,
            coalesce(gpu_error_nano, 0) as gpu_error_nano,
            gpu_reason is not null as asked_gpu,
            client, coalesce(thread, 0) as thread
        from phases where {where}
    """)  # noqa: S608 quoted
    columns = _columns(
        connection,
        """
        with names as (
            select phase, row_number() over (order by phase) - 1 as "name"
            from (select distinct phase from loaded_phases)
        ), lanes as (
            select client, thread, row_number() over (order by client, thread) - 1 as lane
            from (select distinct client, thread from loaded_phases)
        )
        select loaded_phases.* exclude (phase, client, thread), names."name", lanes.lane
        from loaded_phases
        inner join names on loaded_phases.phase is not distinct from names.phase
        inner join lanes
            on loaded_phases.client is not distinct from lanes.client and loaded_phases.thread = lanes.thread
        """,
    )
    names = connection.execute("select distinct phase from loaded_phases order by phase").fetchall()
    connection.execute("drop table loaded_phases")
    return columns, tuple(str(name) for (name,) in names)


def load_run(connection: duckdb.DuckDBPyConnection, run: dict[str, Any]) -> NodeRun:
    """Loads a run's phases on one boot of a node.

    Args:
        connection: DuckDB with the views.
        run: A row of the view `run_spans`.
    """
    where = " and ".join(f"{key} = {quoted(run[key])}" for key in ("run_id", "node", "boot_id"))
    columns, names = _marks(connection, where)
    phases = Phases(
        columns["begin_nano"].astype(np.int64),
        columns["end_nano"].astype(np.int64),
        columns["name"].astype(np.int64),
        columns["lane"].astype(np.int64),
        names,
    )
    span = (run["begin_monotonic_nano"], max(run["end_monotonic_nano"], run["begin_monotonic_nano"]))
    head = {key: run[key] for key in ("run_id", "run", "restarts", "job")}
    gpu_phases, note = _on_gpu(phases, columns)
    views = (phases,) if gpu_phases is phases else (phases, gpu_phases)
    windows = _windows(connection, where, views, span)
    ranks, tokens = columns["rank"].astype(np.int64), columns["tokens"].astype(np.int64)
    return NodeRun(head, windows, phases, gpu_phases, note, ranks, tokens)


def _on_gpu(phases: Phases, columns: dict[str, "np.ndarray[Any, Any]"]) -> tuple[Phases, str]:
    """Returns the phases with the edges that the GPU reached, and what is to be said of them.

    Kernels run after the call that launches them has returned. Edges of both kinds side by side would overlap
    where nothing did, so the GPU's are taken only where nearly all phases have them.
    """
    begin, end = columns["gpu_begin_nano"].astype(np.int64), columns["gpu_end_nano"].astype(np.int64)
    # An edge that may lie anywhere in much of its phase is no edge.
    most = np.maximum(_EXACT_NANO, _MOST_ERROR * (end - begin))
    known = (begin >= 0) & (end >= begin) & (columns["gpu_error_nano"] <= most)
    share = float(known.mean()) if len(known) else 0.0
    if share < _MOST_KNOWN:
        asked = bool(known.any() or columns["asked_gpu"].any())
        return phases, "edges on the GPU are not known well enough: the host's were used" if asked else ""
    moved = replace(phases, begin=np.where(known, begin, phases.begin), end=np.where(known, end, phases.end))
    return moved, "" if share == 1 else f"edges on the GPU are known of {share:.1%} of the phases"


def sums(phases: Phases, tokens: Ints) -> tuple[dict[str, int], dict[str, int]]:
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


Cut = tuple[Phases, Pieces, tuple[Ints, Ints, Ints]]


class Cuts:
    """Cuts of one run, shared by the devices that the same ranks cut."""

    def __init__(self, run: NodeRun) -> None:
        self.run = run
        self._made: dict[tuple[frozenset[int], bool], Cut] = {}

    def of(self, ranks: frozenset[int], domain: str) -> Cut:
        """Returns the phases of the ranks, the pieces, and the merged whole intervals of each name.

        Args:
            ranks: The ranks whose phases cut a device.
            domain: Of the device: GPUs are cut where they reached the edges, the rest where the host did.
        """
        gpu = domain == "gpu" and self.run.gpu_phases is not self.run.phases
        if (ranks, gpu) not in self._made:
            every = self.run.gpu_phases if gpu else self.run.phases
            phases = every.pick(np.isin(self.run.ranks, list(ranks)))
            whole = union(phases.begin, phases.end, phases.name)
            self._made[ranks, gpu] = (phases, cut(phases, self.run.windows), whole)
        return self._made[ranks, gpu]

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


def gaps_of(connection: duckdb.DuckDBPyConnection, node: str, boot_id: str, device: str) -> Ints:
    """Returns the recorded gaps of a device, one row (begin, end) each, monotonic nanoseconds."""
    found = connection.execute(
        "select begin_monotonic_nano, end_monotonic_nano from gaps "
        "where node = ? and boot_id = ? and coalesce(device, ?) = ? order by 1",
        [node, boot_id, device, device],
    ).fetchall()
    return np.array(found, dtype=np.int64).reshape(-1, 2)


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
