"""When which device is read: absolute deadlines of all devices in one heap."""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count

from wattd.edges import FAR_NANO
from wattd.line import Line

TOGETHER_NANO = 300_000
"""What is due this soon is read with what is due: a wake costs more than a reading."""


class Schedule:
    """The tick, at which most devices are read together, and the deadlines of those that go by their own.

    Attributes:
        missed_ticks: Ticks that passed while nobody looked.
    """

    def __init__(self, ticked: Sequence[Line], tick_nano: int) -> None:
        """Args: ticked: devices that are read at the tick; tick_nano: time between two."""
        self.missed_ticks = 0
        self._ticked = ticked
        self._tick_nano = tick_nano
        self._order = count()
        self._heap: list[tuple[int, int, Line | None]] = []

    def begin(self, now: int) -> None:
        """The first tick is one from now; nothing was missed before."""
        self._heap = [(now + self._tick_nano, next(self._order), None)] if self._ticked else []

    @property
    def next_nano(self) -> int:
        """When the next device is due; FAR_NANO if none is."""
        heap = self._heap
        while heap:
            deadline, _, line = heap[0]
            if line is None or line.deadline_nano == deadline:
                return deadline
            heappop(heap)  # it was planned anew
        return FAR_NANO

    def put(self, line: Line, deadline: int) -> None:
        """Plan the next reading of a device, whatever was planned before."""
        line.deadline_nano = deadline
        heappush(self._heap, (deadline, next(self._order), line))

    def take_due(self, now: int, due: deque[Line]) -> None:
        """Move what is due into a queue; the next tick is the next that has not passed."""
        heap, until = self._heap, now + TOGETHER_NANO
        while heap and heap[0][0] <= until:
            deadline, _, line = heappop(heap)
            if line is None:
                missed = max(0, now - deadline) // self._tick_nano
                self.missed_ticks += missed
                following = deadline + (missed + 1) * self._tick_nano
                heappush(heap, (following, next(self._order), None))
                due.extend(self._ticked)
            elif line.deadline_nano == deadline:
                line.deadline_nano = 0
                due.append(line)
