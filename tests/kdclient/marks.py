"""A run that writes down what is marked, in the place of a connection."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self


class Marks:
    """Stands for both `kdclient.Client` and `kdclient.Run`.

    Attributes:
        phases: Name and tokens of each phase, in the order of their ends.
        open: Phases that are open now.
        evaluations: Scores, as given.
        runs: What `run` was called with.
    """

    run_id = "run-of-a-test"

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.open: list[str] = []
        self.evaluations: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []

    def run(self, name: str, **facts: Any) -> Self:
        self.runs.append({"name": name, **facts})
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.open

    @contextmanager
    def phase(self, name: str, tokens: int | None = None) -> Iterator[SimpleNamespace]:
        phase = SimpleNamespace(tokens=tokens)
        self.open.append(name)
        try:
            yield phase
        finally:
            self.open.remove(name)
            self.phases.append((name, phase.tokens))

    def evaluation(self, **score: Any) -> None:
        self.evaluations.append(score)

    def names(self) -> list[str]:
        """Names of the phases."""
        return [name for name, _ in self.phases]
