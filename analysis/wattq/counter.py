"""The counter of one device as evidence: its edges, what power is plausible, and where it is blind."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ROUNDING_NANO = 5_000
"""Two times of the same reading in an archive lie closer than this."""

NANO = 1_000_000_000
# Stands for a time that is not known.
UNKNOWN = -1
# An interval between updates that is longer than this many usual ones, and than the floor, is a gap in the
# evidence.
GAP_UPDATES = 5
GAP_FLOOR_NANO = NANO // 2
# A known power limit is kept over milliseconds only on average.
LIMIT_MARGIN = 1.05
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Device:
    """What a device is.

    Attributes:
        node: Node it belongs to.
        device: UUID, else a stable name.
        domain: One of `gpu package core uncore dram psys node module`.
        source: `measured`, `estimated` or `simulated`.
        sensor: Name of the sensor that reads it.
        update_nano: Nominal update period, nanoseconds; `None` when it is not known.
        uncertainty_ratio: Half-width of an estimate's interval as a share of the energy; `None` for the rest.
        power_limit_watts: Highest power limit seen, or the most an estimate can say; `None` when not known.
    """

    node: str
    device: str
    domain: str
    source: str
    sensor: str
    update_nano: int | None = None
    uncertainty_ratio: float | None = None
    power_limit_watts: float | None = None


@dataclass(frozen=True)
class Readings:
    """Raw readings of one device, in any order.

    Attributes:
        read: When the counter was read, monotonic nanoseconds.
        old: Last reading that still showed the old value, monotonic nanoseconds; `UNKNOWN` where not known.
        energy: Counter, joules.
        low_watts: Lowest power reading; `nan` when there is none.
        high_watts: Highest power reading; `nan` when there is none.
    """

    read: Ints
    old: Ints
    energy: Floats
    low_watts: float = float("nan")
    high_watts: float = float("nan")


@dataclass(frozen=True)
class Counter:
    """Edges of a cumulative counter.

    Attributes:
        edge: When each value became true (the middle of its bracket), monotonic nanoseconds, rising.
        bracket: Width of each edge's bracket, nanoseconds.
        energy: The counter from each edge on, joules, rising.
        period: The usual time between updates, nanoseconds; 0 with fewer than two.
        low_watts: Lowest power reading; `nan` when there is none.
        high_watts: Highest power reading; `nan` when there is none.
    """

    edge: Ints
    bracket: Ints
    energy: Floats
    period: int
    low_watts: float = float("nan")
    high_watts: float = float("nan")

    def at(self, time: Ints) -> Floats:
        """Returns what was counted since the first edge: straight between edges, flat beyond, joules."""
        if not len(self.edge):
            return np.zeros(len(time), dtype=np.float64)
        before = np.clip(np.searchsorted(self.edge, time, side="right") - 1, 0, max(len(self.edge) - 2, 0))
        after = np.minimum(before + 1, len(self.edge) - 1)
        # Differences first: nanoseconds since boot do not fit a float for ever.
        span = np.maximum(self.edge[after] - self.edge[before], 1)
        part = np.clip((time - self.edge[before]) / span, 0.0, 1.0)
        energy = self.energy[before] + (self.energy[after] - self.energy[before]) * part
        return np.asarray(energy - self.energy[0])

    def rise(self, start: Ints, stop: Ints) -> Floats:
        """Returns how much the counter rose from each start to its stop, joules."""
        if not len(start):
            return np.zeros(0, dtype=np.float64)
        moments = self.at(np.append(start, stop[-1:]))
        # Where a stretch ends as the next begins, which is nearly everywhere, one look-up serves both.
        touch = np.append(start[1:] == stop[:-1], True)
        ends = moments[1:].copy()
        ends[~touch] = self.at(stop[~touch])
        return np.asarray(ends - moments[:-1])

    @cached_property
    def extreme_means(self) -> tuple[float, float]:
        """Lowest and highest mean power of an interval between edges, watts; `nan` when there is none."""
        lows, highs = list[float](), list[float]()
        # In blocks: a node-day at 100 Hz is not to be copied several times.
        for first in range(0, len(self.edge) - 1, _BLOCK):
            span = np.diff(self.edge[first : first + _BLOCK + 1]) / NANO
            # A short interval's mean is mostly the error of its two edges.
            usual = span >= self.period / NANO / 2
            means = np.diff(self.energy[first : first + _BLOCK + 1])[usual] / span[usual]
            if len(means):
                lows.append(float(means.min()))
                highs.append(float(means.max()))
        return (min(lows), max(highs)) if lows else (float("nan"), float("nan"))

    def power(self, interval: Ints) -> Floats:
        """Returns the mean power from edge `interval` to the next, watts."""
        span = (self.edge[interval + 1] - self.edge[interval]) / NANO
        return np.asarray((self.energy[interval + 1] - self.energy[interval]) / span)

    def between(self, begin: int, end: int) -> "Counter":
        """Returns the edges that tell of a stretch of time: those inside and one on either side."""
        first = max(int(np.searchsorted(self.edge, begin, side="right")) - 1, 0)
        last = min(int(np.searchsorted(self.edge, end, side="left")) + 1, len(self.edge))
        if (first, last) == (0, len(self.edge)):
            return self
        kept = slice(first, last)
        edge = self.edge[kept]
        period = int(np.median(np.diff(edge))) if len(edge) > 1 else self.period
        return Counter(edge, self.bracket[kept], self.energy[kept], period, self.low_watts, self.high_watts)


def in_order(read: Ints, old: Ints, value: Floats) -> tuple[Ints, Ints, Floats]:
    """Returns readings of a counter, or others, in the order in which they were read.

    The copy of a counter in a line of each second has no earlier side, and its time is rounded otherwise than
    that of the update itself, which must come first.
    """
    unknown = old == UNKNOWN
    time = read + np.where(unknown, _ROUNDING_NANO, 0) if unknown.any() else read
    if (time[1:] >= time[:-1]).all():
        return read, old, value
    order = np.argsort(time, kind="stable")
    return read[order], old[order], value[order]


def _is_news(energy: Floats) -> Bools:
    """Returns which readings, in order, show more than all before them."""
    news = np.ones(len(energy), dtype=bool)
    news[1:] = energy[1:] > np.maximum.accumulate(energy)[:-1]
    return news


def thinned(read: Ints, old: Ints, energy: Floats) -> tuple[Ints, Ints, Floats]:
    """Returns a stretch of readings in order, without those that change nothing that `locate` finds.

    A reading that shows nothing new is dropped, unless it tells the next one its earlier side.
    """
    read, old, energy = in_order(read, old, energy)
    kept = _is_news(energy)
    kept[:-1] |= kept[1:] & (old[1:] == UNKNOWN)
    kept[-1:] = True
    return read[kept], old[kept], energy[kept]


def locate(readings: Readings, update_nano: int | None = None) -> Counter:
    """Finds the counter's edges in its readings.

    A reading that shows nothing new is left out. An edge lies between the last reading of the old value and
    the first of the new one, and not earlier than one nominal update before it was read, where the sensor's
    period is known.

    Args:
        readings: The readings.
        update_nano: Nominal update period of the sensor, nanoseconds.
    """
    read, old, energy = in_order(readings.read, readings.old, readings.energy)
    news = np.flatnonzero(_is_news(energy))
    # Nearly always all of it: then a node-day is not copied.
    whole = len(news) == len(read)
    before = read[news[old[news] == UNKNOWN] - 1]
    read, old, energy = (read, old.copy(), energy) if whole else (read[news], old[news], energy[news])
    unknown = np.flatnonzero(old == UNKNOWN)
    if len(unknown):
        usual = int(np.median(np.diff(read))) if len(read) > 1 else (update_nano or 0)
        earliest, seen = read[unknown] - usual, before < read[unknown]
        old[unknown] = np.where(seen & (unknown > 0), np.maximum(before, earliest), earliest)
    if update_nano:
        np.maximum(old, read - update_nano, out=old)
    bracket = read - old
    edge = old
    edge += bracket >> 1
    rising = np.ones(len(edge), dtype=bool)
    rising[1:] = edge[1:] > np.maximum.accumulate(edge)[:-1]
    if not rising.all():
        edge, bracket, energy = edge[rising], bracket[rising], energy[rising]
    period = int(np.median(np.diff(edge))) if len(edge) > 1 else 0
    return Counter(edge, bracket, energy, period, readings.low_watts, readings.high_watts)


def power_bounds(counter: Counter, limit_watts: float | None, *, blurred: bool) -> tuple[float, float]:
    """Returns the lowest and highest power that is plausible for any moment, watts.

    What was seen is the mean over an update. Where most updates lie inside one phase, no phase can be far
    beyond what was seen. Where the updates are blurred over several phases, the extremes are hidden: then
    only the power limit bounds from above, else twice the highest mean, and nothing bounds from below.

    Args:
        counter: Edges over the run and a little around it.
        limit_watts: The device's power limit; `None` when it is not known.
        blurred: Most of the time lies in updates that phases share.
    """
    seen = np.array([*counter.extreme_means, counter.low_watts, counter.high_watts])
    seen = seen[~np.isnan(seen)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    margin = 0.25 * (high - low) + 0.05 * high
    if not blurred:
        return max(low - margin, 0.0), high + margin
    return 0.0, max(high, LIMIT_MARGIN * limit_watts if limit_watts else 2 * high)


def blind_spots(counter: Counter, gaps: Ints, windows: list[tuple[int, int]]) -> Ints:
    """Returns where the counter says too little.

    That is: in long intervals and recorded gaps, before the first edge and after the last.

    Args:
        counter: Edges over the run.
        gaps: Recorded gaps, one row (begin, end) each, monotonic nanoseconds.
        windows: When the run ran.

    Returns:
        Disjoint stretches in order, one row (begin, end) each, monotonic nanoseconds.
    """
    limit = max(GAP_UPDATES * counter.period, GAP_FLOOR_NANO)
    begin, end = windows[0][0], windows[-1][1]
    edge = counter.edge
    if not len(edge):
        return np.array([[begin, end]], dtype=np.int64)
    long = np.flatnonzero(np.diff(edge) > limit)
    spots = [np.column_stack([edge[long], edge[long + 1]]), gaps.reshape(-1, 2)]
    spots.append(np.array([[begin, edge[0]], [edge[-1], end]], dtype=np.int64))
    every = np.vstack(spots)
    every = every[every[:, 1] > every[:, 0]]
    every = every[np.argsort(every[:, 0], kind="stable")]
    if not len(every):
        return every
    reach = np.maximum.accumulate(every[:, 1])
    first = np.append(True, every[1:, 0] > reach[:-1])
    last = np.append(first[1:], True)
    return np.column_stack([every[first, 0], reach[last]])


def time_within(spots: Ints, time: Ints) -> Ints:
    """Returns how much of disjoint spots in order lies before each moment, nanoseconds."""
    if not len(spots):
        return np.zeros(len(time), dtype=np.int64)
    length = spots[:, 1] - spots[:, 0]
    total = np.concatenate([[0], np.cumsum(length)])
    place = np.searchsorted(spots[:, 0], time, side="right") - 1
    inside = np.clip(time - spots[place, 0], 0, length[place])
    return np.where(place >= 0, total[place] + inside, 0)
