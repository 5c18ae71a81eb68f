"""Reading each device when it is due, in one thread at a time.

Devices of most sensors are read together at the tick. One whose updates are slow and can be learned (a
GPU) is read ten times a second; while somebody wants its edges it is locked to its updates (edges.py).
"""

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from wattd.edges import Mode
from wattd.line import Call, Line, SensorHealth
from wattd.news import News
from wattd.schedule import TOGETHER_NANO, Schedule
from wattd.sensors import FOLLOWED, Channel, ReadingError, SensorLostError
from wattd.values import NANOSECONDS_PER_SECOND, READ_SECONDS_BUCKETS, Tick
from wattd.watchdog import Guard

IDLE_NANO = 100_000_000
"""A device that is not followed is read so often."""

_SLOW_CALL_NANO = 1_000_000
_PATIENCE_NANO = NANOSECONDS_PER_SECOND
"""A device that fails is tried at the tick for so long, then as rarely."""

_RETRY_NANO = 30 * NANOSECONDS_PER_SECOND
"""So long a call is waited for; then the device is asked again, off the clock."""


class Listener:
    """Who is told of what is no reading; as it stands, nobody."""

    def note_failed(self, line: Line, now: int, reason: str) -> None:
        """A device gave no reading; told at each attempt."""

    def note_recovered(self, line: Line, since: int, now: int) -> None:
        """A device that gave none since `since` gives readings again."""

    def note_reset(self, line: Line, since: int, now: int) -> None:
        """The counter could not be followed from `since` to `now`: what it counted is unknown."""


