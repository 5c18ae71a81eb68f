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
AGES = (0.004, 0.012, 0.030)
"""Borders of the ages of a phase within which its power may have a mean of its own, seconds."""


@dataclass(frozen=True)
class Stretches:
    """Disjoint stretches of time in order; seconds from the run's begin.

    Attributes:
        start: Begin of each.
        stop: End of each.
        row: The row of the answer whose mean power it has.
        age: Number of its age since its phase began, as AGES divides them; 0 where ages do not matter.
        instance: Number of the instance it is a part of; the parts of one deviate from the mean together.
        outside: It belongs to nothing that repeats.
        weights: Seconds of each stretch in each row, one row of the matrix a row.
    """

    start: Floats
    stop: Floats
    row: Ints
    age: Ints
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
            self.row[part],
            self.age[part],
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


def cut_stretches(
    pieces: Pieces, groups: sparse.csr_matrix, update_seconds: float, margin_seconds: float, ages: tuple[float, ...] = ()
) -> Stretches:
    """Cuts a run, and a margin before and after it, into stretches of one power.

    Args:
        pieces: The run.
        groups: Which pieces count in which rows of the answer, one row of the matrix a row.
        update_seconds: Usual time between observations.
        margin_seconds: How much before and after the run shares observations with it.
        ages: Borders of ages, seconds; empty: power within a phase is constant.
    """
    origin = pieces.start[0]
    start, stop = (pieces.start - origin) / NANO, (pieces.stop - origin) / NANO
    touch = np.append(False, pieces.start[1:] == pieces.stop[:-1])
    tiny = touch & (pieces.row == 0) & (stop - start < _TINY_SECONDS)
    owner = np.cumsum(~tiny) - 1
    head = np.flatnonzero(~tiny)
    last = np.append(head[1:] - 1, len(start) - 1)
    heads = _Heads(start[head], stop[last], pieces.row[head])
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
    row = heads.row[number]
    inner = Stretches(begin, end, row, age, instance, row == 0, weights)
    return _with_margins(inner, most, margin_seconds)


def _parts(heads: _Heads, most: float, ages: tuple[float, ...]) -> tuple[Ints, Floats, Ints, Ints]:
    """Returns (number of the head, begin, instance, age) of each part."""
    length = heads.end - heads.begin
    count = np.maximum(np.ceil(length / most).astype(np.int64), 1)
    number = np.repeat(np.arange(len(length)), count)
    place = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)
    offset = place * (length / count)[number]
    whole = np.ones(len(number), dtype=bool)
    for border in ages:
        # The rest of a phase that ends just after a border stays with the age before it.
        longer = np.flatnonzero((length > 1.25 * border) & (heads.row != 0))
        number = np.append(number, longer)
        offset = np.append(offset, np.full(len(longer), border))
        whole = np.append(whole, np.zeros(len(longer), dtype=bool))
    order = np.lexsort((offset, number))
    number, offset, whole = number[order], offset[order], whole[order]
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
        np.append(inner.row, extra)[order],
        np.append(inner.age, extra)[order],
        np.cumsum(changes) - 1,
        np.append(inner.outside, np.ones(len(more), dtype=bool))[order],
        sparse.csr_matrix(sparse.hstack([inner.weights, empty]).tocsr()[:, order]),
    )
