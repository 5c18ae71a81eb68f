"""The estimator `regression`: what a phase cost, from many steps whose updates cut it in different places.

Counter and power reading are used together, as observations of one unknown: the power of each stretch of time.
See `mixed` for the algebra, `response` for what a sensor sees, `fit` for how its response is found.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from wattq.counter import NANO, Counter, Floats, Ints
from wattq.evidence import Series
from wattq.fit import Problem
from wattq.response import Observations, Stretches
from wattq.sweep import Pieces

# A gap between phases that is shorter counts as part of the one before it, with its power.
_TINY_SECONDS = 2e-4
# A stretch is cut so that it meets few observations.
_MOST_UPDATES = 4.0
_MARGIN_UPDATES = 3.0
# A rise of the counter over so many usual periods spans a gap in the evidence.
_GAP_PERIODS = 5.0
_LEAST_BRACKET_SECONDS = 1e-5


@dataclass(frozen=True)
class Cut:
    """A run cut into stretches.

    Attributes:
        stretches: The stretches of time.
        column: Row of `pieces` that gives each its mean power.
        outside: It belongs to nothing that repeats.
        weights: Seconds of each stretch in each row.
    """

    stretches: Stretches
    column: Ints
    outside: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
    weights: sparse.csr_matrix


def cut_stretches(pieces: Pieces, origin: int, update_seconds: float, margin_seconds: float) -> Cut:
    """Cuts a run, and a margin before and after it, into stretches of one power.

    Args:
        pieces: The run.
        origin: Moment from which seconds are counted, monotonic nanoseconds.
        update_seconds: Usual time between observations.
        margin_seconds: How much before and after the run shares observations with it.
    """
    start, stop = (pieces.start - origin) / NANO, (pieces.stop - origin) / NANO
    touch = np.append(False, pieces.start[1:] == pieces.stop[:-1])
    tiny = touch & (pieces.row == 0) & (stop - start < _TINY_SECONDS)
    # A tiny gap goes to the stretch before it; its own seconds stay in the row (outside).
    owner = np.cumsum(~tiny) - 1
    head = np.flatnonzero(~tiny)
    begins = start[head]
    ends = np.append(stop[np.append(head[1:] - 1, len(stop) - 1)], [])
    rows = pieces.row[head]
    most = max(_MOST_UPDATES * update_seconds, 0.1)
    parts = np.maximum(np.ceil((ends - begins) / most).astype(np.int64), 1)
    first = np.append(0, np.cumsum(parts))
    number = np.repeat(np.arange(len(head)), parts)
    share = (np.arange(first[-1]) - first[number]) / parts[number]
    length = (ends - begins)[number] / parts[number]
    begin = begins[number] + share * (ends - begins)[number]
    # Seconds of each piece go to the parts of its owner in equal shares.
    piece = np.arange(len(start))
    spread = parts[owner]
    entry = np.repeat(piece, spread)
    place = np.arange(len(entry)) - np.repeat(np.append(0, np.cumsum(spread))[:-1], spread)
    column = first[owner[entry]] + place
    seconds = ((stop - start) / spread)[entry]
    outside = rows[number] == 0
    return _with_margins(
        begin, begin + length, rows[number], outside, (pieces.row[entry], column, seconds), len(pieces.rows), most,
        margin_seconds,
    )


def _with_margins(
    begin: Floats,
    end: Floats,
    column: Ints,
    outside: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
    entries: tuple[Ints, Ints, Floats],
    rows: int,
    most: float,
    margin: float,
) -> Cut:
    """Adds what lies around the run, and between its windows, as stretches that no row counts."""
    holes = np.flatnonzero(begin[1:] - end[:-1] > 1e-9)
    gaps = [(begin[0] - margin, begin[0]), (end[-1], end[-1] + margin)]
    gaps += [(end[hole], begin[hole + 1]) for hole in holes]
    extra_begin, extra_end = [], []
    for low, high in gaps:
        edges = np.linspace(low, high, max(int(np.ceil((high - low) / most)), 1) + 1)
        extra_begin.append(edges[:-1])
        extra_end.append(edges[1:])
    more = np.concatenate(extra_begin)
    count = len(begin)
    begin, end = np.append(begin, more), np.append(end, np.concatenate(extra_end))
    column = np.append(column, np.zeros(len(more), dtype=np.int64))
    outside = np.append(outside, np.ones(len(more), dtype=bool))
    order = np.argsort(begin, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    row, old, seconds = entries
    weights = sparse.csr_matrix((seconds, (row, place[old])), shape=(rows, count + len(more)))
    return Cut(Stretches(begin[order], end[order]), column[order], outside[order], weights)


def observations(counter: Counter, power: Series, origin: int, begin: float, end: float) -> Observations:
    """Puts rises of the counter and power readings between two moments into one order.

    Args:
        counter: The counter's edges.
        power: The power reading's edges.
        origin: Moment from which seconds are counted, monotonic nanoseconds.
        begin: Nothing is taken that looks at what was before, seconds.
        end: Nor at what comes after.
    """
    edge = (counter.edge - origin) / NANO
    half = _half(counter.bracket)
    rise = np.diff(counter.energy)
    usual = counter.period / NANO
    good = (np.diff(edge) < _GAP_PERIODS * usual) & (edge[:-1] >= begin) & (edge[1:] <= end)
    number = np.flatnonzero(good)
    moment = (power.moment - origin) / NANO
    inside = np.flatnonzero((moment >= begin + 0.3 * power.period_seconds) & (moment <= end))
    ends = np.concatenate([edge[number + 1], moment[inside]])
    order = np.argsort(ends, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    follower = np.full(len(order), -1)
    linked = np.flatnonzero(np.diff(number) == 1)
    follower[place[linked]] = place[linked + 1]
    nothing = np.full(len(inside), np.nan)
    power_half = _half(power.bracket)[inside]
    return Observations(
        begin=np.concatenate([edge[number], nothing])[order],
        end=ends[order],
        value=np.concatenate([rise[number], power.value[inside]])[order],
        is_power=np.concatenate([np.zeros(len(number), bool), np.ones(len(inside), bool)])[order],
        begin_half=np.concatenate([half[number], power_half])[order],
        end_half=np.concatenate([half[number + 1], power_half])[order],
        follower=follower,
    )


def _half(bracket: Ints) -> Floats:
    """Returns half of each bracket, seconds."""
    return np.asarray(np.maximum(bracket / NANO, _LEAST_BRACKET_SECONDS) / 2)


def problem_of(pieces: Pieces, counter: Counter, power: Series, limit_watts: float | None) -> Problem:
    """Makes the regression of one device over one run."""
    origin, last = int(pieces.start[0]), int(pieces.stop[-1])
    update = counter.period / NANO
    margin = _MARGIN_UPDATES * max(update, power.period_seconds)
    cut = cut_stretches(pieces, origin, update, margin)
    end = (last - origin) / NANO + margin
    seen = observations(counter, power, origin, -margin + 0.05 * margin, end)
    rises = np.diff(counter.energy) / np.maximum(np.diff(counter.edge) / NANO, 1e-9)
    level = float((counter.energy[-1] - counter.energy[0]) / ((counter.edge[-1] - counter.edge[0]) / NANO))
    most = limit_watts or 2 * float(rises.max())
    return Problem(
        seen=seen,
        stretches=cut.stretches,
        column=cut.column,
        free_watts=np.where(cut.outside, 0.5 * level, np.nan),
        weights=cut.weights,
        level=level,
        most_watts=most,
        columns=len(pieces.rows),
    )
