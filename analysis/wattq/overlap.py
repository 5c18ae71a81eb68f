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
    power_bounds,
    time_within,
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


@dataclass(frozen=True)
class _Exposure:
    """What rows have of the intervals between edges that no row has alone; arrays with one entry a pair.

    Attributes:
        interval: Number of the interval.
        row: Number of the row.
        own: Time of the row in the interval, seconds.
        span: Length of the interval, seconds.
        energy: What the counter rose in it, joules; `nan` before the first edge and after the last.
    """

    interval: Ints
    row: Ints
    own: Floats
    span: Floats
    energy: Floats


def _exposure(counter: Counter, pieces: Pieces) -> _Exposure:
    """Finds the intervals that rows share: only those in which a piece begins or ends."""
    edge, count, last = counter.edge, len(pieces.rows), len(counter.edge)
    borders = merge(pieces.start, pieces.stop)
    # Interval k lies between edge k - 1 and edge k.
    shared = merge(np.searchsorted(edge, borders, side="right"))
    bounds = merge(borders, edge[shared[shared > 0] - 1], edge[shared[shared < last]])
    left, right = bounds[:-1], bounds[1:]
    interval = np.searchsorted(edge, left, side="right")
    place = np.minimum(np.searchsorted(shared, interval), len(shared) - 1)
    piece = np.searchsorted(pieces.start, left, side="right") - 1
    keep = (shared[place] == interval) & (piece >= 0) & (right <= pieces.stop[piece])
    key = interval[keep] * count + pieces.row[piece[keep]]
    order = np.argsort(key, kind="stable")
    key, time = key[order], (right - left)[keep][order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    interval, time = key[first] // count, np.add.reduceat(time, first)
    begin = (
        np.where(interval > 0, edge[interval - 1], borders[0]) if last else np.full(len(first), borders[0])
    )
    ends = (
        np.where(interval < last, edge[np.minimum(interval, last - 1)], borders[-1]) if last else borders[-1]
    )
    known = (interval > 0) & (interval < last)
    energy = np.full(len(first), np.nan)
    energy[known] = counter.energy[interval[known]] - counter.energy[interval[known] - 1]
    return _Exposure(interval, key[first] % count, time / NANO, (ends - begin) / NANO, energy)


def _sharing(shared: _Exposure, bounds: tuple[Floats, Floats], rows: int) -> Floats:
    """Bounds how far the truth of each row can be from its share by time, joules.

    Args:
        shared: What rows have of the intervals.
        bounds: Lowest and highest plausible power, watts, one each for each entry.
        rows: How many rows there are.
    """
    low, high = bounds
    own, energy = shared.own, shared.energy
    rest = np.clip(shared.span - own, 0.0, None)
    # Beyond the first and last edge nothing is known but that power is plausible.
    known = ~np.isnan(energy)
    share = np.where(known, energy * own / np.where(shared.span > 0, shared.span, 1.0), 0.0)
    least = np.where(known, np.fmax(low * own, energy - high * rest), 0.0)
    most = np.where(known, np.fmin(high * own, energy - low * rest), high * own)
    partly = ~known | (rest > 0)
    slack = np.where(partly, np.fmax(np.fmax(most - share, share - least), 0.0), 0.0)
    return np.bincount(shared.row, weights=slack, minlength=rows).astype(np.float64)


def _longest(counter: Counter, pieces: Pieces) -> Floats:
    """Returns the longest interval between updates that touches each row, seconds."""
    begin, end = pieces.start[:1], pieces.stop[-1:]
    if len(counter.edge):
        begin, end = np.minimum(begin, counter.edge[0]), np.maximum(end, counter.edge[-1])
    # The entry at the end is for reduceat, which may not be asked beyond the last.
    length = np.diff(np.concatenate([begin, counter.edge, end, end]))
    first = np.searchsorted(counter.edge, pieces.start, side="right")
    after = np.searchsorted(counter.edge, pieces.stop, side="left") + 1
    longest = np.maximum.reduceat(length, np.column_stack([first, after]).ravel())[::2]
    by_row = np.zeros(len(pieces.rows), dtype=np.int64)
    np.maximum.at(by_row, pieces.row, longest)
    return by_row / NANO


def _edge_error(counter: Counter, pieces: Pieces) -> Floats:
    """Error of each row from not knowing exactly when the counter moved, joules.

    An edge that is late moves energy across the border of two rows. What all edges have in common cancels
    except for the change of power at the border; what is each edge's own adds up at random.
    """
    rows = len(pieces.rows)
    if len(counter.edge) < 2:
        return np.zeros(rows)
    newest = len(counter.edge) - 2
    touch = pieces.start[1:] == pieces.stop[:-1]

    def errors(border: Ints) -> tuple[Floats, Floats]:
        interval = np.clip(np.searchsorted(counter.edge, border, side="right") - 1, 0, newest)
        half = counter.bracket[interval] / NANO / 2
        after, before = np.minimum(interval + 1, newest), np.maximum(interval - 1, 0)
        step = np.abs(counter.power(after) - counter.power(before))
        return step * half, (counter.power(interval) * half) ** 2

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
    joules = counter.rise(pieces.start + shift, pieces.stop + shift)
    return np.bincount(pieces.row, weights=joules, minlength=len(pieces.rows)).astype(np.float64)


def _sharing_by_row(shared: _Exposure, around: Counter, device: Device, seconds: Floats) -> Floats:
    """Bounds the sharing with what is known of the power of the rows that meet in each interval, joules.

    A row that lies mostly in shared updates was never seen alone: its power may have been far from every
    mean that was seen. Whoever shares an update with such a row, and the row itself, gets the wider bounds;
    so does everybody in a run that is mostly like that.
    """
    rows = len(seconds)
    partly = shared.own < shared.span
    mixed = np.bincount(shared.row[partly], weights=shared.own[partly], minlength=rows)
    unseen = mixed > seconds / 2
    _, place = np.unique(shared.interval, return_inverse=True)
    meets_unseen = np.bincount(place.reshape(-1), weights=unseen[shared.row])[place.reshape(-1)] > 0
    wide = meets_unseen | (mixed.sum() > seconds.sum() / 2)
    limit = device.power_limit_watts
    clear, blurred = (power_bounds(around, limit, blurred=is_blurred) for is_blurred in (False, True))
    if device.source == "estimated" and limit:
        # The model says no more than this at any moment; what exceeds it is the rounding of an update.
        clear = blurred = (0.0, limit)
    low, high = (np.where(wide, blurred[side], clear[side]) for side in (0, 1))
    return _sharing(shared, (low, high), rows)


def _highest_mean(counter: Counter, device: Device) -> float:
    """Returns the most that the device can have drawn over a second or more, watts: as seen, and a tenth."""
    first, last = int(counter.edge[0]), int(counter.edge[-1])
    ticks = np.arange(first, last, NANO, dtype=np.int64)
    if len(ticks) < 3:
        return power_bounds(counter, device.power_limit_watts, blurred=False)[1]
    return float(1.1 * np.diff(counter.at(ticks)).max())


def _unseen(counter: Counter, spots: Ints, window: tuple[int, int], device: Device) -> float:
    """Returns the power that may be missing while nobody looked, watts; 0 where the counter counted on.

    A hardware counter goes on while the daemon is down. An estimate, a reset or a wrap that nobody saw does
    not: then the counter rose in the blind spots by less than half of what it rose by elsewhere.
    """
    if not len(spots):
        return 0.0
    begins, ends = (np.clip(spots[:, side], *window) for side in (0, 1))
    blind_seconds = float((ends - begins).sum()) / NANO
    whole_seconds = (window[1] - window[0]) / NANO
    blind_joules = float(counter.rise(begins, ends).sum())
    whole_joules = float(counter.rise(np.array([window[0]]), np.array([window[1]]))[0])
    if not 0 < blind_seconds < whole_seconds:
        return 0.0
    elsewhere = (whole_joules - blind_joules) / (whole_seconds - blind_seconds)
    if blind_joules >= elsewhere * blind_seconds / 2:
        return 0.0
    return _highest_mean(counter, device)


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
    shared = _exposure(counter, pieces)
    seconds = np.bincount(pieces.row, weights=nanos, minlength=rows) / NANO
    statistical = _sharing_by_row(shared, around, device, seconds) + _edge_error(counter, pieces)
    spots = blind_spots(counter, gaps, [(begin, end)])
    blind = (time_within(spots, pieces.stop) - time_within(spots, pieces.start)).astype(np.float64)
    blind_seconds = np.bincount(pieces.row, weights=blind, minlength=rows) / NANO
    statistical += _unseen(counter, spots, (begin, end), device) * blind_seconds
    borders = np.append(True, (pieces.row[1:] != pieces.row[:-1]) | (pieces.start[1:] != pieces.stop[:-1]))
    return Shares(
        seconds=seconds,
        joules=joules,
        statistical=statistical,
        response=np.maximum(np.abs(late - joules), np.abs(early - joules)),
        blind_seconds=blind_seconds,
        max_gap_seconds=_longest(counter, pieces),
        stretches=np.bincount(pieces.row[borders], minlength=rows),
        updates=int(((counter.edge >= begin) & (counter.edge <= end)).sum()),
        known=len(counter.edge) > 1,
        period_seconds=counter.period / NANO,
    )
