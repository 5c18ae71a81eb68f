"""Rises of the counter and power readings, in one order, as the regression wants them."""

from dataclasses import dataclass

import numpy as np

from wattq.counter import NANO, Counter, Floats, Ints
from wattq.evidence import Series
from wattq.stretches import Bools

# A rise of the counter over so many usual periods spans a gap in the evidence.
_GAP_PERIODS = 5.0
_LEAST_BRACKET_SECONDS = 1e-5


@dataclass(frozen=True)
class Observations:
    """Rises of the counter and power readings, in the order of their ends; seconds from the run's begin.

    Attributes:
        begin: Edge before the one at the end, of a rise of the counter; `nan` for a power reading.
        end: Moment of the edge.
        value: Joules of a rise, watts of a reading.
        is_power: It is a power reading.
        begin_half: Half the bracket in which the begin lies, seconds; of a reading, that of its end.
        end_half: Half the bracket in which the end lies.
        follower: Number of the rise that begins where this one ends; -1 where there is none.
    """

    begin: Floats
    end: Floats
    value: Floats
    is_power: Bools
    begin_half: Floats
    end_half: Floats
    follower: Ints

    def pick(self, keep: Ints) -> "Observations":
        """Returns some of them, given by rising number."""
        place = np.full(len(self.end) + 1, -1)
        place[keep] = np.arange(len(keep))
        return Observations(
            self.begin[keep],
            self.end[keep],
            self.value[keep],
            self.is_power[keep],
            self.begin_half[keep],
            self.end_half[keep],
            place[self.follower[keep]],
        )

    def between(self, begin: float, end: float) -> "Observations":
        """Returns those that end after `begin`, begin after it too, and end before `end`."""
        starts = np.where(self.is_power, self.end, self.begin)
        return self.pick(np.flatnonzero((starts >= begin) & (self.end <= end)))

    def outside(self, gaps: Floats) -> "Observations":
        """Returns those that no gap lies in or beside; gaps are rows (begin, end), seconds."""
        starts = np.where(self.is_power, self.end - self.end_half, self.begin - self.begin_half)
        before = np.searchsorted(np.sort(gaps[:, 1]), starts, side="left")
        after = np.searchsorted(np.sort(gaps[:, 0]), self.end + self.end_half, side="right")
        return self.pick(np.flatnonzero(before == after))

    def rises(self) -> "Observations":
        """Returns those of the counter."""
        return self.pick(np.flatnonzero(~self.is_power))


def observations(counter: Counter, power: Series, origin: int, least_seconds: float) -> Observations:
    """Puts rises of the counter and power readings into one order.

    Args:
        counter: The counter's edges.
        power: The power reading's edges.
        origin: Moment from which seconds are counted, monotonic nanoseconds.
        least_seconds: Edges of the counter that come faster than this are thinned out.
    """
    edge, half, energy = (counter.edge - origin) / NANO, _half(counter.bracket), counter.energy
    usual = counter.period / NANO
    if usual < least_seconds:
        kept = _thinned(edge, least_seconds)
        edge, half, energy, usual = edge[kept], half[kept], energy[kept], least_seconds
    number = np.flatnonzero(np.diff(edge) < _GAP_PERIODS * usual)
    ends = np.concatenate([edge[number + 1], (power.moment - origin) / NANO])
    order = np.argsort(ends, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    follower = np.full(len(order), -1)
    linked = np.flatnonzero(np.diff(number) == 1)
    follower[place[linked]] = place[linked + 1]
    count = len(power.moment)
    power_half = _half(power.bracket)
    return Observations(
        begin=np.concatenate([edge[number], np.full(count, np.nan)])[order],
        end=ends[order],
        value=np.concatenate([np.diff(energy)[number], power.value])[order],
        is_power=np.concatenate([np.zeros(len(number), bool), np.ones(count, bool)])[order],
        begin_half=np.concatenate([half[number], power_half])[order],
        end_half=np.concatenate([half[number + 1], power_half])[order],
        follower=follower,
    )


def _half(bracket: Ints) -> Floats:
    """Returns half of each bracket, seconds."""
    return np.asarray(np.maximum(bracket / NANO, _LEAST_BRACKET_SECONDS) / 2)


def _thinned(edge: Floats, least: float) -> Ints:
    """Returns the first edge of each stretch of `least` seconds."""
    slot = np.floor((edge - edge[0]) / least)
    return np.flatnonzero(np.append(True, slot[1:] > slot[:-1]))
