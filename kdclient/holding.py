"""Phases that are over for the host and not yet for the GPU: they wait a little, in the sender."""

from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from kdclient.gpu import GpuMarks, relax
from kdclient.phases import Edge, GpuPhase, Item, Run, Ticket

if TYPE_CHECKING:
    from kdclient.client import Client
    from kdclient.stamps import Stamp
    from wattd.v1 import marks_pb2

_MOST_WAIT_NANO = 5_000_000_000
_MOST_BARRIER_NANO = 1_000_000_000
_MOST_HELD = 100_000


class Holding:
    """Holds phases back until the GPU's times of their edges are known, or will not be."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._gpu: GpuMarks | None = None
        self._phases = deque[GpuPhase]()
        self._barrier: Any = None
        self._barrier_nano = 0

    def look(self, runs: Iterable[Run]) -> None:
        """Ask the GPU; have runs that began before CUDA did mark on it from here on."""
        if self._client.find_gpu():
            for run in runs:
                run.see_gpu()
            if self._gpu is None and self._client.stamps is not None:
                self._gpu = GpuMarks(self._client.stamps, relax=relax)
        if self._gpu is not None:
            self._gpu.turn(hurry=self._barrier is not None)

    def add(self, phase: GpuPhase) -> bool:
        """Hold a phase that has ended; False where there is nothing to wait for."""
        if phase.gpu_begin is None or phase.gpu_end is None:
            return False
        if len(self._phases) >= _MOST_HELD:
            _give_up(phase.gpu_begin, "crowded")
            return False
        self._phases.append(phase)
        return True

    def awaited(self, item: Item) -> bool:
        """Whether an item has to wait for phases that are held: they were marked before it."""
        if not self._phases or not (isinstance(item, Ticket) or (isinstance(item, Edge) and item.is_end)):
            self._barrier = None
            return False
        now = monotonic_ns()
        if self._barrier is not item:
            self._barrier, self._barrier_nano = item, now
        if now - self._barrier_nano < _MOST_BARRIER_NANO:
            return True
        for phase in self._phases:
            _give_up(phase.gpu_begin, "late")
        self._barrier = None
        return False

    def is_awaited(self) -> bool:
        """Whether somebody waits for what is held."""
        return self._barrier is not None

    def ready(self) -> Iterator[GpuPhase]:
        """The phases that need not wait any longer, in the order of their ends."""
        latest = monotonic_ns() - _MOST_WAIT_NANO
        while self._phases:
            phase = self._phases[0]
            begin, end = phase.gpu_begin, phase.gpu_end
            if not (_is_settled(begin) and _is_settled(end)):
                if phase.end_nano > latest and not (begin and begin.reason):
                    return
                _give_up(begin, "late")
            yield self._phases.popleft()

    def runs(self) -> list[Run]:
        """The runs of what is held."""
        return [phase.run for phase in self._phases]

    def write(self, mark: "marks_pb2.PhaseMark", phase: GpuPhase) -> None:
        """Put what is known of the GPU's edges into a mark."""
        begin, end = phase.gpu_begin, phase.gpu_end
        if begin is None or end is None:
            return
        reason = begin.reason or end.reason
        if not reason and begin.device != end.device:
            reason = "several_devices"
        if not reason and end.nano < begin.nano:
            reason = "out_of_order"
        if reason:
            mark.gpu_reason = reason
            self._client.warn(f"phases are without their times on the GPU: {_REASONS[reason]}")
            return
        mark.gpu_begin_monotonic_nano, mark.gpu_end_monotonic_nano = begin.nano, end.nano
        mark.gpu_error_nano = max(begin.error_nano, end.error_nano)


_REASONS = {
    "captured": "they lie inside the capture of a CUDA graph; mark its replay",
    "crowded": "too many events are under way",
    "failed": "CUDA events can't be used in this process",
    "late": "the GPU did not get to their edges in time",
    "no_anchor": "the GPU's clock could not be tied to the host's",
    "out_of_order": "they begin on one stream and end on another",
    "several_devices": "they begin on one GPU and end on another",
}


def _is_settled(stamp: "Stamp | None") -> bool:
    return stamp is not None and stamp.is_settled()


def _give_up(stamp: "Stamp | None", reason: str) -> None:
    if stamp is not None and not stamp.reason:
        stamp.reason = reason
