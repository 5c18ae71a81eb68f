"""A GPU's clock against the host's: what is known of their difference, and how well.

Every event on a stream bounds it from both sides: the GPU cannot reach it before the host has recorded
it, nor after the host has seen that it was reached. As the two clocks run at steady rates, each bound is
a half-plane for the line `difference = offset + drift * time`, and all bounds of some seconds together
leave a small polygon of (offset, drift). Its corners say the difference at any moment and its error;
no estimate enters, so the error is a bound as long as the clocks keep to `WANDER`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_NANO = 20_000_000_000
RESOLUTION_NANO = 1_000.0  # of a CUDA event: half a microsecond, on either side
WANDER = 2e-6  # how far the clocks' rates may leave the line within the window
_MOST_DRIFT = 6e-4  # quartz against quartz, and a host clock that is being slewed by 500 ppm
_BUCKET_NANO = 500_000_000
_FAR_NANO = 1e10  # a bound further off than this says nothing that anybody wants to know

_Corner = tuple[float, float]


@dataclass(slots=True)
class _Bucket:
    """The tightest bounds of half a second: positions and differences, nanoseconds."""

    number: int
    low_position: float
    low: float
    high_position: float
    high: float


class Line:
    """The difference of the clocks around a moment: host = position + difference."""

    def __init__(self, position: float, corners: Sequence[_Corner]) -> None:
        self._position = position
        self._corners = corners
        self.drift = (min(drift for _, drift in corners) + max(drift for _, drift in corners)) / 2

    def at(self, position: float) -> tuple[float, float]:
        """The host's time at a position of the GPU's clock, and how far off it may be, both in ns."""
        distance = position - self._position
        values = [offset + drift * distance for offset, drift in self._corners]
        low, high = min(values), max(values)
        error = (high - low) / 2 + WANDER * abs(distance) + RESOLUTION_NANO
        return position + (low + high) / 2, error


class GpuClock:
    """What the events of one GPU have shown of its clock.

    Positions are nanoseconds of the GPU's clock since any moment; host times are CLOCK_MONOTONIC.

    Attributes:
        breaks: How often old bounds were given up because no steady rate fits them and the new ones.
    """

    def __init__(self) -> None:
        self.breaks = 0
        self._buckets = deque[_Bucket]()
        self._drift = 0.0

    def bound(self, position: float, low_nano: int, high_nano: int) -> None:
        """Take in that the host's clock was between two times at a position."""
        low, high = low_nano - position, high_nano - position
        number = int(position // _BUCKET_NANO)
        bucket = next((known for known in self._buckets if known.number == number), None)
        if bucket is None:
            self._insert(_Bucket(number, position, low, position, high))
            return
        if low - bucket.low > self._drift * (position - bucket.low_position):
            bucket.low_position, bucket.low = position, low
        if high - bucket.high < self._drift * (position - bucket.high_position):
            bucket.high_position, bucket.high = position, high

    def _insert(self, bucket: _Bucket) -> None:
        """Keep the newest first; a stream's event may be older than another's."""
        place = 0
        while place < len(self._buckets) and self._buckets[place].number > bucket.number:
            place += 1
        self._buckets.insert(place, bucket)
        newest = self._buckets[0].number
        while (newest - self._buckets[-1].number) * _BUCKET_NANO > WINDOW_NANO:
            self._buckets.pop()

    def line(self) -> Line | None:
        """The difference as all bounds of the window leave it; None before there is one."""
        if not self._buckets:
            return None
        newest = self._buckets[0]
        position = max(newest.low_position, newest.high_position)
        low, high = newest.low - _FAR_NANO, newest.high + _FAR_NANO
        corners: Sequence[_Corner] = [
            (low, -_MOST_DRIFT),
            (high, -_MOST_DRIFT),
            (high, _MOST_DRIFT),
            (low, _MOST_DRIFT),
        ]
        for place, bucket in enumerate(self._buckets):
            clipped = _clipped(corners, bucket, position)
            if not clipped and place:
                # One of the clocks has changed its rate: what was before it says nothing of now.
                self.breaks += 1
                while len(self._buckets) > place:
                    self._buckets.pop()
                break
            corners = clipped or corners
        line = Line(position, corners)
        self._drift = line.drift
        return line


def _clipped(corners: Sequence[_Corner], bucket: _Bucket, position: float) -> Sequence[_Corner]:
    """What a bucket's two bounds leave of a polygon; each is loosened by what is not known of it."""
    distance = bucket.high_position - position
    kept = _half(corners, 1.0, distance, bucket.high + WANDER * abs(distance) + RESOLUTION_NANO)
    distance = bucket.low_position - position
    return _half(kept, -1.0, -distance, -bucket.low + WANDER * abs(distance) + RESOLUTION_NANO)


def _half(corners: Sequence[_Corner], a: float, b: float, most: float) -> Sequence[_Corner]:
    """The part of a convex polygon where a * offset + b * drift <= most (Sutherland and Hodgman)."""
    excess = [a * offset + b * drift - most for offset, drift in corners]
    if all(over <= 0.0 for over in excess):
        return corners
    kept: list[_Corner] = []
    for here, over in enumerate(excess):
        before, over_before = corners[here - 1], excess[here - 1]
        if (over > 0.0) != (over_before > 0.0):
            share = over_before / (over_before - over)
            offset, drift = corners[here]
            kept.append((before[0] + share * (offset - before[0]), before[1] + share * (drift - before[1])))
        if over <= 0.0:
            kept.append(corners[here])
    return kept
