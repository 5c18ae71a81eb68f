"""Cuts time into disjoint pieces, each of which belongs to one row of the answer.

Phases of one thread of a client nest: a nested phase takes its time out of the outer one. Phases of different
threads, ranks or clients run side by side: at each moment the names that run are a set, and a set of several
names is a row of its own, `a+b`. The same name twice at once is one interval. All of it is sorting and
cumulative sums over the edges, so that a million phases take seconds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

OUTSIDE = "(outside)"
UNRESOLVED = "(unresolved)"

# Bits of a mask word that hold a name; bit 63 is the sign.
_WORD = 62


@dataclass(frozen=True)
class Phases:
    """Tagged intervals as columns of equal length.

    Attributes:
        begin: Begin of each phase, monotonic nanoseconds.
        end: End of each phase, monotonic nanoseconds; not before its begin.
        name: Number of the phase's name in `names`.
        lane: Which client thread the phase is from; phases of one lane nest.
        names: The names.
    """

    begin: Ints
    end: Ints
    name: Ints
    lane: Ints
    names: tuple[str, ...]

    def pick(self, chosen: Bools) -> "Phases":
        """Returns the phases for which `chosen` is true."""
        return Phases(self.begin[chosen], self.end[chosen], self.name[chosen], self.lane[chosen], self.names)


@dataclass(frozen=True)
class Pieces:
    """Disjoint pieces of time in order, each with the row it belongs to.

    Attributes:
        start: Begin of each piece, monotonic nanoseconds.
        stop: End of each piece, monotonic nanoseconds.
        row: Number of its row in `rows`.
        rows: Names of the rows; the first is `(outside)`.
    """

    start: Ints
    stop: Ints
    row: Ints
    rows: tuple[str, ...]


@dataclass(frozen=True)
class _Edges:
    """Edges of nesting phases, sorted by lane and time; `phase` is the phase's number in its input."""

    time: Ints
    phase: Ints
    opens: Bools
    depth: Ints


def _edges(phases: Phases) -> _Edges:
    count = len(phases.begin)
    number = np.arange(count, dtype=np.int64)
    time = np.concatenate([phases.end, phases.begin])
    opens = np.repeat(np.array([False, True]), count)
    # At one moment ends come before begins; among ends the one that began last goes first, among begins the
    # longest.
    tie = np.concatenate([-phases.begin, -phases.end])
    serial = np.concatenate([-number, number])
    lane = np.concatenate([phases.lane, phases.lane])
    order = np.lexsort((serial, tie, opens, time, lane))
    opens = opens[order]
    depth = np.cumsum(np.where(opens, 1, -1))
    return _Edges(time[order], np.concatenate([number, number])[order], opens, depth)


def _last_at_depth(edges: _Edges, depth: int) -> Ints:
    """Returns, for each edge, the phase that was last opened at a depth, or -1."""
    position = np.where(edges.opens & (edges.depth == depth), np.arange(len(edges.time)), -1)
    last = np.maximum.accumulate(position)
    return np.where(last >= 0, edges.phase[last], -1)


def _innermost(edges: _Edges) -> tuple[Ints, Bools]:
    """Returns the innermost open phase after each edge (-1: none), and which ends do not close it."""
    inner = np.where(edges.opens, edges.phase, -1)
    improper = np.zeros(len(edges.time), dtype=bool)
    for depth in range(1, int(edges.depth.max(initial=0)) + 1):
        last = _last_at_depth(edges, depth)
        closes_to = ~edges.opens & (edges.depth == depth)
        inner[closes_to] = last[closes_to]
        closes_from = ~edges.opens & (edges.depth == depth - 1)
        improper[closes_from] = last[closes_from] != edges.phase[closes_from]
    return inner, improper


def _place(stacks: list[list[int]], begin: int, end: int) -> int:
    """Returns the first stack of open phases in which a phase nests, by the ends of those that are open."""
    for place, stack in enumerate(stacks):
        while stack and stack[-1] <= begin:
            stack.pop()
        if not stack or end <= stack[-1]:
            return place
    stacks.append([])
    return len(stacks) - 1


def _relane(phases: Phases, lanes: Ints) -> Phases:
    """Gives phases that overlap without nesting a lane of their own, so that they count as side by side."""
    lane = phases.lane.copy()
    fresh = int(lane.max(initial=0))
    for bad in lanes.tolist():
        members = np.flatnonzero(phases.lane == bad)
        members = members[np.lexsort((-phases.end[members], phases.begin[members]))]
        stacks: list[list[int]] = []
        for number in members.tolist():
            place = _place(stacks, int(phases.begin[number]), int(phases.end[number]))
            stacks[place].append(int(phases.end[number]))
            lane[number] = fresh + place if place else bad
        fresh += len(stacks) - 1
    return Phases(phases.begin, phases.end, phases.name, lane, phases.names)


