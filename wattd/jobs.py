"""The state of runs, phases and clients: what the lines of kind=events say, line after line.

`State.apply` is the only thing that changes it. A live daemon applies each line as it appends it to
the archive; a daemon that starts applies the lines it finds. So both know the same.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import orjson

from wattd.runs import Client, Job, OpenPhase, PhaseTotal, Rank, Run

_MOST_CLIENTS = 4096
_MOST_RUNS_A_CLIENT = 64
_MOST_ENDED_RUNS = 1024
_MOST_ENDED_JOBS = 64
_MOST_SUM = 2**62
"""Sums stop here: a checkpoint holds whole numbers of 64 bits, and must always be writable."""

_MOST_REQUESTS = 1024
_MOST_SAMPLER_EVENTS = 256


class State:
    """Everything the daemon knows from events.

    Attributes:
        clients: By client id, the oldest first.
        runs: By run_id, the oldest first; ended ones too, as far as they are remembered.
        jobs: By job_id, likewise.
        requests: Results written, by request_id.
    """

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.runs: dict[str, Run] = {}
        self.jobs: dict[str, Job] = {}
        self.requests: dict[str, int] = {}
        self._sampler_events: dict[str, None] = {}

    def apply(self, line: Mapping[str, Any]) -> None:
        """Take a line of kind=events; a type it does not know changes nothing."""
        change = self._CHANGES.get(line["type"])
        if change is not None:
            change(self, line)

    def client(self, client_id: str) -> Client:
        """The client of an id, made if it is new."""
        found = self.clients.get(client_id)
        if found is None:
            found = self.clients[client_id] = Client()
            _forget_oldest(self.clients, _MOST_CLIENTS, lambda client: not _has_open(self, client))
        return found

    def open_runs(self) -> Iterator[Run]:
        """Runs of this boot that have an open rank, oldest first."""
        return (run for run in self.runs.values() if not run.boot_id and run.is_open)

    def clients_with_open(self) -> list[str]:
        """Clients of this boot that have an open phase or run."""
        return [
            name for name, client in self.clients.items() if not client.boot_id and _has_open(self, client)
        ]

    def open_phases(self, run_id: str) -> list[str]:
        """Names of a run's open phases, outermost first."""
        phases = [
            phase
            for client in self.clients.values()
            for phase in client.phases.values()
            if phase.run_id == run_id
        ]
        return [phase.phase for phase in sorted(phases, key=lambda phase: phase.begin_nano)]

    def is_known(self, line: Mapping[str, Any]) -> bool:
        """A sampler's event was already applied: the ring holds it still after a restart."""
        return _event_key(line) in self._sampler_events

    def _note(self, line: Mapping[str, Any]) -> Client | None:
        """Remember a mark's sequence and time; None for lines that no client sent."""
        client = self.client(line["client"]) if "client" in line else None
        if client is not None and "mark" in line:
            client.sequence = max(client.sequence, line["mark"])
            nano = (
                line.get("end_monotonic_nano") or line.get("monotonic_nano") or line["begin_monotonic_nano"]
            )
            client.nano = max(client.nano, nano)
            client.boot_id = line.get("boot_id", "")
        return client

    def _run_begin(self, line: Mapping[str, Any]) -> None:
        client = self._note(line)
        run_id, rank, nano = line["run_id"], line["rank"], line["monotonic_nano"]
        if client is not None:
            if len(client.ranks) >= _MOST_RUNS_A_CLIENT:
                client.ranks = {known: number for known, number in client.ranks.items() if known in self.runs}
            client.ranks[run_id] = rank
            client.renamed.pop(run_id, None)
            if "proposed_run_id" in line:
                client.renamed[line["proposed_run_id"]] = run_id
        run = self.runs.get(run_id)
        if run is None:
            run = Run(run_id, line["run"], line["job_id"], line.get("tokens_phase", ""), nano)
            run.boot_id = line.get("boot_id", "")
            self.runs[run_id] = run
            _forget_oldest(self.runs, _MOST_ENDED_RUNS, lambda known: not known.is_open)
        run.ranks[rank] = Rank(
            line.get("client", ""),
            line.get("local_rank", 0),
            line.get("gpu_uuids", []),
            nano,
            restarts=line.get("restarts", 0),
        )
        job = self.jobs.get(run.job_id)
        if job is None:
            job = Job(run.job_id, line["user"], line["account"], line["partition"])
            self.jobs[run.job_id] = job
            _forget_oldest(self.jobs, _MOST_ENDED_JOBS, lambda known: known.end_nano is not None)
        if run.boot_id:
            job.end_nano = job.end_nano or nano
        else:
            job.end_nano = None

    def _run_join(self, line: Mapping[str, Any]) -> None:
        client = self._note(line)
        if client is not None:
            client.ranks[line["run_id"]] = line["rank"]

    def _run_update(self, line: Mapping[str, Any]) -> None:
        self._note(line)
        run = self.runs.get(line["run_id"])
        if run is not None and line["rank"] in run.ranks:
            run.ranks[line["rank"]].gpu_uuids = line.get("gpu_uuids", [])

    def _run_end(self, line: Mapping[str, Any]) -> None:
        self._note(line)
        run = self.runs.get(line["run_id"])
        if run is None or line["rank"] not in run.ranks:
            return
        run.ranks[line["rank"]].end_nano = line["monotonic_nano"]
        job = self.jobs.get(run.job_id)
        still_open = any(other.is_open for other in self.runs.values() if other.job_id == run.job_id)
        if job is not None and not still_open:
            job.end_nano = max(rank.end_nano or 0 for rank in run.ranks.values())

    def _phase_begin(self, line: Mapping[str, Any]) -> None:
        client = self._note(line)
        if client is not None:
            client.phases[line["phase_number"]] = OpenPhase(
                line["run_id"], line["rank"], line["phase"], line["thread"], line["begin_monotonic_nano"]
            )

    def _phase(self, line: Mapping[str, Any]) -> None:
        # The hot path: a hundred thousand a second pass here.
        client = self.clients.get(line["client"]) or self.client(line["client"])
        end = line["end_monotonic_nano"]
        mark = line.get("mark")
        if mark is not None and mark > client.sequence:
            client.sequence = mark
        client.nano = max(client.nano, end)
        number = line["phase_number"]
        if client.phases:
            client.phases.pop(number, None)
        run = self.runs.get(line["run_id"])
        job = self.jobs.get(run.job_id) if run else None
        if job is None:
            return
        total = job.phases.get(line["phase"]) or job.total(line["phase"])
        if "tokens" in line:
            total.tokens = min((total.tokens or 0) + line["tokens"], _MOST_SUM)
        if number in client.closed:
            return  # its time was counted when the daemon closed it
        total.instances += 1
        total.nanoseconds = min(total.nanoseconds + end - line["begin_monotonic_nano"], _MOST_SUM)
        if "closed_by" in line:
            client.closed.append(number)

    def _result(self, line: Mapping[str, Any]) -> None:
        request = line["request_id"]
        self.requests[request] = self.requests.get(request, 0) + 1
        _forget_oldest(self.requests, _MOST_REQUESTS, lambda _count: True)

    def _sampler_event(self, line: Mapping[str, Any]) -> None:
        self._sampler_events[_event_key(line)] = None
        _forget_oldest(self._sampler_events, _MOST_SAMPLER_EVENTS, lambda _: True)

    _CHANGES: ClassVar[Mapping[str, Callable[["State", Mapping[str, Any]], None]]] = MappingProxyType(
        {
            "run_begin": _run_begin,
            "run_join": _run_join,
            "run_update": _run_update,
            "run_end": _run_end,
            "phase_begin": _phase_begin,
            "phase": _phase,
            "evaluation": _result,
            "ept": _result,
            "gap": _sampler_event,
            "sensor": _sampler_event,
        }
    )

    def checkpoint(self) -> bytes:
        """The state as JSON."""
        saved = {
            "clients": self.clients,
            "runs": list(self.runs.values()),
            "jobs": list(self.jobs.values()),
            "requests": self.requests,
            "sampler_events": list(self._sampler_events),
        }
        return orjson.dumps(saved, option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def restore(cls, saved: Mapping[str, Any]) -> "State":
        """The state from a parsed checkpoint."""
        state = cls()
        for name, client in saved.get("clients", {}).items():
            phases = {int(number): OpenPhase(**phase) for number, phase in client["phases"].items()}
            state.clients[name] = Client(**{**client, "phases": phases})
        for run in saved.get("runs", ()):
            ranks = {int(number): Rank(**rank) for number, rank in run["ranks"].items()}
            state.runs[run["run_id"]] = Run(**{**run, "ranks": ranks})
        for job in saved.get("jobs", ()):
            totals = {name: PhaseTotal(**total) for name, total in job["phases"].items()}
            state.jobs[job["job_id"]] = Job(**{**job, "phases": totals})
        state.requests = dict(saved.get("requests", {}))
        state._sampler_events = dict.fromkeys(saved.get("sampler_events", ()))
        return state

    def of_earlier_boot(self) -> "State":
        """What is still true after a boot: how far each client's marks are written, its runs, and results."""
        state = State()
        for name, client in self.clients.items():
            # The rest of such a client's marks may still lie in a spool: they name runs begun before.
            state.clients[name] = Client(sequence=client.sequence, renamed=client.renamed, ranks=client.ranks)
        state.requests = self.requests
        return state


def recover(lines: Iterator[dict[str, Any]], *, same_boot: bool) -> State:
    """The state at the end of an events segment, from its checkpoint and its lines."""
    state = State()
    for line in lines:
        if line.get("type") == "segment":
            state = State.restore(line.get("state", {}))
        else:
            state.apply(line)
    return state if same_boot else state.of_earlier_boot()


def lost_client_lines(state: State, client_id: str, ended_nano: int) -> list[dict[str, Any]]:
    """The lines that close what a client left open when it went away.

    Args:
        state: The state; the lines are not applied to it yet.
        client_id: Who went away.
        ended_nano: When its stream ended.
    """
    client = state.clients.get(client_id)
    if client is None:
        return []
    # Marks of another boot have another clock: all that is known is the last of them.
    end = client.nano if client.boot_id else max(ended_nano, client.nano)
    tail = {"closed_by": "lost_client", **({"boot_id": client.boot_id} if client.boot_id else {})}
    lines: list[dict[str, Any]] = [
        {
            "type": "phase",
            "client": client_id,
            "run_id": phase.run_id,
            "rank": phase.rank,
            "phase_number": number,
            "phase": phase.phase,
            "thread": phase.thread,
            "begin_monotonic_nano": phase.begin_nano,
            "end_monotonic_nano": max(end, phase.begin_nano),
            **tail,
        }
        for number, phase in client.phases.items()
    ]
    for run_id, rank in client.ranks.items():
        run = state.runs.get(run_id)
        began = run.ranks.get(rank) if run else None
        if began is not None and began.client == client_id and began.end_nano is None:
            line = {"type": "run_end", "client": client_id, "monotonic_nano": end, "run_id": run_id}
            lines.append({**line, "rank": rank, **tail})
    return lines


def _has_open(state: State, client: Client) -> bool:
    if client.phases:
        return True
    runs = (state.runs.get(run_id) for run_id in client.ranks)
    return any(run is not None and run.is_open for run in runs)


def _forget_oldest(known: dict[str, Any], most: int, may_go: Callable[[Any], bool]) -> None:
    """Keep a table within its bound: the oldest entry that may go makes room."""
    if len(known) > most:
        oldest = next((name for name, entry in known.items() if may_go(entry)), None)
        if oldest is not None:
            del known[oldest]


def _event_key(line: Mapping[str, Any]) -> str:
    nano = line.get("end_monotonic_nano") or line.get("monotonic_nano")
    return f"{line['type']}:{nano}:{line.get('device') or line.get('sensor')}:{line.get('reason')}"
