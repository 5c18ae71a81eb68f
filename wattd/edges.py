"""Locked to a sensor's updates: learn when it shows something new, and ask only around that moment.

A GPU shows a new value every 20-100 ms, on a grid of its own, with a jitter of about a millisecond. A
`Follower` learns period and phase of one quantity from the edges it sees, and says when to read next so
that each edge is caught between two readings that are a millisecond apart. Readings before the edge
are the price: it starts early enough for the jitter seen so far, and stops at the edge. The number of
readings an update is bounded; where the jitter is too large for that, readings lie further apart.
"""

from enum import StrEnum
from itertools import pairwise

FAR_NANO = 1 << 62
"""A moment that does not come."""

_AFFORDABLE = 5.6
"""So many readings an update may take on average: six, less what a lock that is lost takes to be found."""

_MILLISECOND = 1_000_000
_BRACKET_NANO = 680_000
"""An edge is wanted between two readings this far apart, the call included: less than a millisecond
by as much as a thread wakes up late."""

_SHORTEST_STEP_NANO = 300_000
_SEARCH_STEP_NANO = 4 * _MILLISECOND
_CALLS_A_SEARCH_STEP = 20
"""Searching takes up at most this part of the driver's time, and of ours."""

_FAST_NANO = 3 * _MILLISECOND
_LEARN_EDGES = 6
_FEWEST_EDGES = 3
_LEARN_NANO = 1_500 * _MILLISECOND
_REST_NANO = 60_000 * _MILLISECOND
_SETTLE_NANO = 1_000 * _MILLISECOND
_LIVELY_NANO = 500 * _MILLISECOND
"""Two changes within this time wake a follower that rests."""

_FIRST_SPREAD_NANO = 1_200_000.0
_MARGIN_NANO = 400_000.0
_SPREADS = 3.0
"""A window opens so many mean deviations before the expected edge: about 2.4 standard deviations."""

_SURE = 0.85
"""If more updates than this share show a new value, one that is late is waited for."""

_MOST_MISSES = 2
_MOST_UNSEEN = 20
_MOST_FINDS = 5


class Mode(StrEnum):
    """What a follower is doing."""

    OFF = "off"
    LEARN = "learn"
    FIND = "find"
    LOCKED = "locked"
    FAST = "fast"
    REST = "rest"


