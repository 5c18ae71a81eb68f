"""How a sensor shows power: late, smeared by a rise, and in windows; what it sees of each stretch of time.

The board answers a step of power with a delay and a first-order rise. The counter adds up what comes out; a
power reading is the mean of the last window before its update, times a gain, plus an offset. All of it is
linear in the powers of the stretches of time that a run is cut into, and the weights have a closed form.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from wattq.counter import Floats
from wattq.observations import Observations
from wattq.stretches import Stretches

NAMES = (
    "counter_delay_seconds",
    "rise_seconds",
    "power_delay_seconds",
    "power_window_seconds",
    "power_gain",
    "power_offset_watts",
)
"""The parameters of a response, in the order of every vector of them."""

LOGARITHMIC = np.array([False, True, False, True, False, False])
"""Which of them stand as logarithms in a vector: those that cannot be negative."""

# An exponential tail is left out when it has fallen to 5e-5.
_TAIL = 10.0


@dataclass(frozen=True)
class Response:
    """What lies between the die and the readings.

    Attributes:
        counter_delay_seconds: How late the counter is.
        rise_seconds: Time constant of the rise of board and sensor.
        power_delay_seconds: How late the power reading is.
        power_window_seconds: Averaging window of the power reading.
        power_gain: Of the power reading against the counter.
        power_offset_watts: Likewise.
        counter_window_seconds: A counter that looks at the last part of each period only; None: at all of it.
    """

    counter_delay_seconds: float
    rise_seconds: float
    power_delay_seconds: float
    power_window_seconds: float
    power_gain: float = 1.0
    power_offset_watts: float = 0.0
    counter_window_seconds: float | None = None

    def vector(self) -> Floats:
        """Returns the parameters in the order of NAMES, the positive ones as logarithms."""
        values = np.array([getattr(self, name) for name in NAMES])
        return np.where(LOGARITHMIC, np.log(np.where(LOGARITHMIC, values, 1.0)), values)

    def moved_to(self, vector: Floats) -> "Response":
        """Returns the response with the parameters of a vector."""
        values = np.where(LOGARITHMIC, np.exp(np.where(LOGARITHMIC, vector, 0.0)), vector)
        return replace(self, **dict(zip(NAMES, values.tolist(), strict=True)))


def _area(time: Floats, rise: float) -> Floats:
    """Returns the integral of what has come out of a unit power switched on at 0, seconds squared."""
    after = np.maximum(time, 0.0)
    return np.asarray(after * (after / 2 - rise) - rise * rise * np.expm1(-after / rise))


def _passed(time: Floats, half: Floats, rise: float) -> Floats:
    """Returns how much of a unit power switched on at 0 has come out by a moment, seconds.

    The moment lies anywhere within `half` on both sides of `time`, so it is the mean over that.
    """
    return (_area(time + half, rise) - _area(time - half, rise)) / (2 * half)


def _rise_of_area(time: Floats, half: Floats, rise: float) -> Floats:
    """Returns the mean of a unit power switched on at 0, as it comes out, from `half` before to after."""
    late, early = np.maximum(time + half, 0.0), np.maximum(time - half, 0.0)
    passed = late - early + rise * (np.expm1(-late / rise) - np.expm1(-early / rise))
    return np.asarray(passed / (2 * half))


class View:
    """What observations see of stretches with a response.

    Attributes:
        matrix: Weight of each stretch's power in each observation: seconds in joules, shares in watts.
    """

    def __init__(self, seen: Observations, stretches: Stretches, response: Response) -> None:
        self._seen, self._stretches, self.response = seen, stretches, response
        begin, end, begin_half, scale = _windows(seen, response)
        rise = response.rise_seconds
        first = np.searchsorted(stretches.stop, begin - begin_half - _TAIL * rise, side="right")
        last = np.maximum(np.searchsorted(stretches.start, end + seen.end_half, side="left"), first)
        count = last - first
        pointer = np.append(0, np.cumsum(count))
        row = np.repeat(np.arange(len(count)), count)
        column = np.arange(pointer[-1]) - np.repeat(pointer[:-1] - first, count)
        start, stop = stretches.start[column], stretches.stop[column]
        begin, end = begin[row], end[row]
        late, early = seen.end_half[row], begin_half[row]
        weight = _passed(end - start, late, rise) - _passed(end - stop, late, rise)
        weight -= _passed(begin - start, early, rise) - _passed(begin - stop, early, rise)
        shape = (len(count), len(stretches.start))
        self.matrix = sparse.csr_matrix((weight * scale[row], column, pointer), shape=shape)

    def mean(self, watts: Floats) -> Floats:
        """Returns what the observations would show of these powers, without any noise."""
        offset = np.where(self._seen.is_power, self.response.power_offset_watts, 0.0)
        return np.asarray(self.matrix @ watts + offset)

    def edge_levels(self, watts: Floats) -> tuple[Floats, Floats]:
        """Returns by how much an observation changes if its begin or its end is a second later.

        That is the smeared power there, the mean over the bracket, for a power step inside it makes the
        moment matter far more than on one of its sides; in a power reading divided by the window and times
        the gain.
        """
        begin, end, begin_half, scale = _windows(self._seen, self.response)
        half = np.concatenate([begin_half, self._seen.end_half])
        both = np.concatenate([begin, end])
        rise = self.response.rise_seconds
        start, stop = self._stretches.start, self._stretches.stop
        first = np.searchsorted(stop, both - half - _TAIL * rise, side="right")
        last = np.maximum(np.searchsorted(start, both + half, side="left"), first)
        count = last - first
        pointer = np.append(0, np.cumsum(count))
        column = np.arange(pointer[-1]) - np.repeat(pointer[:-1] - first, count)
        time, half = np.repeat(both, count), np.repeat(half, count)
        since, until = time - start[column], time - stop[column]
        weight = _rise_of_area(since, half, rise) - _rise_of_area(until, half, rise)
        total = np.append(0.0, np.cumsum(weight * watts[column]))
        level = (total[pointer[1:]] - total[pointer[:-1]]) * np.concatenate([scale, scale])
        return level[: len(begin)], level[len(begin) :]


def _windows(seen: Observations, response: Response) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns from when to when each observation looks, half of the bracket of the begin, and its scale."""
    power, window = seen.is_power, response.power_window_seconds
    delay = np.where(power, response.power_delay_seconds, response.counter_delay_seconds)
    begin = np.where(power, seen.end - window, seen.begin)
    scale = np.where(power, response.power_gain / window, 1.0)
    half = seen.begin_half
    if response.counter_window_seconds is not None:
        length = np.where(power, 1.0, seen.end - seen.begin)
        begin = np.where(power, begin, seen.end - response.counter_window_seconds)
        scale = np.where(power, scale, length / response.counter_window_seconds)
        # Both sides of its window move with the edge at the end.
        half = seen.end_half
    return begin - delay, seen.end - delay, half, scale
