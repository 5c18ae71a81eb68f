"""What a device showed: the edges of its counter and of its power reading, each within a bracket."""

from dataclasses import dataclass

import numpy as np

from wattq.counter import UNKNOWN, Floats, Ints


def _no_times() -> Ints:
    return np.zeros(0, dtype=np.int64)


def _no_values() -> Floats:
    return np.zeros(0, dtype=np.float64)


@dataclass(frozen=True)
class Evidence:
    """Raw readings of one device, in any order; columns of equal length for each quantity.

    Attributes:
        energy_read_nano: When each new value of the counter was first read, monotonic nanoseconds.
        energy_old_nano: When the old value was last read; `UNKNOWN` where it never was.
        energy_joules: The counter.
        power_read_nano: When each new power reading was first read, monotonic nanoseconds.
        power_old_nano: When the old reading was last read; `UNKNOWN` where it never was.
        power_watts: The power reading.
    """

    energy_read_nano: Ints
    energy_old_nano: Ints
    energy_joules: Floats
    power_read_nano: Ints
    power_old_nano: Ints
    power_watts: Floats

    @classmethod
    def of_counter(cls, read_nano: Ints, old_nano: Ints, joules: Floats) -> "Evidence":
        """Returns the evidence of a device that shows no power."""
        return cls(read_nano, old_nano, joules, _no_times(), _no_times(), _no_values())


@dataclass(frozen=True)
class Series:
    """A quantity at the moments at which it changed, in order.

    Attributes:
        moment: Middle of each bracket, monotonic nanoseconds, rising.
        bracket: Width of each bracket, nanoseconds.
        value: What was shown from then on: joules of a counter, watts of a power reading.
    """

    moment: Ints
    bracket: Ints
    value: Floats

    def between(self, begin: int, end: int) -> "Series":
        """Returns the part from `begin` to `end`, monotonic nanoseconds."""
        first, last = np.searchsorted(self.moment, [begin, end], side="left")
        return Series(self.moment[first:last], self.bracket[first:last], self.value[first:last])

    @property
    def period_seconds(self) -> float:
        """The usual time between changes, seconds; 0 with fewer than two."""
        return float(np.median(np.diff(self.moment))) / 1e9 if len(self.moment) > 1 else 0.0


def power_series(evidence: Evidence) -> Series:
    """Returns the changes of the power reading whose moment is known on both sides.

    A reading of 0 W is a blip of the driver and says nothing.
    """
    good = (evidence.power_old_nano != UNKNOWN) & (evidence.power_watts > 0)
    read, old = evidence.power_read_nano[good], evidence.power_old_nano[good]
    order = np.argsort(read, kind="stable")
    read, old, value = read[order], old[order], evidence.power_watts[good][order]
    moment = old + (read - old) // 2
    rising = np.ones(len(moment), dtype=bool)
    rising[1:] = moment[1:] > np.maximum.accumulate(moment)[:-1]
    return Series(moment[rising], (read - old)[rising], value[rising])
