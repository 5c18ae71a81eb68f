"""CUDA events at the edges of phases: what the training thread does for them, and no more.

Kernels run after the call that launched them has returned. An event that is recorded on the stream at
the edge of a phase is reached by the GPU when all that was launched before it is done; the sender asks
later when that was (`kdclient.gpu`). CUDA is never started for this, and torch never imported.
"""

import os
import sys
from collections import deque
from typing import Any

_MOST_EVENTS = 20_000


class Stamp:
    """An edge of a phase on a GPU.

    Attributes:
        low_nano: The GPU cannot have reached it before; CLOCK_MONOTONIC.
        high_nano: Nor after; 0: not known.
        event: The CUDA event; None where there is none any more, or never was.
        device: Number of the GPU within this process.
        stream: Number of the stream on that GPU.
        nano: When the GPU reached it, on the host's CLOCK_MONOTONIC; 0: not known yet.
        error_nano: Half-width of `nano`.
        reason: Why `nano` will not be known; see `gpu_reason` in marks.proto.
    """

    __slots__ = ("device", "error_nano", "event", "high_nano", "low_nano", "nano", "reason", "stream")

    def __init__(self, low_nano: int) -> None:
        self.low_nano = low_nano
        self.high_nano = self.nano = self.error_nano = 0
        self.event: Any = None
        self.device = self.stream = 0
        self.reason = ""

    def is_settled(self) -> bool:
        """Whether all is known that will be."""
        return bool(self.nano or self.reason)


class Stamps:
    """Records events on whatever stream is current, out of a pool.

    Attributes:
        cuda: torch.cuda, or what stands for it.
        recorded: Stamps that nobody has looked at yet, in the order of recording.
    """

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda
        self.recorded = deque[Stamp]()
        self._pools: dict[int, deque[Any]] = {}
        self._made = 0
        self._works = True

    def stamp(self, now_nano: int) -> Stamp:
        """Record an event on the current stream; never raises, and never waits for the GPU.

        Some microseconds of the calling thread, and about one of the stream.

        Args:
            now_nano: A time not long before this call.
        """
        stamp = Stamp(now_nano)
        if not self._works:
            stamp.reason = "failed"
            return stamp
        try:
            if self.cuda.is_current_stream_capturing():
                stamp.reason = "captured"  # the event would become a part of the user's graph
                return stamp
            self.record(stamp, self.cuda.current_stream())
        except Exception:  # noqa: BLE001 - whatever ails the device, the training's own call will say it
            stamp.event = None
            stamp.reason = "failed"
            self._works = False
        return stamp

    def record(self, stamp: Stamp, stream: Any) -> None:
        """Record a stamp's event on a stream.

        Raises:
            RuntimeError: CUDA has failed.
        """
        stamp.device, stamp.stream = stream.device_index, stream.stream_id
        event = self._event(stamp.device)
        if event is None:
            stamp.reason = "crowded"
            return
        event.record(stream)
        stamp.event = event
        self.recorded.append(stamp)

    def _event(self, device: int) -> Any:
        pool = self._pools.get(device)
        if pool is None:
            pool = self._pools.setdefault(device, deque())
        try:
            return pool.pop()
        except IndexError:
            if self._made >= _MOST_EVENTS:
                return None
            self._made += 1
            return self.cuda.Event(enable_timing=True)

    def give_back(self, device: int, event: Any) -> None:
        """Use an event again; making one costs more than recording it."""
        self._pools[device].append(event)

    def fail(self) -> None:
        """Record no more: CUDA has failed."""
        self._works = False


def find() -> Stamps | None:
    """Stamps on the GPU that this process uses; None where it has not started CUDA (yet)."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        if cuda is None or os.environ.get("WATTD_GPU_EVENTS") == "0" or not cuda.is_initialized():
            return None
    except AttributeError:  # still being imported
        return None
    return Stamps(cuda)
