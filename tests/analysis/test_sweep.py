from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.sweep import OUTSIDE, Phases, Pieces, cut, union

NAMES = ("a", "b", "c")


def phases_of(spans: list[tuple[int, int, int, int]]) -> Phases:
    """Returns phases from (begin, end, name, lane)."""
    columns = np.array(spans, dtype=np.int64).reshape(-1, 4)
    return Phases(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], NAMES)


def seconds_by_row(pieces: Pieces) -> dict[str, int]:
    """Returns the time of each row that has any."""
    time = np.bincount(pieces.row, weights=pieces.stop - pieces.start, minlength=len(pieces.rows))
    return {name: int(amount) for name, amount in zip(pieces.rows, time, strict=True) if amount}


def brute_force(spans: list[tuple[int, int, int, int]], windows: list[tuple[int, int]]) -> dict[str, int]:
    """Walks over every unit of time, the slow and obvious way, for phases that nest within a lane."""
    found: dict[str, int] = {}
    for begin, end in windows:
        for now in range(begin, end):
            running = set()
            for lane in {span[3] for span in spans}:
                inside = [span for span in spans if span[3] == lane and span[0] <= now < span[1]]
                if inside:
                    running.add(NAMES[max(inside, key=lambda span: (span[0], -span[1]))[2]])
            row = "+".join(sorted(running)) or OUTSIDE
            found[row] = found.get(row, 0) + 1
    return found


@st.composite
def nested(
    draw: st.DrawFn, lane: int, begin: int = 0, end: int = 60, depth: int = 3
) -> list[tuple[int, int, int, int]]:
    """Draws phases of one lane that nest, each strictly shorter than the one around it."""
    spans = []
    now = begin
    while now < end and depth:
        start = draw(st.integers(now, end))
        stop = draw(st.integers(start, end))
        if start == begin and stop == end and depth < 3:
            break
        if stop > start:
            spans.append((start, stop, draw(st.integers(0, 2)), lane))
            if draw(st.booleans()):
                spans += draw(nested(lane, start, stop, depth - 1))
        now = stop + 1
    return spans


@st.composite
def lanes(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Draws phases of up to three threads."""
    spans = []
    for lane in range(draw(st.integers(1, 3))):
        spans += draw(nested(lane))
    return draw(st.permutations(spans))


def test_nested_phase_takes_its_time_out_of_the_outer_one() -> None:
    """A nested phase's time is its own, and the outer one has the rest."""
    pieces = cut(phases_of([(10, 50, 0, 0), (20, 30, 1, 0)]), [(0, 60)])
    assert seconds_by_row(pieces) == {"a": 30, "b": 10, OUTSIDE: 20}


def test_other_names_at_once_form_a_row_of_their_own() -> None:
    """Phases of different threads that run at once are one row, names sorted."""
    pieces = cut(phases_of([(10, 50, 1, 0), (40, 55, 0, 1)]), [(0, 60)])
    assert seconds_by_row(pieces) == {"a": 5, "b": 30, "a+b": 10, OUTSIDE: 15}


def test_one_name_on_several_ranks_is_one_interval() -> None:
    """The same name from several ranks counts once."""
    pieces = cut(phases_of([(10, 30, 0, 0), (20, 50, 0, 1)]), [(0, 60)])
    assert seconds_by_row(pieces) == {"a": 40, OUTSIDE: 20}


def test_phases_of_one_thread_that_overlap_without_nesting_run_side_by_side() -> None:
    """Time is never given away where marks of one thread cross."""
    pieces = cut(phases_of([(10, 30, 0, 0), (20, 50, 1, 0)]), [(0, 60)])
    assert seconds_by_row(pieces) == {"a": 10, "a+b": 10, "b": 20, OUTSIDE: 20}


def test_windows_of_a_restarted_run_leave_the_pause_out() -> None:
    """What happens between two starts of a run is not the run's."""
    pieces = cut(phases_of([(10, 20, 0, 0), (70, 90, 0, 0)]), [(0, 30), (60, 100)])
    assert seconds_by_row(pieces) == {"a": 30, OUTSIDE: 40}


def test_more_names_than_bits_in_a_word() -> None:
    """Any number of names may run at once, and each is found again in the row's name."""
    names = tuple(f"n{number:03d}" for number in range(130))
    many = Phases(np.zeros(130, np.int64), np.full(130, 10), np.arange(130), np.arange(130), names)
    assert cut(many, [(0, 10)]).rows[-1].split("+") == list(names)


@settings(max_examples=150, deadline=None)
@given(lanes())
def test_sweep_equals_brute_force(spans: list[tuple[int, int, int, int]]) -> None:
    """The vectorised sweep gives each row the time that a walk over every moment gives it."""
    # Two phases with the same limits in one lane have no order that a walk could know.
    spans = [
        span
        for place, span in enumerate(spans)
        if not any(span[:2] == o[:2] and span[3] == o[3] for o in spans[:place])
    ]
    assert seconds_by_row(cut(phases_of(spans), [(0, 61)])) == brute_force(spans, [(0, 61)])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2), st.integers(0, 2)), max_size=30
    )
)
def test_pieces_are_disjoint_and_fill_the_window(spans: list[tuple[int, int, int, int]]) -> None:
    """Whatever the marks, nested, crossing or empty: pieces fill the run without holes or overlaps."""
    spans = [(min(a, b), max(a, b), name, lane) for a, b, name, lane in spans]
    pieces = cut(phases_of(spans), [(0, 60)])
    assert pieces.start[0] == 0
    assert pieces.stop[-1] == 60
    assert (pieces.start[1:] == pieces.stop[:-1]).all()
    assert (pieces.stop > pieces.start).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.integers(0, 2)), max_size=12))
def test_union_is_disjoint_and_covers_the_same_moments(spans: list[tuple[int, int, int, int]]) -> None:
    """A union has each moment of each name once."""
    start = np.array([span[0] for span in spans], dtype=np.int64)
    stop = start + np.array([span[1] for span in spans], dtype=np.int64)
    name = np.array([span[2] for span in spans], dtype=np.int64)
    left, right, names = union(start, stop, name)
    moments = {(n, t) for a, b, n in zip(start, stop, name, strict=True) for t in range(a, b)}
    assert {(n, t) for a, b, n in zip(left, right, names, strict=True) for t in range(a, b)} == moments
    merged = list(zip(left, right, names, strict=True))
    assert not any(x[2] == y[2] and x[0] < y[1] and y[0] < x[1] for x, y in combinations(merged, 2))
