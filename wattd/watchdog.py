"""A sensor's call that does not return must not hold up the others.

Whoever calls sensors in a loop does so at a `Guard`: one thread at a time holds it. The `Watchdog` sees
a call that lasts too long, takes the guard from the thread that is stuck in it and lets another thread
go on. A stuck thread that comes back finds itself no longer the holder, leaves its result in
`Guard.late` for the new one, and ends. One that never comes back is abandoned; MOST_STUCK of a sensor's
calls may be, then no further thread is risked on it.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from wattd.line import Call, Line
from wattd.values import NANOSECONDS_PER_SECOND

HUNG_NANO = 20_000_000
"""A call on the clock that lasts longer is taken for hung."""

_BETWEEN_NANO = 5_000_000
"""The watchdog looks this much after a call that is not yet made would hang: half-way between two
ticks of the usual rate, where it is in nobody's way."""

_LONGEST_LOOK_NANO = NANOSECONDS_PER_SECOND


class Guard:
    """Who holds a loop of sensor calls, and which call it is in.

    Attributes:
        holder: Number of the thread that holds it.
        idle_until_nano: The holder is not in a call before.
        late: Calls that returned to a thread which had lost the guard.
    """

    __slots__ = ("_calling", "_hung_nano", "_lock", "holder", "idle_until_nano", "late")

    def __init__(self, hung_nano: int = HUNG_NANO) -> None:
        """Args: hung_nano: a call that lasts longer is taken for hung."""
        self._lock = threading.Lock()
        self._hung_nano = hung_nano
        self._calling: Call | None = None
        self.holder = 0
        self.idle_until_nano = 0
        self.late: deque[Call] = deque()

    def enter(self, line: Line, now: int) -> Call:
        """A call is about to be made."""
        self._calling = call = Call(line, now)
        return call

    def leave(self, call: Call, holder: int) -> bool:
        """A call has returned.

        Returns:
            Whether the thread still holds the guard. If not, the call is in `late`, and the thread must end.
        """
        with self._lock:
            if self.holder == holder:
                self._calling = None
                return True
        self.late.append(call)
        return False

    def take_over(self, now: int) -> Call | None:
        """Take the guard from a thread whose call hangs.

        Returns:
            That call; None if none hangs.
        """
        call = self._calling
        if call is None or now - call.before_nano <= self._hung_nano:
            return None
        with self._lock:
            if self._calling is not call:
                return None  # it returned this very moment
            self.holder += 1
            self._calling = None
            call.line.health.stuck.add(call)
        return call

    def next_look_nano(self, now: int) -> int:
        """When a call can be found to hang: of the one under way, else of the next."""
        call = self._calling
        if call is not None:
            return call.before_nano + self._hung_nano + 1
        return max(now, self.idle_until_nano) + self._hung_nano + _BETWEEN_NANO


class Post(NamedTuple):
    """A loop of sensor calls.

    Attributes:
        name: Of its threads.
        guard: Where it calls.
        work: Runs in a thread, told the number under which it holds the guard; ends when it has lost it.
        note_hung: Told a call that hangs, before the next thread goes on.
    """

    name: str
    guard: Guard
    work: Callable[[int], None]
    note_hung: Callable[[Call], None]


class Watchdog:
    """Starts the threads of posts, and others in their places."""

    def __init__(self, posts: list[Post], clock: Callable[[], int]) -> None:
        """Args: posts: what to look after; clock: CLOCK_MONOTONIC, nanoseconds."""
        self._posts = posts
        self._clock = clock
        self._threads: list[threading.Thread | None] = [None] * len(posts)
        self._begun_nano = [0] * len(posts)
        self._is_ending = False

    def start(self) -> None:
        """Begin the work of every post."""
        for number in range(len(self._posts)):
            self._employ(number)

    def look(self) -> float:
        """Replace every thread that hangs, could not be started before, or died of a fault of ours.

        Returns:
            Seconds until it is worth while to look again.
        """
        pause = _LONGEST_LOOK_NANO
        for number, post in enumerate(self._posts):
            call = post.guard.take_over(self._clock())
            if call is not None:
                post.note_hung(call)
                self._threads[number] = None
            now = self._clock()
            thread = self._threads[number]
            is_dead = thread is not None and not thread.is_alive()
            if thread is None or (is_dead and now - self._begun_nano[number] > _LONGEST_LOOK_NANO):
                self._employ(number)
            pause = min(pause, max(0, post.guard.next_look_nano(now) - now))
        return pause / NANOSECONDS_PER_SECOND

    def join(self, seconds: float) -> None:
        """Wait for the threads, which were told to end; those that are stuck end with the process."""
        self._is_ending = True
        deadline = self._clock() + round(seconds * NANOSECONDS_PER_SECOND)
        while any(thread and thread.is_alive() for thread in self._threads) and self._clock() < deadline:
            self.look()
            for thread in self._threads:
                if thread is not None:
                    thread.join(HUNG_NANO / NANOSECONDS_PER_SECOND)

    def _employ(self, number: int) -> None:
        if self._is_ending:
            return
        post = self._posts[number]
        thread = threading.Thread(target=post.work, args=(post.guard.holder,), name=post.name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no room for a thread: tried again at the next look
        self._threads[number] = thread
        self._begun_nano[number] = self._clock()
