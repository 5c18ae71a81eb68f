"""A device's counter held against its power readings: two tales of one thing that must agree.

A power reading is the mean of the last part of an update period (25 of 100 ms on an A100 or H100) and
is shown until the next. So the area under the readings as they are shown, from one moment to another, is
an estimate of the energy one period earlier. It sees a part of the time only: with power that swings as
in training it takes minutes until it is good to a per cent.
"""

import math

from wattd.history import History
from wattd.values import NANOSECONDS_PER_SECOND

STRETCH_NANO = 30 * NANOSECONDS_PER_SECOND
"""Shorter stretches are not compared."""

MEMORY_NANO = 600 * NANOSECONDS_PER_SECOND
"""A stretch of so long ago counts for 1/e."""

USUAL_UPDATE_NANO = 100_000_000

_LONGEST_SILENCE_NANO = 3 * NANOSECONDS_PER_SECOND


class Comparison:
    """Energy by counter over energy by power readings, over the last ten minutes or so.

    Attributes:
        ratio: That; None before the first stretch of 30 s in which both were read throughout.
        update_nano: The power reading's update period.
    """

    __slots__ = (
        "_area",
        "_begin_nano",
        "_counted",
        "_integrated",
        "_microjoules",
        "_watts",
        "ratio",
        "update_nano",
    )

    def __init__(self) -> None:
        self.ratio: float | None = None
        self.update_nano = USUAL_UPDATE_NANO
        self._area = History()
        self._microjoules = 0.0
        self._watts: float | None = None
        self._begin_nano = 0
        self._counted = self._integrated = 0.0

    def note_power(self, power_watts: float, nano: int) -> None:
        """Take a power reading, new or the same as before; the last one held until now."""
        last = self._area.last_nano
        if self._watts is not None and nano - last > _LONGEST_SILENCE_NANO:
            self.interrupt()
        if self._watts is not None and nano > last:
            self._microjoules += self._watts * (nano - last) / 1000
        self._area.append(nano, round(self._microjoules))
        self._watts = power_watts

    def interrupt(self) -> None:
        """Readings are missing, or the counter began anew: no stretch goes over this moment."""
        self._area = History()
        self._watts = None
        self._begin_nano = 0

    def compare(self, counter: History) -> None:
        """Renew the ratio if another stretch is complete.

        Args:
            counter: The device's counter.
        """
        end = min(counter.last_nano, self._area.last_nano - self.update_nano)
        if self._watts is None or end <= 0:
            return
        if not self._begin_nano and counter.at(end) is not None:
            self._begin_nano = end
        elapsed = end - self._begin_nano
        if not self._begin_nano or elapsed < STRETCH_NANO:
            return
        counted = counter.between(self._begin_nano, end)
        shown = self._area.between(self._begin_nano + self.update_nano, end + self.update_nano)
        self._begin_nano = end
        if counted is None or not shown:
            return
        kept = math.exp(-elapsed / MEMORY_NANO)
        self._counted = kept * self._counted + counted
        self._integrated = kept * self._integrated + shown
        self.ratio = self._counted / self._integrated
