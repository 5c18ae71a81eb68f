"""From requests of clients to lines of kind=events: checked, numbered once, and applied to the state."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from wattd.checks import RefusedError, checked_count, checked_gpu_edges, checked_gpus, is_name, shown
from wattd.jobs import State, lost_client_lines
from wattd.runs import Client, Run
from wattd.v1 import marks_pb2

_FUTURE_NANO = 1_000_000_000
_ANY_NANO = 1 << 63
_MOST_NUMBER = 1 << 53
_MOST_THREADS = 1 << 16
_MOST_OPEN_PHASES = 1024
_MOST_OPEN_RUNS = 1024
_MOST_RANKS = 1 << 20

_PHASE_END = marks_pb2.PHASE_MARK_KIND_END
_SEQUENCE = attrgetter("sequence")


@dataclass(slots=True)
class Taken:
    """What became of a request.

    Attributes:
        lines: To be appended to the archive; they are applied to the state already.
        refused: Marks that were refused.
        refusal: Why the first of them was.
        dropped: Marks that the client says it had to drop, and had not said before.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    refusal: str = ""
    dropped: int = 0

    def refuse(self, reason: str) -> None:
        """Count a refused mark."""
        self.refused += 1
        self.refusal = self.refusal or reason


class Intake:
    """Takes requests of clients into the state."""

    def __init__(self, state: State, boot_id: str, user: str) -> None:
        """Make the intake.

        Args:
            state: What it changes.
            boot_id: Boot id of this machine.
            user: Owner of the socket: the user of local jobs.
        """
        self.state = state
        self._boot_id = boot_id
        self._user = user
        self._connected: set[str] = set()

    def connected(self, client_id: str, *, here: bool) -> None:
        """Say whether a client has a stream."""
        (self._connected.add if here else self._connected.discard)(client_id)

    def take(self, request: marks_pb2.SendMarksRequest, now_nano: int) -> Taken:
        """Take a request of a checked sender; marks that were taken before are passed over."""
        taken = Taken()
        client_id = request.client_id
        client = self.state.client(client_id)
        foreign = {} if request.boot_id == self._boot_id else {"boot_id": request.boot_id}
        latest_nano = _ANY_NANO if foreign else now_nano + _FUTURE_NANO
        known = client.sequence
        for mark in _in_order(request):
            if mark.sequence <= client.sequence:
                if not mark.sequence:
                    taken.refuse("a mark's sequence begins at 1")
                continue
            if mark.sequence > _MOST_NUMBER:
                taken.refuse("a mark's sequence is too large")
                continue
            try:
                if isinstance(mark, marks_pb2.PhaseMark):
                    line = self._phase(client_id, client, mark, latest_nano)
                else:
                    line = self._run(request, client, mark, latest_nano, taken)
            except RefusedError as refusal:
                taken.refuse(str(refusal))
                client.sequence = mark.sequence
                continue
            if foreign:
                line.update(foreign)
            taken.lines.append(line)
            self.state.apply(line)
        # A request that is sent again, for want of an answer, tells of the same loss again.
        is_new = client.sequence > known or not (request.runs or request.phases)
        if request.dropped_marks and is_new:
            taken.dropped = request.dropped_marks
            line = {"type": "dropped", "client": client_id, "monotonic_nano": now_nano}
            taken.lines.append({**line, "marks": min(request.dropped_marks, _MOST_NUMBER)})
        return taken

    def _phase(
        self, client_id: str, client: Client, mark: marks_pb2.PhaseMark, latest_nano: int
    ) -> dict[str, Any]:
        # The hot path; see bench/ingest.py.
        run_id, name, begin = mark.run_id, mark.name, mark.begin_monotonic_nano
        if client.renamed:
            run_id = client.renamed.get(run_id, run_id)
        rank = client.ranks.get(run_id)
        if rank is None:
            raise RefusedError(f"phase of a run that this client has not begun: {shown(run_id)}")
        if not is_name(name):
            raise RefusedError(f"phase name {shown(name)}: 1 to 64 of A-Z a-z 0-9 _ . : -")
        if mark.thread > _MOST_THREADS or mark.phase_number > _MOST_NUMBER:
            raise RefusedError(f"phase {name}: its thread or number is too large")
        line = {
            "type": "phase",
            "client": client_id,
            "mark": mark.sequence,
            "run_id": run_id,
            "rank": rank,
            "phase_number": mark.phase_number,
            "phase": name,
            "thread": mark.thread,
            "begin_monotonic_nano": begin,
        }
        if mark.kind != _PHASE_END:
            return self._phase_begin(client, mark, line, latest_nano)
        line["end_monotonic_nano"] = end = mark.end_monotonic_nano
        if not 0 < begin <= end <= latest_nano:
            raise RefusedError(f"phase {name}: its times are not in order, or in the future")
        if mark.HasField("tokens"):
            line["tokens"] = checked_count(mark.tokens, "tokens")
        if mark.failed:
            line["failed"] = True
        if mark.gpu_error_nano or mark.gpu_reason:
            line.update(checked_gpu_edges(mark, latest_nano))
        return line

    @staticmethod
    def _phase_begin(
        client: Client, mark: marks_pb2.PhaseMark, line: dict[str, Any], latest_nano: int
    ) -> dict[str, Any]:
        if mark.kind != marks_pb2.PHASE_MARK_KIND_BEGIN:
            raise RefusedError("a phase mark of no kind")
        if not 0 < mark.begin_monotonic_nano <= latest_nano:
            raise RefusedError(f"phase {mark.name}: it begins in the future")
        if len(client.phases) >= _MOST_OPEN_PHASES:
            raise RefusedError(f"more than {_MOST_OPEN_PHASES} phases of one client are open")
        line["type"] = "phase_begin"
        return line

    def _run(
        self,
        request: marks_pb2.SendMarksRequest,
        client: Client,
        mark: marks_pb2.RunMark,
        latest_nano: int,
        taken: Taken,
    ) -> dict[str, Any]:
        if not 0 < mark.monotonic_nano <= latest_nano:
            raise RefusedError(f"run {shown(mark.run_id)}: its time is in the future")
        if mark.kind == marks_pb2.RUN_MARK_KIND_BEGIN:
            return self._run_begin(request, mark, taken)
        if mark.kind == marks_pb2.RUN_MARK_KIND_JOIN:
            return self._run_join(request, mark)
        run_id = client.renamed.get(mark.run_id, mark.run_id)
        rank = client.ranks.get(run_id)
        run = self.state.runs.get(run_id)
        if rank is None or run is None:
            raise RefusedError(f"end of a run that this client has not begun: {shown(mark.run_id)}")
        line: dict[str, Any] = {
            "type": "run_end",
            "client": request.client_id,
            "mark": mark.sequence,
            "monotonic_nano": mark.monotonic_nano,
            "run_id": run_id,
            "rank": rank,
        }
        if mark.kind == marks_pb2.RUN_MARK_KIND_UPDATE:
            return {**line, "type": "run_update", **checked_gpus(mark)}
        if mark.kind != marks_pb2.RUN_MARK_KIND_END:
            raise RefusedError("a run mark of no kind")
        if rank not in run.ranks:
            raise RefusedError(f"end of rank {rank} of run {run_id}, which has not begun here")
        if mark.monotonic_nano < run.ranks[rank].begin_nano:
            raise RefusedError(f"run {run_id}: it ends before it began")
        if run.ranks[rank].client != request.client_id:
            raise RefusedError(f"run {run_id}: another process has taken over rank {rank}")
        return line

    def _run_begin(
        self, request: marks_pb2.SendMarksRequest, mark: marks_pb2.RunMark, taken: Taken
    ) -> dict[str, Any]:
        for name, text, may_be_empty in (
            ("run_id", mark.run_id, False),
            ("run name", mark.name, False),
            ("method", mark.method, True),
            ("tokens_phase", mark.tokens_phase, True),
        ):
            if not (is_name(text) or (may_be_empty and not text)):
                raise RefusedError(f"{name} {shown(text)}: 1 to 64 of A-Z a-z 0-9 _ . : -")
        if not (mark.rank < max(1, mark.world_size) <= _MOST_RANKS and mark.local_rank <= mark.rank):
            raise RefusedError(f"run {mark.run_id}: rank, local_rank and world_size do not fit together")
        if sum(1 for _ in self.state.open_runs()) >= _MOST_OPEN_RUNS:
            raise RefusedError(f"more than {_MOST_OPEN_RUNS} runs are open")
        run_id, restarts = self._identify(mark, taken)
        job_id = f"local-{run_id[:8]}"
        run = self.state.runs.get(run_id)
        line: dict[str, Any] = {
            "type": "run_begin",
            "client": request.client_id,
            "mark": mark.sequence,
            "monotonic_nano": mark.monotonic_nano,
            "run_id": run_id,
            "run": mark.name,
            "rank": mark.rank,
            "local_rank": mark.local_rank,
            "world_size": max(1, mark.world_size),
            **checked_gpus(mark),
            "resume": mark.resume,
            "synchronised": mark.synchronised,
            "pid": request.pid,
            "job_id": run.job_id if run else job_id,
            "user": self._user,
            "account": "none",
            "partition": "none",
            "restarts": restarts,
        }
        for key in ("method", "tokens_phase"):
            if getattr(mark, key):
                line[key] = getattr(mark, key)
        if mark.HasField("seed"):
            line["seed"] = mark.seed
        if run_id != mark.run_id:
            line["proposed_run_id"] = mark.run_id
        return line

    @staticmethod
    def _run_join(request: marks_pb2.SendMarksRequest, mark: marks_pb2.RunMark) -> dict[str, Any]:
        """A forked worker marks phases of its parent's run, whose begin may arrive later than this."""
        if not is_name(mark.run_id):
            raise RefusedError(f"run_id {shown(mark.run_id)}: 1 to 64 of A-Z a-z 0-9 _ . : -")
        if mark.rank >= _MOST_RANKS:
            raise RefusedError(f"run {mark.run_id}: there is no such rank")
        return {
            "type": "run_join",
            "client": request.client_id,
            "mark": mark.sequence,
            "monotonic_nano": mark.monotonic_nano,
            "run_id": mark.run_id,
            "rank": mark.rank,
            "pid": request.pid,
        }

    def _identify(self, mark: marks_pb2.RunMark, taken: Taken) -> tuple[str, int]:
        """The id a run gets, and how often its rank has begun again.

        A rank that has not been in the run joins it. One that has goes on only with `resume`; else
        the run is another one. Its id is made of the proposed one, so that all ranks of the new
        run, on whichever node, get the same.
        """
        run = self.state.runs.get(mark.run_id)
        if run is None or mark.rank not in run.ranks:
            return mark.run_id, 0
        if mark.resume and not self._lives(run, mark.rank):
            self._close_before_restart(run, mark, taken)
            return mark.run_id, run.ranks[mark.rank].restarts + 1
        generation = 1
        while True:
            given = hashlib.sha256(f"{mark.run_id}:{generation}".encode()).hexdigest()[:32]
            other = self.state.runs.get(given)
            if other is None or mark.rank not in other.ranks:
                return given, 0
            generation += 1

    def _lives(self, run: Run, rank: int) -> bool:
        """The rank is open and its client is connected."""
        return run.ranks[rank].end_nano is None and run.ranks[rank].client in self._connected

    def _close_before_restart(self, run: Run, mark: marks_pb2.RunMark, taken: Taken) -> None:
        """What a crashed client left open ends, at the latest, when its run goes on elsewhere."""
        rank = run.ranks[mark.rank]
        if rank.end_nano is not None:
            return
        last_nano = self.state.client(rank.client).nano
        for line in lost_client_lines(self.state, rank.client, last_nano):
            taken.lines.append(line)
            self.state.apply(line)

    def close_lost(self, client_id: str, ended_nano: int) -> list[dict[str, Any]]:
        """Close what a client left open; returns the lines, applied already."""
        lines = lost_client_lines(self.state, client_id, ended_nano)
        for line in lines:
            self.state.apply(line)
        return lines


def _in_order(
    request: marks_pb2.SendMarksRequest,
) -> Iterable[marks_pb2.PhaseMark | marks_pb2.RunMark]:
    """The marks of a request in the order of their sequence numbers."""
    if not request.runs:
        return sorted(request.phases, key=_SEQUENCE)
    return sorted([*request.runs, *request.phases], key=_SEQUENCE)
