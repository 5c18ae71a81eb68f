"""The clock of a GPU as a condition of its phases: at another clock the same phase draws another power."""

from dataclasses import dataclass

import numpy as np

from wattq.counter import Floats, Ints

# Clocks that differ by less are one state; a state that is rarer counts as the nearest that is not.
_SPREAD = 0.03
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Clock:
    """The clock of a GPU, as sampled.

    Attributes:
        nano: When, monotonic nanoseconds, in order.
        hertz: The clock.
    """

    nano: Ints
    hertz: Floats

    def states(self, begin: int, end: int, moments: Ints) -> Ints | None:
        """Returns the number of the clock's state at each moment, by the nearest sample.

        Args:
            begin: Begin of the run, monotonic nanoseconds.
            end: Its end.
            moments: Monotonic nanoseconds.

        Returns:
            Numbers from 0; None where the clock's spread over the run is within 3 %.
        """
        inside = (self.nano >= begin) & (self.nano <= end) & (self.hertz > 0)
        nano, hertz = self.nano[inside], self.hertz[inside]
        if len(hertz) < 2:
            return None
        low, high = np.percentile(hertz, [5, 95])
        if high <= (1 + _SPREAD) * low:
            return None
        step = np.rint(np.log(hertz / low) / np.log(1 + 2 * _SPREAD)).astype(np.int64)
        known, count = np.unique(step, return_counts=True)
        frequent = known[count >= _LEAST_SHARE * len(step)]
        if len(frequent) < 2:
            return None
        after = np.clip(np.searchsorted(nano, moments), 1, len(nano) - 1)
        nearest = after - (moments - nano[after - 1] < nano[after] - moments)
        away = np.abs(step[nearest][:, None] - frequent[None, :])
        return np.asarray(away.argmin(axis=1), dtype=np.int64)
