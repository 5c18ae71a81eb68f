"""The estimator `overlap`: the energy of each counter update is shared out by time.

Between two edges of the counter its power is taken to be constant. That is exact where an update lies inside
one row, and a guess where rows share it. The guess does not average out over many steps, so its error is
bounded, not estimated: for each shared update, how far could the truth be from the share, given the lowest
and the highest power that the device can plausibly draw? The bounds of a row add up.
"""

from dataclasses import dataclass

import numpy as np

from wattq.counter import (
    NANO,
    Counter,
    Device,
    Floats,
    Ints,
    blind_spots,
    blind_until,
    power_bounds,
)
from wattq.sweep import Pieces, merge

# How late a sensor's counter may be, nanoseconds (delay and rise of boards are some milliseconds).
_DELAY_GPU = 10_000_000
_DELAY_CPU = 1_000_000
_AROUND_NANO = 2 * NANO
# The share of a row's energy that its half-width may not pass, and of its time that must be covered.
WIDEST = 0.5
LEAST_COVERAGE = 0.5


@dataclass(frozen=True)
class Shares:
    """What each row of a device got, all arrays with one entry a row.

    Attributes:
        seconds: Time in the row, seconds.
        joules: Energy, joules.
        statistical: 95 % half-width from sharing updates and from edges that are not known exactly, joules.
        response: Half-width from a delay of the sensor that is not known, joules.
        blind_seconds: Time of the row that no usable update covers, seconds.
        max_gap_seconds: Longest interval between updates that touches the row, seconds.
        stretches: Number of uninterrupted stretches.
        updates: Number of counter edges inside the run.
        known: The counter is known on both sides of some of the run, so that its energy has a meaning.
        period_seconds: Usual time between updates, seconds.
    """

    seconds: Floats
    joules: Floats
    statistical: Floats
    response: Floats
    blind_seconds: Floats
    max_gap_seconds: Floats
    stretches: Ints
    updates: int
    known: bool
    period_seconds: float


def delay_nano(device: Device, period: int) -> int:
    """Returns how late the counter of a device may plausibly be, nanoseconds."""
    if device.source == "estimated":
        return period // 2
    return _DELAY_GPU if device.domain in {"gpu", "module"} else _DELAY_CPU


def _grid(counter: Counter, pieces: Pieces) -> tuple[Ints, Ints, Ints, Ints]:
    """Cuts pieces at the edges: begin, end, row and interval (0: before the first) of each slice."""
    inside = counter.edge[(counter.edge > pieces.start[0]) & (counter.edge < pieces.stop[-1])]
    bounds = merge(pieces.start, pieces.stop, inside)
    left, right = bounds[:-1], bounds[1:]
    piece = np.searchsorted(pieces.start, left, side="right") - 1
    keep = right <= pieces.stop[piece]
    left, right, piece = left[keep], right[keep], piece[keep]
    return left, right, pieces.row[piece], np.searchsorted(counter.edge, left, side="right")


