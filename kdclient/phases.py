"""Runs and phases: what the training code touches. Two time-stamps and an append, nothing else."""

import sys
import threading
from collections import deque
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kdclient import identity

if TYPE_CHECKING:
    from kdclient.client import Client

_thread = threading.get_ident


class Phase:
    """A tagged interval: a context manager, or `begin()` and `end()` by hand.

    Attributes:
        tokens: Tokens processed; may be set until the end. None: not told.
    """

    __slots__ = ("_append", "_run", "begin_nano", "end_nano", "failed", "name", "number", "thread", "tokens")

    def __init__(self, run: "Run", append: Any, name: str, tokens: int | None) -> None:
        self._run = run
        self._append = append
        self.name = name
        self.tokens = tokens
        self.begin_nano = self.end_nano = self.number = 0
        self.failed = False

    def __enter__(self) -> Self:
        self.thread = _thread()
        self.begin_nano = monotonic_ns()
        # On the queue once, at the begin: the sender looks again for the end.
        self._append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = monotonic_ns()
        if kind is not None:
            self.failed = True
        self.end_nano = now

    def begin(self) -> Self:
        """Begin by hand; a phase begins once."""
        if self.begin_nano:
            self._run.client.warn(f"phase {self.name!r} has begun already; make a new one with run.phase()")
            return self
        return self.__enter__()

    def end(self) -> None:
        """End by hand; an end without a begin is counted and changes nothing."""
        if not self.begin_nano or self.end_nano:
            self._run.client.stray_ends += 1
            what = "has ended already" if self.end_nano else "was never begun"
            self._run.client.warn(f"end of phase {self.name!r}, which {what}: nothing is marked")
            return
        self.__exit__(None, None, None)


class _SynchronisedPhase(Phase):
    """A phase whose edges wait for the GPU; it slows the run, which the run's record says."""

    __slots__ = ()

    def __enter__(self) -> Self:
        _synchronise()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _synchronise()
        super().__exit__(kind, error, trace)


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Run:
    """One training, distillation or evaluation: a context manager.

    Attributes:
        run_id: The same on all ranks; the daemon may give another one than was proposed.
        name: What people call it.
    """

    def __init__(self, client: "Client", name: str, **facts: Any) -> None:
        self.client = client
        self.name = name
        self.run_id: str = facts.pop("run_id") or identity.run_id(name, client.next_ordinal())
        self.facts = facts
        self.place = identity.place()
        self.begin_nano = self.end_nano = 0
        self._kind = _SynchronisedPhase if facts["sync"] else Phase

    def phase(self, name: str, tokens: int | None = None) -> Phase:
        """A phase of this run.

        Args:
            name: 1 to 64 of the letters A-Z a-z 0-9 _ . : -
            tokens: Tokens processed in it, if known already; else set `phase.tokens` before its end.
        """
        client = self.client
        return self._kind(self, client.queue.append, client.names.get(name) or client.check(name), tokens)

    def __enter__(self) -> Self:
        self.begin_nano = monotonic_ns()
        self.client.put(("run_begin", self, self.begin_nano))
        self.client.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_nano = monotonic_ns()
        self.client.put(("run_end", self, self.end_nano))
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
        score: dict[str, Any] = {
            "harness": harness,
            "harness_version": harness_version,
            "task": task,
            "metric": metric,
            "value": value,
            "stderr": stderr,
            "n": n,
            "settings_sha256": settings_sha256,
            "model": model,
        }
        self.client.put(("evaluation", self, monotonic_ns(), score))

    def energy_per_token(self, **measured: Any) -> None:
        """Record an energy-per-token measurement.

        Args:
            **measured: `model_sha256 batch tokens_in tokens_out` and, where known,
                `energy_prefill_joules energy_decode_joules energy_joules`.
        """
        self.client.put(("ept", self, monotonic_ns(), measured))


Item = Phase | tuple[Any, ...]
Queue = deque[Item]
