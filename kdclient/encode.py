"""From the queue to requests: phases that have ended, phases that are still open, runs, results."""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from kdclient import identity
from kdclient.phases import Phase, Run
from wattd.v1 import marks_pb2

if TYPE_CHECKING:
    from kdclient.client import Client

MOST_MARKS_A_REQUEST = 2000
_MARKS_A_BREATH = 250
"""Marks encoded before the interpreter is offered to the training thread again."""
_MOST_QUEUED = 1_000_000

_BEGIN, _END = marks_pb2.PHASE_MARK_KIND_BEGIN, marks_pb2.PHASE_MARK_KIND_END
Mark = marks_pb2.RunMark | marks_pb2.PhaseMark
Request = marks_pb2.SendMarksRequest | marks_pb2.SendResultsRequest


@dataclass(slots=True)
class _Known:
    """A run this client has told the daemon of."""

    run: Run
    gpu_source: str
    announced_id: str = ""


@dataclass(slots=True)
class _Batch:
    """Marks on their way into requests."""

    phases: list[marks_pb2.PhaseMark] = field(default_factory=list)
    runs: list[marks_pb2.RunMark] = field(default_factory=list)
    results: list[marks_pb2.SendResultsRequest] = field(default_factory=list)


class Encoder:
    """Empties a client's queue; belongs to the sender's thread.

    Attributes:
        sequence: Number of the last mark.
        dropped: Marks given up because the queue was too long, not yet told.
    """

    def __init__(self, client: "Client", *, tell_open: bool) -> None:
        """Make the encoder.

        Args:
            client: Whose queue.
            tell_open: Tell of phases that are open, so that they are closed if this process dies.
        """
        self._client = client
        self._tell_open = tell_open
        self._boot_id = identity.boot_id()
        self._open: dict[int, Phase] = {}
        self._runs: dict[int, _Known] = {}
        self._threads: dict[int, int] = {}
        self._phases = 0
        self.sequence = 0
        self.dropped = 0

    def collect(self) -> list[Request]:
        """Encode what was marked since the last call, in order, up to about one request's worth."""
        batch = _Batch()
        self._bound_queue()
        self._update_gpus(batch)
        self._end_open(batch)
        queue = self._client.queue
        for count in range(1, min(len(queue), MOST_MARKS_A_REQUEST) + 1):
            item = queue.popleft()
            if isinstance(item, Phase):
                self._take_phase(batch, item)
            else:
                self._take_other(batch, *item)
            if not count % _MARKS_A_BREATH:
                time.sleep(0)
        return [*self._requests(batch), *batch.results]

    def rename(self, renamed: dict[str, str]) -> None:
        """The daemon gave runs other ids than were proposed."""
        for known in self._runs.values():
            given = renamed.get(known.announced_id)
            if given:
                known.run.run_id = given

    def _bound_queue(self) -> None:
        """A queue that grows faster than it can be sent must not fill the memory."""
        queue = self._client.queue
        excess = len(queue) - _MOST_QUEUED
        for _ in range(excess):
            queue.popleft()
        if excess > 0:
            self.dropped += excess
            self._client.warn("more phases are marked than can be sent: some are dropped, and counted")

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    def _end_open(self, batch: _Batch) -> None:
        """Phases that were open at the last look and have ended since."""
        for number in [number for number, phase in self._open.items() if phase.end_nano]:
            batch.phases.append(self._phase_mark(_END, self._open.pop(number)))

    def _take_phase(self, batch: _Batch, phase: Phase) -> None:
        run = phase._run  # noqa: SLF001 - a phase is this package's own
        if id(run) not in self._runs:
            self._join(batch, run)
        self._phases += 1
        phase.number = self._phases
        if phase.end_nano:
            batch.phases.append(self._phase_mark(_END, phase))
            return
        self._open[phase.number] = phase
        if self._tell_open:
            batch.phases.append(self._phase_mark(_BEGIN, phase))

    def _phase_mark(self, kind: marks_pb2.PhaseMarkKind.ValueType, phase: Phase) -> marks_pb2.PhaseMark:
        thread = self._threads.get(phase.thread)
        if thread is None:
            thread = self._threads[phase.thread] = len(self._threads)
        self.sequence += 1
        mark = marks_pb2.PhaseMark(
            sequence=self.sequence,
            kind=kind,
            run_id=phase._run.run_id,  # noqa: SLF001
            phase_number=phase.number,
            name=phase.name,
            thread=thread,
            begin_monotonic_nano=phase.begin_nano,
        )
        if kind == _END:
            mark.end_monotonic_nano = phase.end_nano
            if phase.tokens is not None:
                mark.tokens = int(phase.tokens)
            if phase.failed:
                mark.failed = True
        return mark

    def _take_other(self, batch: _Batch, what: str, run: Run, nano: int, facts: Any = None) -> None:
        if what == "run_begin":
            batch.runs.append(self._run_begin(run, nano))
        elif what == "run_end":
            self._end_open(batch)
            batch.runs.append(self._run_mark(marks_pb2.RUN_MARK_KIND_END, run, nano))
            self._runs.pop(id(run), None)
        else:
            batch.results.append(self._result(what, run, nano, facts))

    def _run_mark(self, kind: marks_pb2.RunMarkKind.ValueType, run: Run, nano: int) -> marks_pb2.RunMark:
        return marks_pb2.RunMark(sequence=self._next(), kind=kind, run_id=run.run_id, monotonic_nano=nano)

    def _run_begin(self, run: Run, nano: int) -> marks_pb2.RunMark:
        mark = self._run_mark(marks_pb2.RUN_MARK_KIND_BEGIN, run, nano)
        facts, place = run.facts, run.place
        mark.name, mark.method, mark.tokens_phase = run.name, facts["method"], facts["tokens_phase"]
        if facts["seed"] is not None:
            mark.seed = int(facts["seed"])
        mark.rank, mark.local_rank, mark.world_size = place
        mark.resume, mark.synchronised = facts["resume"], facts["sync"]
        uuids, mark.gpu_source = identity.gpus(place.local_rank)
        mark.gpu_uuids.extend(uuids)
        self._runs[id(run)] = _Known(run, mark.gpu_source, run.run_id)
        return mark

    def _join(self, batch: _Batch, run: Run) -> None:
        """A run that was begun before the fork that made this process."""
        mark = self._run_mark(marks_pb2.RUN_MARK_KIND_JOIN, run, run.begin_nano)
        mark.rank, mark.local_rank, mark.world_size = run.place
        batch.runs.append(mark)
        self._runs[id(run)] = _Known(run, "torch", run.run_id)

    def _update_gpus(self, batch: _Batch) -> None:
        """CUDA may have been started since the run began: then the run's GPUs are known for sure."""
        for known in self._runs.values():
            if known.gpu_source == "torch":
                continue
            uuids, source = identity.gpus(known.run.place.local_rank)
            if source == "torch":
                known.gpu_source = source
                mark = self._run_mark(marks_pb2.RUN_MARK_KIND_UPDATE, known.run, time.monotonic_ns())
                mark.gpu_uuids.extend(uuids)
                mark.gpu_source = source
                batch.runs.append(mark)

    def _result(self, what: str, run: Run, nano: int, facts: dict[str, Any]) -> marks_pb2.SendResultsRequest:
        told = {key: value for key, value in facts.items() if value is not None}
        request = marks_pb2.SendResultsRequest(
            request_id=uuid.uuid4().hex, boot_id=self._boot_id, monotonic_nano=nano
        )
        if what == "evaluation":
            request.evaluations.append(marks_pb2.Evaluation(run_id=run.run_id, **told))
        else:
            request.energy_per_token.append(marks_pb2.EnergyPerToken(run_id=run.run_id, **told))
        return request

    def _requests(self, batch: _Batch) -> Iterator[marks_pb2.SendMarksRequest]:
        """Cut marks into requests, each with a stretch of sequence numbers."""
        marks: list[Mark] = [*batch.runs, *batch.phases]
        marks.sort(key=attrgetter("sequence"))
        for at in range(0, len(marks), MOST_MARKS_A_REQUEST):
            part = marks[at : at + MOST_MARKS_A_REQUEST]
            request = self.heartbeat()
            request.runs.extend(mark for mark in part if isinstance(mark, marks_pb2.RunMark))
            request.phases.extend(mark for mark in part if isinstance(mark, marks_pb2.PhaseMark))
            request.dropped_marks, self.dropped = self.dropped, 0
            yield request

    def heartbeat(self) -> marks_pb2.SendMarksRequest:
        """A request without marks."""
        return marks_pb2.SendMarksRequest(
            client_id=self._client.client_id, boot_id=self._boot_id, pid=os.getpid()
        )


def last_sequence(request: marks_pb2.SendMarksRequest) -> int:
    """The highest sequence number in a request; 0 if it has no marks."""
    numbers = [request.runs[-1].sequence] if request.runs else []
    if request.phases:
        numbers.append(request.phases[-1].sequence)
    return max(numbers, default=0)
