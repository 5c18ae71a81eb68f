"""Runs and phases: what the training code touches. Two time-stamps and an append, nothing else."""

import sys
from collections import deque
from threading import get_ident
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kdclient import identity

if TYPE_CHECKING:
    from kdclient.client import Client
    from kdclient.stamps import Stamp, Stamps


class Phase:
    """A tagged interval: a context manager, or `begin()` and `end()` by hand.

    Attributes:
        run: The run it belongs to.
        name: As it is sent.
        tokens: Tokens processed; may be set until the end. None: not told.
        begin_nano: Monotonic nanoseconds; 0 before the begin.
        end_nano: Likewise; set last, so that whoever sees it sees all the rest.
        failed: An exception left it.
        thread: Ident of the thread that began it.
        number: Given by the sender once the phase is told to the daemon.
    """

    __slots__ = ("begin_nano", "end_nano", "failed", "name", "number", "run", "thread", "tokens")

    def __init__(self, run: "Run", name: str, tokens: int | None) -> None:
        self.run = run
        self.name = name
        self.tokens = tokens
        self.begin_nano = self.end_nano = self.number = 0
        self.failed = False

    def __enter__(self) -> Self:
        if self.begin_nano:
            self.run.client.stray(f"phase {self.name} is entered again: use run.phase() anew each time")
            return self
        # Queued once, at the begin; the sender looks at it again for the end.
        self.thread = get_ident()
        self.run.client.append(self)
        self.begin_nano = monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = monotonic_ns()
        if self.end_nano:
            return
        if kind is not None:
            self.failed = True
        self.end_nano = now

    def begin(self) -> Self:
        """Begin by hand; a phase begins once."""
        if self.begin_nano:
            self.run.client.stray(
                f"begin of phase {self.name}, which has begun already: use run.phase() anew"
            )
            return self
        return self.__enter__()

    def end(self) -> None:
        """End by hand; an end without a begin is counted and changes nothing."""
        if not self.begin_nano or self.end_nano:
            what = "has ended already" if self.end_nano else "has not begun"
            self.run.client.stray(f"end of phase {self.name}, which {what}: nothing is marked")
            return
        self.__exit__(None, None, None)


class GpuPhase(Phase):
    """A phase whose edges are also seen on the GPU; only where the program has started CUDA.

    Two events are recorded on the stream that is current at its edges, which costs some microseconds
    more than the time-stamps; nothing waits for the GPU.

    Attributes:
        gpu_begin: Its begin on the GPU, if any; likewise `gpu_end`.
    """

    __slots__ = ("gpu_begin", "gpu_end")

    def __init__(self, run: "Run", name: str, tokens: int | None) -> None:
        super().__init__(run, name, tokens)
        self.gpu_begin: Stamp | None = None
        self.gpu_end: Stamp | None = None

    def __enter__(self) -> Self:
        is_new = not self.begin_nano
        super().__enter__()
        stamps = self.run.client.stamps
        if is_new and stamps is not None:
            self.gpu_begin = stamps.stamp(self.begin_nano)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = monotonic_ns()
        if self.end_nano:
            return
        if kind is not None:
            self.failed = True
        if self.gpu_begin is not None and self.run.client.stamps is not None:
            self.gpu_end = self.run.client.stamps.stamp(now)
        self.end_nano = now


class _SynchronisedPhase(GpuPhase):
    """A phase whose edges wait for the GPU; it slows the run, which the run's record says."""

    __slots__ = ()

    def __enter__(self) -> Self:
        if self.begin_nano:
            super().__enter__()  # says that this is no way to do it
            return self
        self.gpu_begin = _synchronised(self.run.client.stamps)
        self.thread = get_ident()
        self.run.client.append(self)
        self.begin_nano = monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.end_nano:
            return
        try:
            if kind is None:  # after a failed kernel it would raise in the place of what is being raised
                self.gpu_end = _synchronised(self.run.client.stamps)
            else:
                self.failed = True
        finally:
            self.end_nano = monotonic_ns()