class Poller:
    """Reads devices when they are due; see the module's text.

    Attributes:
        lines: The devices, by their numbers.
        guard: Where the devices are called; a thread that loses it must stop polling.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        tick_nano: int,
        clock: Callable[[], int] = time.monotonic_ns,
        listener: Listener | None = None,
    ) -> None:
        """Plan the first readings.

        Args:
            lines: The devices; a line's number is its place.
            tick_nano: Time between two readings of a device that is read at the tick.
            clock: CLOCK_MONOTONIC, nanoseconds.
            listener: Who is told of failures, recoveries and resets.
        """
        self.lines = lines
        self._tick_nano = tick_nano
        self._clock = clock
        self._listener = listener or Listener()
        self.guard = Guard()
        self._hung: dict[int, Line] = {}
        self._tended_nano = 0
        self._due = deque[Line]()
        self._news, self._followed_news = News(), News()
        self._before = 0
        for line in lines:
            if line.channel.device.sensor in FOLLOWED:
                line.make_followers(tick_nano)
        self._schedule = Schedule([line for line in lines if line.followers is None], tick_nano)
        self.begin()

    def begin(self) -> None:
        """Plan the first readings, a tick from now; nothing was missed before."""
        now = self._clock()
        self._schedule.begin(now)
        for line in self.lines:
            if line.followers is not None:
                self._schedule.put(line, now + self._tick_nano)

    @classmethod
    def of(
        cls, channels: Sequence[Channel], tick_nano: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> "Poller":
        """A poller for channels alone, outside a daemon."""
        health: dict[str, SensorHealth] = {}
        lines = []
        for number, channel in enumerate(channels):
            name = channel.device.sensor
            lines.append(Line(channel, number, health.setdefault(name, SensorHealth(name))))
        return cls(lines, tick_nano, clock)

    @property
    def next_nano(self) -> int:
        """When the next device is due; FAR_NANO if none is."""
        return self._schedule.next_nano

    @property
    def missed_ticks(self) -> int:
        """Ticks that passed while nobody polled."""
        return self._schedule.missed_ticks

    def ticks(self, until_nano: int, sleep: Callable[[float], None] = time.sleep) -> Iterator[Tick]:
        """Wait and read until a moment; what was new at each wake, empty ticks included."""
        while (deadline := self.next_nano) < until_nano:
            now = self._clock()
            if now < deadline:
                sleep((deadline - now) / NANOSECONDS_PER_SECOND)
            now = self._clock()
            if not self.poll(now):
                return
            yield self.take_news().as_tick(now)

    def follow(self, line: Line, *, wanted: bool) -> None:
        """Lock to a device's updates, or let go; nothing changes for a device that is read at the tick."""
        line.is_followed = wanted
        if line.followers is None:
            return
        now = self._clock()
        energy, power = line.followers
        energy.stop()
        power.stop()
        if wanted:
            power.start(now)
            if line.channel.device.counter_range_microjoules is not None:
                energy.start(now)
        if line.deadline_nano and not line.failed_nano:
            self._plan(line, now)

    def poll(self, now: int, holder: int = 0) -> bool:
        """Read what is due at `now`; `take_news` has what was new.

        Args:
            now: The present.
            holder: The number under which the calling thread holds the guard.

        Returns:
            False if the guard was lost: the new holder's poll goes on.
        """
        due = self._due
        self._schedule.take_due(now, due)
        self._before = now
        if self.guard.late or self._hung:
            self._tend(now)
        while due:
            if not self._read(due.popleft(), holder):
                return False
        return True

    @property
    def has_news(self) -> bool:
        """Devices that are read at the tick had something new since their news were taken."""
        return bool(self._news)

    @property
    def has_followed_news(self) -> bool:
        """Devices that are not read at the tick had something new since their news were taken."""
        return bool(self._followed_news)

    def take_news(self, *, followed: bool = True) -> News:
        """What was new since the last call, and how long slow calls took.

        Args:
            followed: Also of the devices that are not read at the tick.
        """
        news, self._news = self._news, News()
        if followed and self._followed_news:
            news += self._followed_news
            self._followed_news = News()
        return news

    def shortest_update_nano(self) -> int:
        """The shortest period in which a quantity of a followed device changes; 0 where nobody knows."""
        return min(
            (
                follower.period_nano
                for line in self.lines
                if line.is_followed and line.followers is not None
                for follower in line.followers
                if follower.mode not in {Mode.OFF, Mode.REST}
            ),
            default=0,
        )

    def _read(self, line: Line, holder: int) -> bool:
        """Read a device and take what it shows; False if the guard was lost over it."""
        before = self._before
        if line.hung is not None or (line.failed_nano and before < line.retry_nano and not line.followers):
            return True
        if (line.is_lost or line.health.stuck) and line.away:
            self._fail(line, before, line.health.fault or line.away)
            return True
        call = self.guard.enter(line, before)
        self._ask(call)
        if not self.guard.leave(call, holder):
            return False
        self._before = call.after_nano
        self._take(call)
        return True

    def _ask(self, call: Call) -> None:
        """Make the call."""
        try:
            call.reading = call.line.channel.read(call.before_nano)
        except ReadingError as error:
            call.error = str(error)
            call.is_lost = isinstance(error, SensorLostError)
        call.after_nano = self._clock()

    def note_hung(self, call: Call) -> None:
        """A call hangs: its device is left alone until it returns; told by the watchdog."""
        line = call.line
        line.hung = call
        line.failed_nano = line.failed_nano or line.tracker.read_nano or call.before_nano
        line.retry_nano = call.before_nano + _RETRY_NANO
        self._hung[line.tracker.number] = line

    def _tend(self, now: int) -> None:
        """Take what came late; say what is down; ask anew what was waited for long enough."""
        late = self.guard.late
        while late:
            call = late.popleft()
            line = call.line
            line.health.stuck.discard(call)
            if line.hung is None or call.before_nano < line.tracker.read_nano:
                continue  # it was asked again meanwhile, and answered
            line.hung = None
            self._hung.pop(line.tracker.number, None)
            self._take(call)
        if now - self._tended_nano < IDLE_NANO:
            return
        self._tended_nano = now
        for line in list(self._hung.values()):
            seconds = (now - line.failed_nano) // NANOSECONDS_PER_SECOND
            self._listener.note_failed(line, now, f"a call has not returned for {seconds} s")
            if now >= line.retry_nano and not line.health.is_blocked:
                self._retry(line, now)

    def _retry(self, line: Line, now: int) -> None:
        """Ask a device whose call hangs once more, in a thread that may get stuck as well."""
        line.retry_nano = now + _RETRY_NANO
        call = Call(line, now)
        line.health.stuck.add(call)

        def ask() -> None:
            self._ask(call)
            self.guard.late.append(call)

        try:
            threading.Thread(target=ask, name="wattd-retry", daemon=True).start()
        except RuntimeError:
            line.health.stuck.discard(call)  # no room for a thread

    def _take(self, call: Call) -> None:
        """Take the result of a call, and plan the next."""
        line, reading, before, after = call.line, call.reading, call.before_nano, call.after_nano
        if reading is None:
            if call.is_lost:
                line.is_lost = True
                line.health.want_reopened(after)
            self._fail(line, before, line.health.fault or call.error)
            return
        tracker, health = line.tracker, line.health
        if line.failed_nano:
            self._listener.note_recovered(line, line.failed_nano, after)
            line.failed_nano = line.retry_nano = 0
        if line.is_lost:
            line.is_lost = False
            tracker.suspect_restart()
        last_nano, resets = tracker.read_nano, tracker.resets
        followers = line.followers
        news = self._news if followers is None else self._followed_news
        tracker.take(reading, before, after, news.energies, news.powers)
        took = after - before
        health.nanoseconds += took
        health.counts[bisect_left(READ_SECONDS_BUCKETS, took / NANOSECONDS_PER_SECOND)] += 1
        if took >= _SLOW_CALL_NANO:
            news.calls += (tracker.number, took // 1000)
        if tracker.resets != resets:
            self._listener.note_reset(line, last_nano, after)
        if followers is not None:
            if line.is_followed:
                followers[0].see(reading.energy_microjoules, before, after)
                followers[1].see(reading.power_watts, before, after)
            self._plan(line, before)

    def _fail(self, line: Line, now: int, reason: str) -> None:
        """No reading: try at the tick for a second, then once a second."""
        if not line.failed_nano:
            line.failed_nano = line.tracker.read_nano or now
        pause = _PATIENCE_NANO
        if now - line.failed_nano < _PATIENCE_NANO:
            pause = self._tick_nano
        elif line.health.is_reopening:
            pause = IDLE_NANO  # it may be back at any moment
        line.retry_nano = now + pause - self._tick_nano // 2  # ticks come a little early and late
        self._listener.note_failed(line, now, reason)
        if line.followers is not None:
            self._schedule.put(line, max(now, self._before) + pause)

    def _plan(self, line: Line, before: int) -> None:
        """When a device is read next: on the common grid, or when its followers want it."""
        now = max(before, self._before)  # a call that came late has its wishes in the past
        if line.is_followed and line.followers is not None:
            energy, power = line.followers
            longest = before + IDLE_NANO + max(energy.period_nano, power.period_nano)
            deadline = min(energy.next_nano, power.next_nano, longest)
        else:
            deadline = ((now + TOGETHER_NANO) // IDLE_NANO + 1) * IDLE_NANO
        self._schedule.put(line, max(now, deadline))
