"""From what was marked to what goes over the wire: numbered once, in batches.

Only the sender thread imports this: protobuf is not the training's to wait for.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING

from kdclient import identity
from kdclient.holding import Holding
from kdclient.phases import Edge, GpuPhase, Item, Outcome, Phase, Run, Ticket
from kdclient.spool import MARKS, RESULTS
from wattd.v1 import marks_pb2

if TYPE_CHECKING:
    from kdclient.client import Client

BATCH_MARKS = 2_000
_MOST_QUEUED = 1_000_000
_MOST_OPEN = 1_000
_MOST_TOKENS = 1 << 53
_BEGIN, _END = marks_pb2.PHASE_MARK_KIND_BEGIN, marks_pb2.PHASE_MARK_KIND_END


@dataclass(slots=True)
class Batch:
    """A request, serialised.

    Attributes:
        kind: `spool.MARKS` or `spool.RESULTS`.
        data: The bytes; None once they are in the spool alone.
        last: Number of the last mark in it, or of the last one before these results.
        offset: Where its record begins in the spool; -1: not there.
    """

    kind: int
    data: bytes | None
    last: int
    offset: int = -1


class Encoder:
    """Turns a client's queue into batches.

    Attributes:
        sequence: Number of the last mark.
    """

    def __init__(self, client: "Client", *, room: Callable[[], bool]) -> None:
        """Make the encoder.

        Args:
            client: Whose queue it is.
            room: Whether phases can be kept; where not, they are counted and dropped.
        """
        self._client = client
        self._room = room
        self._boot_id = identity.boot_id()
        self._open: list[Phase] = []
        self._known: dict[Run, tuple[list[str], str]] = {}
        self._threads: dict[int, int] = {}
        self._holding = Holding(client)
        self.sequence = self._phases = self._dropped = 0
        self._request = self._new_request()

    def _new_request(self) -> marks_pb2.SendMarksRequest:
        client_id = self._client.client_id
        return marks_pb2.SendMarksRequest(client_id=client_id, boot_id=self._boot_id, pid=os.getpid())

    def heartbeat(self) -> bytes:
        """A request without a mark: the sign of life."""
        return self._new_request().SerializeToString()

    def take(self) -> Iterator[Batch | Ticket]:
        """Everything that is on the queue now, and the edges of phases since the last time."""
        queue = self._client.queue
        self._holding.look(self._known)
        self._look_again()  # first: what was open the last time ended before what follows
        yield from self._release()
        self._dropped += self._client.take_dropped()
        for _ in range(len(queue)):
            item = queue.popleft()
            if isinstance(item, Phase):
                self._phase(item)
            else:
                self._look_again()  # what ended before the item was queued comes before it
                yield from self._release()
                if self._holding.awaited(item):
                    queue.appendleft(item)
                    break
                yield from self._release()
                yield from self._other(item)
            if self._full():
                yield from self._cut()
                self._regulate(len(queue))
        self._look_again()
        self._ask_for_gpus(again=False)
        yield from self._cut()
        self._regulate(len(queue))

    def _other(self, item: Item) -> Iterator[Batch | Ticket]:
        if isinstance(item, Edge):
            self._edge(item)
        elif isinstance(item, Outcome):
            yield from self._outcome(item)
        elif isinstance(item, Ticket):
            yield from self._cut()
            yield item

    def is_awaited(self) -> bool:
        """Whether somebody waits for phases that the GPU has not come to; look again soon."""
        return self._holding.is_awaited()

    def _release(self) -> Iterator[Batch]:
        """Tell of phases whose times on the GPU are known by now, or will not be."""
        for phase in self._holding.ready():
            self._phase_end(phase)
            if self._full():
                yield from self._cut()

    def _regulate(self, queued: int) -> None:
        if queued > _MOST_QUEUED:
            self._client.overflow()
        elif self._client.append == self._client._drop and queued < _MOST_QUEUED // 2:  # noqa: SLF001 - its other half
            self._client.relieve()

    def _full(self) -> bool:
        return len(self._request.phases) + len(self._request.runs) >= BATCH_MARKS

    def _cut(self) -> Iterator[Batch]:
        """The batch that has gathered, if there is one."""
        request = self._request
        if request.phases or request.runs:
            request.dropped_marks, self._dropped = self._dropped, 0
            self._request = self._new_request()
            yield Batch(MARKS, request.SerializeToString(), self.sequence)

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    def _phase(self, phase: Phase) -> None:
        if not self._room():
            self._dropped += 1
        elif phase.end_nano:
            self._phase_over(phase)
        else:
            self._open.append(phase)

    def _look_again(self) -> None:
        """Tell of phases that were open at the last look: ends, and begins that last."""
        waiting, self._open = self._open, []
        for phase in waiting:
            if phase.end_nano:
                self._phase_over(phase)
                continue
            if phase.begin_nano and not phase.number:
                self._phase_begin(phase)
            self._open.append(phase)
        surplus = len(self._open) - _MOST_OPEN
        if surplus > 0:
            self._client.warn(f"over {_MOST_OPEN} phases are open, the oldest are given up: end() is missing")
            del self._open[:surplus]
            self._dropped += surplus

    def _phase_begin(self, phase: Phase) -> None:
        self._join(phase.run)
        phase.number = self._next_phase()
        self._request.phases.add(
            sequence=self._next(),
            kind=_BEGIN,
            run_id=phase.run.run_id,
            phase_number=phase.number,
            name=phase.name,
            thread=self._threads.setdefault(phase.thread, len(self._threads)),
            begin_monotonic_nano=phase.begin_nano,
        )

    def _phase_over(self, phase: Phase) -> None:
        if not isinstance(phase, GpuPhase) or not self._holding.add(phase):
            self._phase_end(phase)

    def _phase_end(self, phase: Phase) -> None:
        self._join(phase.run)
        tokens = phase.tokens if phase.tokens is None else self._count(phase)
        self.sequence += 1  # not by a call: this thread's hot path
        mark = self._request.phases.add(
            sequence=self.sequence,
            kind=_END,
            run_id=phase.run.run_id,
            phase_number=phase.number or self._next_phase(),
            name=phase.name,
            thread=self._threads.setdefault(phase.thread, len(self._threads)),
            begin_monotonic_nano=phase.begin_nano,
            end_monotonic_nano=phase.end_nano,
            tokens=tokens,
            failed=phase.failed,
        )
        if isinstance(phase, GpuPhase):
            self._holding.write(mark, phase)

    def _count(self, phase: Phase) -> int | None:
        """The tokens of a phase, from whatever counts as a whole number."""
        try:
            tokens = int(phase.tokens or 0)
        except Exception:  # noqa: BLE001 - it is the training's object: whatever it does, the phase is told
            tokens = -1
        if 0 <= tokens <= _MOST_TOKENS:
            return tokens
        self._client.warn(
            f"tokens={str(phase.tokens)[:40]} of phase {phase.name} is no number of tokens: left out"
        )
        return None

    def _next_phase(self) -> int:
        self._phases += 1
        return self._phases

    def _edge(self, edge: Edge) -> None:
        run = edge.run
        if edge.is_end:
            self._ask_for_gpus(again=True)
            self._known.pop(run, None)
            self._request.runs.add(
                sequence=self._next(),
                kind=marks_pb2.RUN_MARK_KIND_END,
                run_id=run.run_id,
                monotonic_nano=edge.nano,
                rank=run.place.rank,
            )
            return
        if self._client.stamps is not None:
            run.see_gpu()
        self._known[run] = uuids, source = identity.gpus()
        self._request.runs.add(
            sequence=self._next(),
            kind=marks_pb2.RUN_MARK_KIND_BEGIN,
            run_id=run.run_id,
            monotonic_nano=edge.nano,
            name=run.name,
            method=run.facts["method"],
            seed=run.facts["seed"],
            tokens_phase=run.facts["tokens_phase"],
            gpu_uuids=uuids,
            gpu_source=source,
            resume=run.facts["resume"],
            synchronised=run.facts["sync"],
            **run.place._asdict(),
        )

    def _join(self, run: Run) -> None:
        """A forked worker marks phases of a run that its parent began: it says so, once."""
        if run not in self._known and run.owner != self._client.client_id:
            self._known[run] = identity.gpus()
            self._request.runs.add(
                sequence=self._next(),
                kind=marks_pb2.RUN_MARK_KIND_JOIN,
                run_id=run.run_id,
                monotonic_nano=monotonic_ns(),
                **run.place._asdict(),
            )

    def _ask_for_gpus(self, *, again: bool) -> None:
        """The GPUs of a run become known when CUDA is started; at its end they may be more."""
        unknown = [run for run, (_, source) in self._known.items() if again or source != "torch"]
        if not unknown:
            return
        uuids, source = identity.gpus()
        for run in unknown:
            if source == "torch" and uuids != self._known[run][0]:
                self._known[run] = uuids, source
                self._update(run, uuids, source)

    def _update(self, run: Run, uuids: list[str], source: str) -> None:
        self._request.runs.add(
            sequence=self._next(),
            kind=marks_pb2.RUN_MARK_KIND_UPDATE,
            run_id=run.run_id,
            monotonic_nano=monotonic_ns(),
            gpu_uuids=uuids,
            gpu_source=source,
            **run.place._asdict(),
        )

    def _outcome(self, outcome: Outcome) -> Iterator[Batch]:
        request = marks_pb2.SendResultsRequest(
            request_id=uuid.uuid4().hex, boot_id=self._boot_id, monotonic_nano=outcome.nano
        )
        try:
            getattr(request, outcome.kind).add(run_id=outcome.run.run_id, **outcome.facts)
        except (TypeError, ValueError) as error:
            self._client.warn(f"a result is not recorded: {error}")
            return
        yield from self._cut()
        yield Batch(RESULTS, request.SerializeToString(), self.sequence)

    def rename(self, renamed: dict[str, str]) -> None:
        """Use the ids that the daemon gave instead of those proposed."""
        for run in [*self._known, *self._holding.runs(), *(phase.run for phase in self._open)]:
            run.run_id = renamed.get(run.run_id, run.run_id)
