"""The state of devices and node once a second: slow to read, and off the clock."""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from wattd.line import Call, Line
from wattd.sensors import ReadingError
from wattd.values import NANOSECONDS_PER_SECOND
from wattd.watchdog import Guard

_HUNG_NANO = NANOSECONDS_PER_SECOND
"""Nobody waits for state: a call may take its time."""


class States:
    """Asks device after device.

    Attributes:
        guard: Where the devices are called.
    """

    def __init__(self, lines: Sequence[Line], clock: Callable[[], int]) -> None:
        """Args: lines: the devices; clock: CLOCK_MONOTONIC, nanoseconds."""
        self.guard = Guard(_HUNG_NANO)
        self._lines = lines
        self._clock = clock
        self._due = deque[Line]()
        self._found: list[dict[str, Any]] = []
        psutil.cpu_percent()  # the first call has nothing to compare with

    @property
    def is_begun(self) -> bool:
        """A round is under way: its thread got stuck, and another is to finish it."""
        return bool(self._due)

    def ask(self, holder: int) -> dict[str, Any] | None:
        """Ask every device, or what is left of a round.

        Args:
            holder: The number under which the calling thread holds the guard.

        Returns:
            The `state` record; None if the guard was lost to another thread.
        """
        guard, due = self.guard, self._due
        while guard.late:
            late = guard.late.popleft()
            late.line.is_state_hung = False
            late.line.health.stuck.discard(late)
        if not due:
            self._found.clear()
            due.extend(self._lines)
        while due:
            line = due.popleft()
            if line.hung or line.is_state_hung or line.away:
                continue
            call, state = guard.enter(line, self._clock()), None
            # What fails is absent this second; the clock thread reports a sensor that is down.
            with contextlib.suppress(ReadingError):
                state = line.channel.state()
            if not guard.leave(call, holder):
                return None
            if state:
                self._found.append({"number": line.tracker.number, **state})
        return self._record()

    def note_hung(self, call: Call) -> None:
        """A call hangs: its device is not asked until it returns."""
        call.line.is_state_hung = True

    def _record(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        return {
            "type": "state",
            "monotonic_nano": self._clock(),
            "gpus": list(self._found),
            "cpu_utilization_ratio": psutil.cpu_percent() / 100,
            "memory_used_bytes": memory.used,
            "memory_total_bytes": memory.total,
        }
