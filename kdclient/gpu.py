"""From recorded events to the host's time, in the sender's thread: nothing here waits for the GPU long.

Three things keep the training unharmed. The thread's capture mode is relaxed, so that asking for an event
does not break a CUDA graph that another thread is capturing. Its device is set before anything is asked,
so that no context is made on a GPU that the program does not use. And an anchor is an event on the
default stream, which the program's own kernels need not wait for, or a close look at an event that is
under way; neither synchronises.
"""

import ctypes
from collections import deque
from collections.abc import Callable
from time import monotonic_ns, sleep
from typing import Any

from kdclient.gpuclock import GpuClock
from kdclient.stamps import Stamp, Stamps

_GOOD_NANO = 50_000
_FAIR_NANO = 200_000
_MOST_NANO = 10_000_000
_MOST_WAIT_NANO = 1_000_000_000
_FIRST_NANO = 2_000_000_000
_OFTEN_NANO = 150_000_000
_SELDOM_NANO = 1_000_000_000
_MANY_STREAMS = 64
_SPIN_NANO = 50_000
_LOOK_NANO = 2_000_000
_LONG_LOOK_NANO = 20_000_000
_PAUSE_SECONDS = 5e-5
_CAPTURE_MODE_RELAXED = 2


def relax() -> bool:
    """Let this thread ask for events while another captures a CUDA graph; whether that worked."""
    try:
        mode = ctypes.c_int(_CAPTURE_MODE_RELAXED)
        library = ctypes.CDLL("libcuda.so.1")  # CUDA was started: it is loaded already
        return int(library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))) == 0
    except (OSError, AttributeError):
        return False


class _Device:
    """One GPU: its events under way, its chain of positions, its clock."""

    def __init__(self, now_nano: int) -> None:
        self.streams: dict[int, deque[Stamp]] = {}
        self.clock = GpuClock()
        self.unmapped: list[tuple[float, int, Stamp]] = []
        self.reference: Any = None
        self.position = 0.0
        self.last = (-1e18, 0)
        self.first_nano = now_nano
        self.anchor_nano = now_nano
        self.back_off_nano = _OFTEN_NANO
        self.is_used = False

    def is_under_way(self) -> bool:
        return any(self.streams.values())

    def await_anchor(self, now_nano: int, *, found: bool) -> None:
        """Say when the next anchor is due: soon while the drift is not known, and where one was missed."""
        if found:
            self.back_off_nano = _OFTEN_NANO
            self.is_used = self.is_under_way()
            is_known = now_nano - self.first_nano > _FIRST_NANO and not self.unmapped
            self.anchor_nano = now_nano + (_SELDOM_NANO if is_known else _OFTEN_NANO)
        else:
            self.anchor_nano = now_nano + self.back_off_nano
            self.back_off_nano = min(2 * self.back_off_nano, _SELDOM_NANO)
        if len(self.streams) > _MANY_STREAMS:
            self.streams = {number: stream for number, stream in self.streams.items() if stream}


