"""A device's counter over the last minute, for whatever is computed live."""

from bisect import bisect_left

from wattd.values import NANOSECONDS_PER_SECOND

HISTORY_NANO = 90 * NANOSECONDS_PER_SECOND
_TRIM_EVERY = 4096


class History:
    """Readings of a cumulative counter; between two of them energy is shared out by time."""

    __slots__ = ("_microjoules", "_nanos")

    def __init__(self) -> None:
        self._nanos: list[int] = []
        self._microjoules: list[int] = []

    def append(self, nano: int, microjoules: int) -> None:
        """Add a reading; one that is not newer than the last is passed over."""
        nanos = self._nanos
        if nanos and nano <= nanos[-1]:
            return
        nanos.append(nano)
        self._microjoules.append(microjoules)
        if len(nanos) % _TRIM_EVERY == 0:
            old = bisect_left(nanos, nano - HISTORY_NANO)
            del nanos[:old], self._microjoules[:old]

    @property
    def first_nano(self) -> int:
        """Time of the oldest reading held; 0 if there is none."""
        return self._nanos[0] if self._nanos else 0

    @property
    def last_nano(self) -> int:
        """Time of the newest reading; 0 if there is none."""
        return self._nanos[-1] if self._nanos else 0

    @property
    def microjoules(self) -> int | None:
        """The newest reading; None if there is none."""
        return self._microjoules[-1] if self._microjoules else None

    def at(self, nano: int) -> int | None:
        """The counter at a moment, microjoules; None where it is not covered."""
        nanos = self._nanos
        place = bisect_left(nanos, nano)
        if place == len(nanos):
            return None
        after, energy = nanos[place], self._microjoules[place]
        if after == nano:
            return energy
        if place == 0:
            return None
        before, energy_before = nanos[place - 1], self._microjoules[place - 1]
        return energy_before + (energy - energy_before) * (nano - before) // (after - before)

    def between(self, begin_nano: int, end_nano: int) -> int | None:
        """Energy from one moment to another, microjoules; None where it is not covered."""
        begin, end = self.at(begin_nano), self.at(end_nano)
        return None if begin is None or end is None else end - begin