def flatten(phases: Phases) -> tuple[Ints, Ints, Ints]:
    """Takes nested phases out of their outer ones.

    Returns:
        Begin, end and number of the name of each stretch of a lane in which one phase is the innermost.
    """
    phases = phases.pick(phases.end > phases.begin)
    edges = _edges(phases)
    inner, improper = _innermost(edges)
    if improper.any():
        phases = _relane(phases, np.unique(phases.lane[edges.phase[improper]]))
        edges = _edges(phases)
        inner, _ = _innermost(edges)
    if not len(inner):
        return edges.time, edges.time, edges.time
    start, stop, inner = edges.time[:-1], edges.time[1:], inner[:-1]
    keep = (inner >= 0) & (stop > start)
    return start[keep], stop[keep], phases.name[inner[keep]]


def union(start: Ints, stop: Ints, name: Ints) -> tuple[Ints, Ints, Ints]:
    """Merges intervals of one name that overlap or touch.

    Returns:
        Begin, end and name of the merged intervals, sorted by name and begin.
    """
    count = len(start)
    time = np.concatenate([start, stop])
    step = np.repeat(np.array([1, -1], dtype=np.int64), count)
    names = np.concatenate([name, name])
    # Begins before ends at one moment, so that intervals that touch are one.
    order = np.lexsort((-step, time, names))
    time, step, names = time[order], step[order], names[order]
    depth = np.cumsum(step)
    first = (step == 1) & (depth == 1)
    last = depth == 0
    return time[first], time[last], names[first]


def _masks(start: Ints, stop: Ints, name: Ints, words: int) -> tuple[Ints, Ints]:
    """Returns the moments at which the set of running names changes, and the set after each as bit masks."""
    time = np.concatenate([start, stop])
    names = np.concatenate([name, name])
    order = np.argsort(time, kind="stable")
    time, names = time[order], names[order]
    masks = np.zeros((len(time), words), dtype=np.int64)
    masks[np.arange(len(time)), names // _WORD] = np.left_shift(np.int64(1), names % _WORD)
    masks = np.bitwise_xor.accumulate(masks, axis=0)
    settled = np.append(time[1:] != time[:-1], True) if len(time) else np.zeros(0, dtype=bool)
    return time[settled], masks[settled]


def _label(mask: Ints, names: tuple[str, ...]) -> str:
    running = [name for number, name in enumerate(names) if mask[number // _WORD] >> (number % _WORD) & 1]
    return "+".join(sorted(running)) or OUTSIDE


def merge(*moments: Ints) -> Ints:
    """Returns the moments of several sorted arrays, sorted and each once."""
    # A stable sort merges runs that are sorted already; np.unique would hash every moment.
    every = np.sort(np.concatenate(moments), kind="stable")
    return every[np.append(True, every[1:] != every[:-1])] if len(every) else every


def cut(phases: Phases, windows: list[tuple[int, int]]) -> Pieces:
    """Cuts the windows of a run into disjoint pieces by its phases.

    Args:
        phases: The phases that count on a device.
        windows: When the run ran, disjoint and in order, monotonic nanoseconds.

    Returns:
        Pieces that fill the windows without holes; what lies outside all phases is in row `(outside)`.
    """
    start, stop, name = union(*flatten(phases))
    words = len(phases.names) // _WORD + 1
    moments, masks = _masks(start, stop, name, words)
    limits = np.array(windows, dtype=np.int64).reshape(-1, 2)
    bounds = merge(moments, limits.ravel())
    left, right = bounds[:-1], bounds[1:]
    inside = np.searchsorted(limits[:, 0], left, side="right") - 1
    keep = (inside >= 0) & (right <= limits[inside, 1])
    left, right = left[keep], right[keep]
    state = np.searchsorted(moments, left, side="right")
    known = np.vstack([np.zeros((1, words), dtype=np.int64), masks])
    if words == 1:
        # There are few kinds, and looking each moment up among them is far faster than sorting the moments.
        kinds = np.unique(known[:, 0])
        row, kinds = np.searchsorted(kinds, known[:, 0]), kinds.reshape(-1, 1)
    else:
        kinds, row = np.unique(known, axis=0, return_inverse=True)
    labels = [_label(kind, phases.names) for kind in kinds]
    return Pieces(left, right, row.reshape(-1)[state], tuple(labels))