class GpuMarks:
    """Finds out when the GPU reached each stamp."""

    def __init__(
        self,
        stamps: Stamps,
        *,
        relax: Callable[[], bool],
        clock: Callable[[], int] = monotonic_ns,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        """Begin, in the thread that will call `turn`.

        Args:
            stamps: Where stamps are recorded.
            relax: Relaxes the thread's capture mode; see `relax`.
            clock: CLOCK_MONOTONIC in nanoseconds.
            pause: Sleeps for so many seconds.
        """
        self._stamps = stamps
        self._clock = clock
        self._pause = pause
        self._devices: dict[int, _Device] = {}
        self._works = relax()
        if not self._works:
            stamps.fail()

    def turn(self, *, hurry: bool = False) -> None:
        """Settle what can be settled now; takes at most some 20 ms.

        Args:
            hurry: Somebody waits: a fair error will do.
        """
        try:
            self._collect()
            if self._works:
                for number, device in self._devices.items():
                    self._look(number, device, hurry=hurry)
        except Exception:  # noqa: BLE001 - whatever ails the device, the training's own call will say it
            self._fail()

    def _fail(self) -> None:
        """CUDA has failed: no event will say anything any more."""
        self._works = False
        self._stamps.fail()
        for device in self._devices.values():
            for stream in device.streams.values():
                for stamp in stream:
                    stamp.reason = "failed"
            for _, _, stamp in device.unmapped:
                stamp.reason = "failed"
        self._devices.clear()
        self._collect()

    def _collect(self) -> None:
        recorded = self._stamps.recorded
        while recorded:
            stamp = recorded.popleft()
            if not self._works:
                stamp.reason = "failed"
                continue
            device = self._devices.get(stamp.device)
            if device is None:
                device = self._devices[stamp.device] = _Device(self._clock())
            device.streams.setdefault(stamp.stream, deque()).append(stamp)
            device.is_used = True

    def _look(self, number: int, device: _Device, *, hurry: bool) -> None:
        if not (device.is_used or device.unmapped or device.is_under_way()):
            return
        self._stamps.cuda.set_device(number)
        self._drain(number, device)
        now = self._clock()
        if now >= device.anchor_nano and (device.is_used or device.unmapped):
            found = self._anchor(number, device)
            device.await_anchor(now, found=found)
        self._map(device, _FAIR_NANO if hurry else _GOOD_NANO)

    def _drain(self, number: int, device: _Device) -> bool:
        """Ask for the oldest event of each stream, and go on while they are done; whether one was."""
        found = False
        for stream in device.streams.values():
            while stream:
                stamp = stream[0]
                asked = self._clock()
                if not stamp.event.query():
                    stamp.low_nano = max(stamp.low_nano, asked)
                    break
                seen = self._clock()
                stream.popleft()
                self._chain(number, device, stamp, min(seen, stamp.high_nano or seen))
                found = True
        return found

    def _chain(self, number: int, device: _Device, stamp: Stamp, seen_nano: int) -> None:
        """Place an event on the GPU's own clock, from the event before it: a float32 bears no long times."""
        event, stamp.event = stamp.event, None
        if device.reference is not None:
            device.position += device.reference.elapsed_time(event) * 1e6
            self._stamps.give_back(number, device.reference)
        device.reference = event
        device.clock.bound(device.position, stamp.low_nano, seen_nano)
        device.unmapped.append((device.position, seen_nano, stamp))

    def _anchor(self, number: int, device: _Device) -> bool:
        """Catch an event between two looks: one under way, else one of our own that is reached at once."""
        limit = _LONG_LOOK_NANO
        if not device.is_under_way():
            limit = _LOOK_NANO
            stamp = Stamp(self._clock())
            self._stamps.record(stamp, self._stamps.cuda.default_stream(number))
            if stamp.event is None:
                return False
        began = self._clock()
        self._collect()
        while not self._drain(number, device):
            spent = self._clock() - began
            if spent > limit:
                return False
            if limit != _LOOK_NANO or spent > _SPIN_NANO:
                self._pause(_PAUSE_SECONDS)
        return True

    def _map(self, device: _Device, good_nano: int) -> None:
        """Say the host's time of events whose error is small enough, or will not get smaller soon."""
        line = device.clock.line() if device.unmapped else None
        if line is None:
            return
        now = self._clock()
        waiting = []
        # In the order of the GPU: two edges never change places for being placed by different lines.
        for position, seen_nano, stamp in sorted(device.unmapped, key=lambda known: known[0]):
            nano, error = line.at(position)
            if error > good_nano and now - seen_nano < _MOST_WAIT_NANO:
                waiting.append((position, seen_nano, stamp))
            elif error > _MOST_NANO:
                stamp.reason = "no_anchor"
            else:
                self._settle(device, stamp, position, nano, error)
        device.unmapped = waiting

    @staticmethod
    def _settle(device: _Device, stamp: Stamp, position: float, nano: float, error: float) -> None:
        last_position, last_nano = device.last
        whole = round(nano)
        if position >= last_position:
            whole = max(whole, last_nano)
            device.last = (position, whole)
        else:
            whole = min(whole, last_nano)
        stamp.error_nano = round(error + abs(whole - nano))
        stamp.nano = whole  # last: it says that all is there
