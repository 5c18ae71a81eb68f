"""A run cut into stretches of time, each of one power, as the regression wants them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from wattq.counter import NANO, Floats, Ints
from wattq.sweep import Pieces

Bools = npt.NDArray[np.bool_]

# A gap between phases that is shorter counts as part of the one before it, with its power.
_TINY_SECONDS = 2e-4
# A stretch is cut so that it meets few observations.
_MOST_UPDATES = 4.0
_LEAST_MOST_SECONDS = 0.1
# Where a row comes after several others, each at least so often, its power may depend on which.
_LEAST_CONTEXT = 10
AGES = (0.004, 0.012, 0.030)
"""Borders of the ages of a phase within which its power may have a mean of its own, seconds."""

# Power in a phase may slope: so it is cut by its length too, finest where the next one follows.
_SHARES = (0.25, 0.5, 0.75, 0.9)
_LEAST_PART_SECONDS = 0.002


@dataclass(frozen=True)
class Stretches:
    """Disjoint stretches of time in order; seconds from the run's begin.

    Attributes:
        start: Begin of each.
        stop: End of each.
        kind: Number of what it is: a row of the answer, and which came before where that may matter.
        age: Number of its age since its phase began, as AGES divides them; 0 where ages do not matter.
        position: Its place in its phase, from -0.5 at the begin to 0.5 at the end; 0 likewise.
        instance: Number of the instance it is a part of; the parts of one deviate from the mean together.
        outside: It belongs to nothing that repeats.
        weights: Seconds of each stretch in each row, one row of the matrix a row.
    """

    start: Floats
    stop: Floats
    kind: Ints
    age: Ints
    position: Floats
    instance: Ints
    outside: Bools
    weights: sparse.csr_matrix

    def select(self, begin: float, end: float, own_begin: float, own_end: float) -> "Stretches":
        """Returns those that begin from `begin` to `end`; only the own ones keep their weights."""
        first, last = np.searchsorted(self.start, [begin, end], side="left")
        # Parts of one instance stay together.
        while first > 0 and self.instance[first] == self.instance[first - 1]:
            first -= 1
        while 0 < last < len(self.start) and self.instance[last] == self.instance[last - 1]:
            last += 1
        part = slice(int(first), int(last))
        own = (self.start[part] >= own_begin) & (self.start[part] < own_end)
        weights = self.weights[:, part] @ sparse.diags_array(own.astype(np.float64))
        instance = self.instance[part]
        return Stretches(
            self.start[part],
            self.stop[part],
            self.kind[part],
            self.age[part],
            self.position[part],
            instance - instance[:1],
            self.outside[part],
            sparse.csr_matrix(weights),
        )


@dataclass(frozen=True)
class _Heads:
    """Pieces without the tiny gaps; each owns the gap after it."""

    begin: Floats
    end: Floats
    row: Ints
    kind: Ints


def _kinds(row: Ints, state: Ints | None) -> Ints:
    """Numbers the kinds: a row, split by the row before it and by state where that is frequent enough."""
    before = np.append(-1, row[:-1])
    pair = row * (int(row.max()) + 2) + before + 1
    if state is not None:
        pair = pair * (int(state.max()) + 1) + state
    _, number, count = np.unique(pair, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    frequent = count[number] >= _LEAST_CONTEXT
    # What is too rare for a kind of its own shares one per row; so does what is outside of all phases.
    return np.where(frequent & (row != 0), len(row) + number, row)


def cut_stretches(
    pieces: Pieces,
    groups: sparse.csr_matrix,
    update_seconds: float,
    margin_seconds: float,
    ages: tuple[float, ...] = (),
    *,
    states: Ints | None = None,
) -> Stretches:
    """Cuts a run, and a margin before and after it, into stretches of one power.

    Args:
        pieces: The run.
        groups: Which pieces count in which rows of the answer, one row of the matrix a row.
        update_seconds: Usual time between observations.
        margin_seconds: How much before and after the run shares observations with it.
        ages: Borders of ages, seconds; empty: power within a phase is constant.
        states: State of the device's clock in each piece; a phase has a mean power in each.
    """
    origin = pieces.start[0]
    start, stop = (pieces.start - origin) / NANO, (pieces.stop - origin) / NANO
    tiny = _tiny(pieces)
    owner = np.cumsum(~tiny) - 1
    head = np.flatnonzero(~tiny)
    last = np.append(head[1:] - 1, len(start) - 1)
    heads = _Heads(
        start[head],
        stop[last],
        pieces.row[head],
        _kinds(pieces.row[head], None if states is None else states[head]),
    )
    most = max(_MOST_UPDATES * update_seconds, _LEAST_MOST_SECONDS)
    number, begin, instance, age = _parts(heads, most, ages)
    following = np.append(number[1:] == number[:-1], False)
    end = np.where(following, np.append(begin[1:], 0.0), heads.end[number])
    # Seconds of a piece are spread over the parts of its owner by their length.
    share = (end - begin) / (heads.end - heads.begin)[number]
    count = np.bincount(number, minlength=len(head))
    first = np.append(0, np.cumsum(count))[:-1]
    spread = count[owner]
    entry = np.repeat(np.arange(len(start)), spread)
    offset = np.arange(len(entry)) - np.repeat(np.cumsum(spread) - spread, spread)
    column = first[owner[entry]] + offset
    seconds = (stop - start)[entry] * share[column]
    by_piece = sparse.csr_matrix((seconds, (entry, column)), shape=(len(start), len(begin)))
    weights = sparse.csr_matrix(groups @ by_piece)
    middle = (begin + end) / 2
    position = (middle - heads.begin[number]) / (heads.end - heads.begin)[number] - 0.5
    position = position if ages else np.zeros(len(position))
    outside = heads.row[number] == 0
    inner = Stretches(begin, end, heads.kind[number], age, position, instance, outside, weights)
    return _with_margins(inner, most, margin_seconds)


def _tiny(pieces: Pieces) -> Bools:
    """Returns which pieces are too short to have a power of their own that could ever be seen.

    Gaps between phases are; so are the seams of a row that has far longer pieces as well.
    """
    seconds = (pieces.stop - pieces.start) / NANO
    short = seconds < _TINY_SECONDS
    rows = len(pieces.rows)
    whole = np.bincount(pieces.row, weights=seconds, minlength=rows)
    seams = np.bincount(pieces.row[short], weights=seconds[short], minlength=rows)
    minor = seams <= 0.05 * whole
    minor[0] = True
    touch = np.append(False, pieces.start[1:] == pieces.stop[:-1])
    return np.asarray(touch & short & minor[pieces.row])


def _parts(heads: _Heads, most: float, ages: tuple[float, ...]) -> tuple[Ints, Floats, Ints, Ints]:
    """Returns (number of the head, begin, instance, age) of each part."""
    length = heads.end - heads.begin
    count = np.maximum(np.ceil(length / most).astype(np.int64), 1)
    number = np.repeat(np.arange(len(length)), count)
    place = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)
    offset = place * (length / count)[number]
    whole = np.ones(len(number), dtype=bool)
    borders = [np.full(len(length), border) for border in ages]
    borders += [share * length for share in _SHARES if ages]
    for border in borders:
        # The rest of a phase that ends just after a border stays with the age before it.
        longer = np.flatnonzero((length - border > _LEAST_PART_SECONDS) & (heads.row != 0))
        number = np.append(number, longer)
        offset = np.append(offset, border[longer])
        whole = np.append(whole, np.zeros(len(longer), dtype=bool))
    order = np.lexsort((offset, number))
    number, offset, whole = number[order], offset[order], whole[order]
    same = np.append(False, (number[1:] == number[:-1]) & (np.diff(offset) < _LEAST_PART_SECONDS / 2))
    keep = whole | ~same
    number, offset, whole = number[keep], offset[keep], whole[keep]
    age = np.searchsorted(np.array(ages), offset + 1e-9, side="left")
    return number, heads.begin[number] + offset, np.cumsum(whole) - 1, age.astype(np.int64)


def _with_margins(inner: Stretches, most: float, margin: float) -> Stretches:
    """Adds what lies around the run, and between its windows, as stretches that no row counts."""
    holes = np.flatnonzero(inner.start[1:] - inner.stop[:-1] > 1e-9)
    gaps = [(inner.start[0] - margin, inner.start[0]), (inner.stop[-1], inner.stop[-1] + margin)]
    gaps += [(inner.stop[hole], inner.start[hole + 1]) for hole in holes]
    edges = [np.linspace(low, high, max(int(np.ceil((high - low) / most)), 1) + 1) for low, high in gaps]
    more = np.concatenate([edge[:-1] for edge in edges])
    start = np.append(inner.start, more)
    order = np.argsort(start, kind="stable")
    extra = np.zeros(len(more), dtype=np.int64)
    fresh = inner.instance[-1] + 1 + np.arange(len(more))
    instance = np.append(inner.instance, fresh)[order]
    changes = np.append(True, instance[1:] != instance[:-1])
    empty = sparse.csr_matrix((inner.weights.shape[0], len(more)))
    return Stretches(
        start[order],
        np.append(inner.stop, np.concatenate([edge[1:] for edge in edges]))[order],
        np.append(inner.kind, extra)[order],
        np.append(inner.age, extra)[order],
        np.append(inner.position, np.zeros(len(more)))[order],
        np.cumsum(changes) - 1,
        np.append(inner.outside, np.ones(len(more), dtype=bool))[order],
        sparse.csr_matrix(sparse.hstack([inner.weights, empty]).tocsr()[:, order]),
    )