def _synchronised(stamps: "Stamps | None") -> "Stamp | None":
    """Wait for the GPU, behind an event whose time is then known from both sides."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    stamp = stamps.stamp(monotonic_ns()) if stamps is not None else None
    cuda.synchronize()
    if stamp is not None:
        stamp.high_nano = monotonic_ns()
    return stamp


class Run:
    """One training, distillation or evaluation: a context manager.

    Attributes:
        client: Through which it is marked.
        name: What people call it.
        run_id: The same on all ranks; the daemon may give another one than was proposed.
        facts: `method seed tokens_phase resume sync`, as given.
        place: This process among the run's ranks.
        owner: Client id of the process that began it.
    """

    def __init__(self, client: "Client", name: str, run_id: str, facts: dict[str, Any]) -> None:
        self.client = client
        self.name = name
        self.run_id = run_id
        self.facts = facts
        self.place = identity.place()
        self.owner = client.client_id
        self._kind: type[Phase] = _SynchronisedPhase if facts["sync"] else Phase
        if client.find_gpu():
            self.see_gpu()

    def see_gpu(self) -> None:
        """From here on, look for the edges of phases on the GPU: the program has started CUDA."""
        if self._kind is Phase:
            self._kind = GpuPhase

    def phase(self, name: str, tokens: int | None = None) -> Phase:
        """A phase of this run.

        Args:
            name: 1 to 64 of the letters A-Z a-z 0-9 _ . : -
            tokens: Tokens processed in it, if known already; else set `phase.tokens` before its end.
        """
        try:
            sent = self.client.names.get(name) or self.client.check(name)
        except TypeError:  # not even hashable: not a name, and no reason to stop a training
            sent = self.client.check(str(name))
        return self._kind(self, sent, tokens)

    def __enter__(self) -> Self:
        self.client.put(Edge(self, monotonic_ns(), is_end=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.owner != self.client.client_id:
            return  # a forked child leaves its parent's run, which goes on
        self.client.put(Edge(self, monotonic_ns(), is_end=True))
        self.client.flush(seconds=2.0)

    def evaluation(
        self,
        *,
        harness: str,
        harness_version: str,
        task: str,
        metric: str,
        value: float,
        n: int,
        settings_sha256: str,
        stderr: float | None = None,
        model: str = "",
    ) -> None:
        """Record one score of this run's model.

        Args:
            harness: `lm-evaluation-harness`, `lighteval` or `perplexity`.
            harness_version: As the package says it.
            task: Name of the task in the harness.
            metric: Name of the metric in the harness.
            value: The score, in the metric's own unit.
            n: Number of questions or tokens scored.
            settings_sha256: Hash of the settings, so that only like is compared with like.
            stderr: Standard error of the score, or None.
            model: Which model: `teacher`, `student`, `student_start`, or empty.
        """
        facts = {
            "harness": harness,
            "harness_version": harness_version,
            "task": task,
            "metric": metric,
            "value": value,
            "n": n,
            "settings_sha256": settings_sha256,
            "stderr": stderr,
            "model": model,
        }
        self.client.put(Outcome(self, monotonic_ns(), "evaluations", facts))

    def energy_per_token(
        self,
        *,
        model_sha256: str,
        batch: int,
        tokens_in: int,
        tokens_out: int,
        energy_prefill_joules: float | None = None,
        energy_decode_joules: float | None = None,
        energy_joules: float | None = None,
    ) -> None:
        """Record one energy-per-token measurement; an energy that is not known stays None.

        Args:
            model_sha256: Hash of the weights.
            batch: Sequences generated at once.
            tokens_in: Prompt tokens read.
            tokens_out: Tokens generated.
            energy_prefill_joules: Energy of the prompt part.
            energy_decode_joules: Energy of the generation.
            energy_joules: Energy of the whole.
        """
        facts = {
            "model_sha256": model_sha256,
            "batch": batch,
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "energy_prefill_joules": energy_prefill_joules,
            "energy_decode_joules": energy_decode_joules,
            "energy_joules": energy_joules,
        }
        self.client.put(Outcome(self, monotonic_ns(), "energy_per_token", facts))


class Edge(NamedTuple):
    """A run begins or ends."""

    run: Run
    nano: int
    is_end: bool


class Outcome(NamedTuple):
    """A result; `kind` is its field of SendResultsRequest."""

    run: Run
    nano: int
    kind: str
    facts: dict[str, Any]


class Ticket(NamedTuple):
    """Somebody waits until what was queued before this is on a disk.

    Attributes:
        deadline: Monotonic seconds after which the spool's disk will do.
        done: Called once, with whether it is the daemon's.
    """

    deadline: float
    done: Any


Item = Phase | Edge | Outcome | Ticket
Queue = deque[Item]