def _exposure(counter: Counter, pieces: Pieces) -> tuple[Ints, Ints, Ints, Floats]:
    """Returns interval, row and nanoseconds of each pair that meets, and the length of each interval."""
    left, right, row, interval = _grid(counter, pieces)
    count = len(pieces.rows)
    key = interval * count + row
    order = np.argsort(key, kind="stable")
    key, time = key[order], (right - left)[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    kinds, time = key[first], np.add.reduceat(time, first)
    begin, end = pieces.start[:1], pieces.stop[-1:]
    if len(counter.edge):
        begin, end = np.minimum(begin, counter.edge[0]), np.maximum(end, counter.edge[-1])
    length = np.diff(np.concatenate([begin, counter.edge, end])).astype(np.float64)
    return kinds // count, kinds % count, time, length


def _sharing(
    counter: Counter, exposure: tuple[Ints, Ints, Ints, Floats], bounds: tuple[float, float], rows: int
) -> Floats:
    """Bounds how far the truth of each row can be from its share by time, joules."""
    interval, row, time, length = exposure
    low, high = bounds
    # Beyond the first and last edge nothing is known but that power is plausible.
    energy = np.concatenate([[np.nan], np.diff(counter.energy), [np.nan]])[: len(length)]
    span, delta, own = length[interval] / NANO, energy[interval], time / NANO
    rest = np.clip(span - own, 0.0, None)
    known = ~np.isnan(delta)
    share = np.where(known, delta * own / np.where(span > 0, span, 1.0), 0.0)
    least = np.where(known, np.fmax(low * own, delta - high * rest), 0.0)
    most = np.where(known, np.fmin(high * own, delta - low * rest), high * own)
    partly = ~known | (rest > 0)
    slack = np.where(partly, np.fmax(np.fmax(most - share, share - least), 0.0), 0.0)
    return np.bincount(row, weights=slack, minlength=rows).astype(np.float64)


def _edge_error(counter: Counter, pieces: Pieces) -> Floats:
    """Error of each row from not knowing exactly when the counter moved, joules.

    An edge that is late moves energy across the border of two rows. What all edges have in common cancels
    except for the change of power at the border; what is each edge's own adds up at random.
    """
    rows = len(pieces.rows)
    if len(counter.edge) < 2:
        return np.zeros(rows)
    power = np.diff(counter.energy) / (np.diff(counter.edge) / NANO)
    touch = pieces.start[1:] == pieces.stop[:-1]

    def errors(border: Ints) -> tuple[Floats, Floats]:
        interval = np.clip(np.searchsorted(counter.edge, border, side="right") - 1, 0, len(power) - 1)
        half = counter.bracket[interval] / NANO / 2
        after, before = np.minimum(interval + 1, len(power) - 1), np.maximum(interval - 1, 0)
        return np.abs(power[after] - power[before]) * half, (power[interval] * half) ** 2

    # Where the run begins and ends its total is uncertain too: that belongs to (outside), row 0.
    first, last = np.append(True, ~touch), np.append(~touch, True)
    inner = pieces.start[1:][touch]
    ends = np.concatenate([pieces.start[first], pieces.stop[last]])
    beside = np.concatenate([pieces.row[first], pieces.row[last]])
    linear, square = np.zeros(rows), np.zeros(rows)
    for border, side in (
        (inner, pieces.row[:-1][touch]),
        (inner, pieces.row[1:][touch]),
        (ends, np.zeros(len(ends), dtype=np.int64)),
        (ends[beside != 0], beside[beside != 0]),
    ):
        step, own = errors(border)
        linear += np.bincount(side, weights=step, minlength=rows)
        square += np.bincount(side, weights=own, minlength=rows)
    return np.asarray(linear + np.sqrt(square))


def _energy(counter: Counter, pieces: Pieces, shift: int = 0) -> Floats:
    joules = counter.at(pieces.stop, shift) - counter.at(pieces.start, shift)
    return np.bincount(pieces.row, weights=joules, minlength=len(pieces.rows)).astype(np.float64)


def share(counter: Counter, device: Device, pieces: Pieces, gaps: Ints) -> Shares:
    """Shares a device's counter out to the rows of a run.

    Args:
        counter: The device's edges.
        device: What the device is.
        pieces: The run, cut into rows.
        gaps: Recorded gaps of the device, one row (begin, end) each, monotonic nanoseconds.
    """
    rows = len(pieces.rows)
    begin, end = int(pieces.start[0]), int(pieces.stop[-1])
    # What the device draws just before and after the run shares the updates at the run's two ends.
    margin = max(_AROUND_NANO, 5 * counter.period)
    around, counter = counter.between(begin - margin, end + margin), counter.between(begin, end)
    nanos = (pieces.stop - pieces.start).astype(np.float64)
    joules = _energy(counter, pieces)
    delay = delay_nano(device, counter.period)
    late, early = _energy(counter, pieces, delay), _energy(counter, pieces, -delay)
    exposure = _exposure(counter, pieces)
    interval, row, time, length = exposure
    pure = time[length[interval] - time <= 0].sum()
    bounds = power_bounds(around, device.power_limit_watts, blurred=bool(pure < nanos.sum() / 2))
    statistical = _sharing(counter, exposure, bounds, rows) + _edge_error(counter, pieces)
    longest = np.zeros(rows)
    np.maximum.at(longest, row, length[interval])
    spots = blind_spots(counter, gaps, [(begin, end)])
    blind = (blind_until(spots, pieces.stop) - blind_until(spots, pieces.start)).astype(np.float64)
    borders = np.append(True, (pieces.row[1:] != pieces.row[:-1]) | (pieces.start[1:] != pieces.stop[:-1]))
    return Shares(
        seconds=np.bincount(pieces.row, weights=nanos, minlength=rows) / NANO,
        joules=joules,
        statistical=statistical,
        response=np.maximum(np.abs(late - joules), np.abs(early - joules)),
        blind_seconds=np.bincount(pieces.row, weights=blind, minlength=rows) / NANO,
        max_gap_seconds=longest / NANO,
        stretches=np.bincount(pieces.row[borders], minlength=rows),
        updates=int(((counter.edge >= begin) & (counter.edge <= end)).sum()),
        known=len(counter.edge) > 1,
        period_seconds=counter.period / NANO,
    )
