"""Each tool by its own interface, as its documentation shows it: a whole run, phases in it, joules of both.

Only one of the tools is installed where this runs; each is imported when it is asked for.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

TOTAL = "(total)"
"""Name of the whole run among the answers."""


class Tool(Protocol):
    """What the workload needs of a tool."""

    def run(self) -> AbstractContextManager[Any]:
        """Around the whole run."""

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Around one phase."""

    def answers(self) -> dict[str, float]:
        """Joules by phase over the whole run, as far as the tool says any; TOTAL for the run."""


class _Sums:
    """Adds up what a tool says of each phase."""

    def __init__(self) -> None:
        self._joules = dict[str, float]()

    def add(self, name: str, joules: float) -> None:
        self._joules[name] = self._joules.get(name, 0.0) + joules

    def answers(self) -> dict[str, float]:
        return self._joules


class Wattd:
    """Marks for the daemon, by kdclient; the answers are in the archive afterwards."""

    def __init__(self) -> None:
        kdclient = importlib.import_module("kdclient")
        self._run = kdclient.connect().run("realtime", method="response")

    def run(self) -> AbstractContextManager[Any]:
        """The run."""
        return self._run  # type: ignore[no-any-return]

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """A phase of it."""
        return self._run.phase(name)  # type: ignore[no-any-return]

    def answers(self) -> dict[str, float]:
        """None here: `wattq phases` has them."""
        return {}


class Zeus(_Sums):
    """ZeusMonitor: a window around each phase, and one around the run.

    The windows don't synchronise: the workload itself waits for its work, and there is no torch here.
    """

    def __init__(self, *, instant: bool) -> None:
        super().__init__()
        monitor = importlib.import_module("zeus.monitor")
        self._monitor = monitor.ZeusMonitor(gpu_indices=[0], cpu_indices=[], approx_instant_energy=instant)

    def run(self) -> AbstractContextManager[Any]:
        """A window."""
        return self.phase(TOTAL)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A window."""
        self._monitor.begin_window(name, sync_execution=False)
        yield
        found = self._monitor.end_window(name, sync_execution=False)
        self.add(name, found.gpu_energy[0])


class Joules(_Sums):
    """joules.Session with its phases, which may nest."""

    def __init__(self) -> None:
        super().__init__()
        self._session = importlib.import_module("joules").Session(gpus=[0], cpu=False)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """The session, in a phase of its own."""
        with self._session, self._measured("total", TOTAL):
            yield

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """A phase of the session."""
        return self._measured(name, name)

    @contextlib.contextmanager
    def _measured(self, name: str, counted_as: str) -> Iterator[None]:
        with self._session.phase(name) as found:
            yield
        self.add(counted_as, found.energy_j)


class Codecarbon(_Sums):
    """codecarbon's tasks, its finest grain; they don't nest, so that it says no total beside them."""

    def __init__(self) -> None:
        super().__init__()
        tracker = importlib.import_module("codecarbon").OfflineEmissionsTracker
        self._tracker = tracker(
            country_iso_code="DEU",
            gpu_ids=[0],
            save_to_file=False,
            log_level="error",
            allow_multiple_runs=True,
        )
        # The first task sets the tracker up, which takes seconds.
        self._tracker.start_task("warm_up")
        self._tracker.stop_task("warm_up")

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Nothing of its own."""
        yield
        self._tracker.stop()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A task."""
        self._tracker.start_task()
        yield
        kilowatt_hours = self._tracker.stop_task().gpu_energy
        self.add(name, kilowatt_hours * 3.6e6)


TOOLS: dict[str, tuple[str | None, Callable[[], Tool]]] = {
    "wattd": (None, Wattd),
    "wattd_calibrated": (None, Wattd),
    "zeus": ("zeus", lambda: Zeus(instant=False)),
    "zeus_instant": ("zeus", lambda: Zeus(instant=True)),
    "joules": ("joules", Joules),
    "codecarbon": ("codecarbon", Codecarbon),
}
"""Name -> (environment of environments.py, None for our own; how it is made)."""