class Follower:
    """Follows the updates of one quantity; see the module's text.

    Attributes:
        mode: OFF: nobody asks. LEARN: period unknown, read at close intervals. FIND: period known and
            phase not. LOCKED: reads around the expected edges. FAST: updates come faster than they can
            be followed, read at the tick. REST: it does not change; tried again later, and when it does.
        next_nano: When to read next; FAR_NANO if it has no wish.
        period_nano: The learned update period, nanoseconds; 0 while unknown.
    """

    __slots__ = (
        "_call_nano",
        "_count",
        "_due_nano",
        "_edges",
        "_faith",
        "_finds",
        "_misses",
        "_reads",
        "_seen_nano",
        "_since_nano",
        "_spread_nano",
        "_step_nano",
        "_stretch_nano",
        "_thrift",
        "_tick_nano",
        "_unseen",
        "_value",
        "mode",
        "next_nano",
        "period_nano",
    )

    def __init__(self, tick_nano: int) -> None:
        """Args: tick_nano: the time between readings of a quantity that is too fast to follow."""
        self._tick_nano = tick_nano
        self.mode = Mode.OFF
        self.next_nano = FAR_NANO
        self.period_nano = 0
        self._value: float | None = None
        self._seen_nano = 0
        self._call_nano = 0
        self._step_nano = _SEARCH_STEP_NANO
        self._due_nano = 0  # the expected edge
        self._spread_nano = _FIRST_SPREAD_NANO  # mean absolute deviation of edges from the expected
        self._faith = 1.0  # share of updates that show a new value
        self._thrift = 1.0
        self._reads = 0  # since the window was planned
        self._count = self._misses = self._unseen = self._finds = 0
        self._stretch_nano = 0
        self._edges: list[tuple[int, int]] = []
        self._since_nano = 0

    def start(self, now: int) -> None:
        """Follow from now on; a period learned before is kept, its phase is not."""
        self._finds = 0
        self._search(now)

    def stop(self) -> None:
        """Follow no longer."""
        self.mode = Mode.OFF
        self.next_nano = FAR_NANO

    def see(self, value: float | None, before: int, after: int) -> None:
        """Take a reading of the quantity, whoever asked for it.

        Args:
            value: What was shown; None if nothing was, which says nothing of an update.
            before: When it was asked.
            after: When it had answered.
        """
        self._call_nano += (after - before - self._call_nano) >> 3
        if value is None:
            if self.next_nano < before + self._step_nano // 2:
                self._wait(before)
            return
        lower, self._seen_nano = self._seen_nano, before
        if value == self._value or not lower:
            self._value = value
            if self.next_nano < before + self._step_nano // 2:
                self._wait(before)
            return
        self._value = value
        self._note_edge(lower, after, before)

    def _wait(self, before: int) -> None:
        """No edge yet: say when to look again."""
        mode = self.mode
        if mode is Mode.LOCKED:
            self._wait_locked(before)
        elif mode is Mode.LEARN or mode is Mode.FIND:
            self.next_nano = before + self._step_nano
            if before - self._since_nano > max(_LEARN_NANO, 3 * self.period_nano):
                self._give_up_search(before)
        elif mode is Mode.FAST:
            self.next_nano = before + self._tick_nano
        elif mode is Mode.REST:
            self._search(before)

    def _note_edge(self, lower: int, upper: int, before: int) -> None:
        """The value changed in (lower, upper]."""
        mode = self.mode
        if mode is Mode.LOCKED:
            self._note_locked(lower, upper, before)
        elif mode is Mode.LEARN:
            self.next_nano = before + self._step_nano
            self._learn(lower, upper, before)
        elif mode is Mode.FIND:
            self.next_nano = before + self._step_nano
            if upper - lower <= 2 * self._step_nano:
                self._lock((lower + upper) // 2, before)
        elif mode is Mode.FAST:
            self.next_nano = before + self._tick_nano
        elif mode is Mode.REST:
            last, self._due_nano = self._due_nano, before
            if before - last < _LIVELY_NANO and before - self._since_nano > _SETTLE_NANO:
                self._search(before)

    def _search(self, now: int) -> None:
        """Look for edges at close intervals; for the phase alone where the period is known."""
        self._since_nano = now
        self._edges.clear()
        self._finds += 1
        if self._finds > _MOST_FINDS:
            self.period_nano = 0
            self._finds = 1
        step = max(_SEARCH_STEP_NANO, _CALLS_A_SEARCH_STEP * self._call_nano)
        if self.period_nano:
            self.mode = Mode.FIND
            step = min(step, max(_MILLISECOND, self.period_nano // 6))
        else:
            self.mode = Mode.LEARN
        self._step_nano = step
        self.next_nano = now + step

    def _rest(self, now: int) -> None:
        self.mode = Mode.REST
        self._since_nano = now
        self._due_nano = 0
        self.next_nano = now + _REST_NANO

    def _give_up_search(self, now: int) -> None:
        """Time is up: what was seen must do, or there is nothing to follow."""
        if self.mode is Mode.FIND or not self._evaluate(_FEWEST_EDGES, now):
            self._rest(now)

    def _learn(self, lower: int, upper: int, now: int) -> None:
        edges = self._edges
        edges.append((lower, upper))
        if len(edges) < _LEARN_EDGES:
            return
        if edges[-1][1] - edges[0][1] > 1.15 * self._step_nano * (len(edges) - 1):
            self._evaluate(_LEARN_EDGES, now)
        elif len(edges) >= 2 * _LEARN_EDGES:
            # New at nearly every look: faster than we look, or noise.
            self._become_fast(now)

    def _become_fast(self, now: int) -> None:
        self.mode = Mode.FAST
        self.next_nano = now + self._tick_nano

    def _evaluate(self, fewest: int, now: int) -> bool:
        """Lock to the period of the edges, if they have one; else forget the oldest edge."""
        edges = self._edges
        if len(edges) < fewest:
            return False
        middles = [(lower + upper) // 2 for lower, upper in edges]
        steps = [later - earlier for earlier, later in pairwise(middles)]
        shortest = min(steps)
        # An update may show the old value again: a longer step is several periods.
        counts = [max(1, round(step / shortest)) for step in steps]
        period = sum(steps) / sum(counts)
        slack = 3 * _MILLISECOND + period / 10 + max(upper - lower for lower, upper in edges)
        if any(abs(step - count * period) > slack for step, count in zip(steps, counts, strict=True)):
            del edges[0]
            return False
        self.period_nano = round(period)
        if self.period_nano < _FAST_NANO:
            self._become_fast(now)
        else:
            self._lock(middles[-1], now)
        return True

    def _lock(self, edge: int, now: int) -> None:
        self.mode = Mode.LOCKED
        self._count = 2
        self._misses = self._unseen = 0
        self._spread_nano = _FIRST_SPREAD_NANO
        self._faith = self._thrift = 1.0
        self._reads = 0
        self._due_nano = edge + self.period_nano
        self._open_window(now)

    def _open_window(self, now: int) -> None:
        """Plan the readings around the next expected edge."""
        period = self.period_nano
        if self._due_nano + period // 2 < now:
            self._due_nano += ((now - self._due_nano) // period + 1) * period
        early = self._early_nano()
        # Where the readings run over what an update may take, the steps are widened until they do not.
        self._thrift = min(1.3, max(0.2, self._thrift * (1 + (_AFFORDABLE - self._reads) / 64)))
        self._reads = 0
        affordable = int(early / (_AFFORDABLE * self._thrift))
        step = max(_BRACKET_NANO - self._call_nano, _SHORTEST_STEP_NANO, affordable)
        self._step_nano = self._stretch_nano = step
        self.next_nano = max(self._due_nano - early, now + step)

    def _early_nano(self) -> int:
        """So long before (and after) the expected edge it is looked for."""
        spread_nano = self._spread_nano * (1 + 0.1 * self._unseen)
        return int(min(_SPREADS * spread_nano + _MARGIN_NANO, 0.45 * self.period_nano))

    def _wait_locked(self, before: int) -> None:
        """Inside the window: a step on. Past it: ever longer steps, then it is the next update's turn."""
        self._reads += 1
        early, step = self._early_nano(), self._step_nano
        if before <= self._due_nano + early:
            # Few edges come so early that they lie in the first gap of a wide window: it may be wide, too.
            is_first = early > 4 * step and before < self._due_nano - early + step // 2
            self.next_nano = before + (step * 8 // 5 if is_first else step)
            return
        if self._faith > _SURE and before < self._due_nano + self.period_nano // 2:
            self._stretch_nano = self._stretch_nano * 8 // 5
            self.next_nano = before + self._stretch_nano
            return
        self._unseen += 1
        self._faith -= self._faith / 8
        self._due_nano += self.period_nano
        if self._unseen > _MOST_UNSEEN:
            self._rest(before)
        else:
            self._open_window(before)

    def _note_locked(self, lower: int, upper: int, before: int) -> None:
        """Correct period and phase by an edge; one that was missed widens the next window."""
        self._reads += 1
        due, period = self._due_nano, self.period_nano
        is_narrow = upper - lower <= 3 * self._step_nano
        # Of an edge that nobody saw well, only that much is learned: it was not outside (lower, upper].
        edge = (lower + upper) // 2 if is_narrow else min(max(due, lower), upper)
        error = edge - due
        self._faith += (1.0 - self._faith) / 8
        if not is_narrow and error < 0:
            self._misses += 1
            self._spread_nano = min(1.5 * self._spread_nano + _MARGIN_NANO, period / 8)
            if self._misses >= _MOST_MISSES:
                self._search(before)
                return
            self._due_nano = edge + period
        else:
            self._misses = 0
            self._correct(error)
        self._unseen = 0
        self._open_window(before)

    def _correct(self, error: int) -> None:
        """An alpha-beta filter whose gains begin with those of a straight line through all edges.

        The floor of the first fits a grid with jitter and one whose jitter adds up nearly as well.
        """
        self._count = count = min(self._count + 1, 100)
        phase_gain = max(0.5, (4 * count - 2) / (count * (count + 1)))
        period_gain = max(0.02, 6 / (count * (count + 1)))
        self._spread_nano += (abs(error) - self._spread_nano) / 8
        self.period_nano += round(period_gain * error / (1 + self._unseen))
        self._due_nano += round(phase_gain * error) + self.period_nano
        if count == 16:
            self._finds = 0
