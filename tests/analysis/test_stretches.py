"""A run cut into stretches: every second is kept, in its row."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.counter import NANO, Floats
from wattq.regression import identity_groups
from wattq.stretches import AGES, Stretches, cut_stretches
from wattq.sweep import OUTSIDE, Phases, Pieces, cut

from tests.analysis.made import seeds

MICRO = 1_000
MILLI = 1_000_000
MARGIN = 0.3

# (microseconds between the last begin and this one, microseconds it lasts, name, lane)
spans_strategy = st.lists(
    st.tuples(
        st.sampled_from([20, 150, 1_000, 8_000, 60_000]),
        st.sampled_from([30, 700, 5_000, 33_000, 250_000]),
        st.integers(0, 3),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=25,
)


def pieces_of(spans: list[tuple[int, int, int, int]], *, windows: int = 1) -> Pieces:
    """Returns a run cut into rows; phases may nest and overlap, and the run may have been interrupted."""
    begin = np.cumsum([span[0] for span in spans]) * MICRO
    end = begin + np.array([span[1] for span in spans]) * MICRO
    name, lane = (np.array([span[place] for span in spans]) for place in (2, 3))
    last = int(end.max()) + 5 * MILLI
    limits = [
        (place * last // windows, place * last // windows + last // (windows + 1)) for place in range(windows)
    ]
    return cut(Phases(begin, end, name, lane, ("a", "b", "c", "d")), limits)


def stretches_of(pieces: Pieces, update: float = 0.02, ages: tuple[float, ...] = ()) -> Stretches:
    return cut_stretches(pieces, identity_groups(pieces), update, MARGIN, ages=ages)


def steps_of(lengths: list[tuple[int, int]], gap: int = 0) -> Pieces:
    """Returns phases of (microseconds, name) one after another with a gap of microseconds after each."""
    now, spans = 0, []
    for length, name in lengths:
        spans.append((now, now + length, name))
        now += length + gap
    columns = np.array(spans, dtype=np.int64) * np.array([MICRO, MICRO, 1])
    phases = Phases(columns[:, 0], columns[:, 1], columns[:, 2], np.zeros(len(spans), np.int64), ("a", "b"))
    return cut(phases, [(0, now * MICRO)])


@settings(max_examples=60, deadline=None)
@given(spans_strategy, st.sampled_from([0.004, 0.02, 0.1]), st.integers(1, 3), st.sampled_from([(), AGES]))
def test_every_second_of_a_row_is_kept(
    spans: list[tuple[int, int, int, int]], update: float, windows: int, ages: tuple[float, ...]
) -> None:
    """The weights of a row add up to the seconds of its pieces, however it is cut."""
    pieces = pieces_of(spans, windows=windows)
    found = stretches_of(pieces, update, ages)
    seconds = np.bincount(pieces.row, weights=(pieces.stop - pieces.start) / NANO, minlength=len(pieces.rows))
    assert np.asarray(found.weights.sum(axis=1)).ravel() == pytest.approx(seconds, abs=1e-12)
    assert found.weights.min() >= 0


@settings(max_examples=60, deadline=None)
@given(spans_strategy, st.sampled_from([0.004, 0.1]), st.integers(1, 3), st.sampled_from([(), AGES]))
def test_stretches_fill_the_time_without_overlap(
    spans: list[tuple[int, int, int, int]], update: float, windows: int, ages: tuple[float, ...]
) -> None:
    """From a margin before the run to one after it each moment is in one stretch, none of them long."""
    pieces = pieces_of(spans, windows=windows)
    found = stretches_of(pieces, update, ages)
    end = (pieces.stop[-1] - pieces.start[0]) / NANO
    assert found.start[0] == pytest.approx(-MARGIN)
    assert found.stop[-1] == pytest.approx(end + MARGIN)
    assert (found.stop > found.start).all()
    assert found.start[1:] == pytest.approx(found.stop[:-1], abs=1e-9)
    assert (found.stop - found.start).max() <= max(4 * update, 0.1) + 2e-4 * len(pieces.row)
    assert set(np.diff(found.instance).tolist()) <= {0, 1}


def test_tiny_gap_belongs_to_the_phase_before_it() -> None:
    """The microseconds between two phases have that power which was there: no stretch of their own."""
    pieces = steps_of([(10_000, 0), (20_000, 1)] * 15, gap=50)
    found = stretches_of(pieces)
    inner = (found.start > -1e-9) & (found.stop < pieces.stop[-1] / NANO + 1e-9)
    assert (found.stop - found.start)[inner] == pytest.approx([0.01005, 0.02005] * 15)
    # Their seconds are still those of (outside), with the power of the phase before.
    outside = found.weights[[pieces.rows.index(OUTSIDE)]].toarray().ravel()
    assert outside[inner] == pytest.approx([50e-6] * 30)


def test_phase_that_is_always_tiny_keeps_its_place() -> None:
    """A row made of short pieces alone is not swallowed by its neighbours."""
    pieces = steps_of([(10_000, 0), (100, 1)] * 15)
    found = stretches_of(pieces)
    short = (found.stop - found.start) < 2e-4
    assert int(short.sum()) == 15
    row = found.weights[[pieces.rows.index("b")]].toarray().ravel()
    assert row[short] == pytest.approx(1e-4)
    assert row[~short].sum() == 0


def test_ages_cut_where_they_should() -> None:
    """With ages a phase is cut at their borders and at its quarters; and each part knows its age."""
    pieces = steps_of([(80_000, 0), (24_000, 1)] * 12)
    found = stretches_of(pieces, 0.02, AGES)
    first = (found.start >= -1e-9) & (found.stop <= 0.08 + 1e-9)
    borders = {0.0, *AGES, 0.02, 0.04, 0.06}
    assert borders <= set(found.start[first].round(9).tolist())
    assert found.age[first].tolist() == np.searchsorted(AGES, found.start[first] + 1e-9).tolist()
    middle = (found.start + found.stop)[first] / 2
    assert found.position[first] == pytest.approx(middle / 0.08 - 0.5)
    second = (found.start >= 0.08 - 1e-9) & (found.stop <= 0.104 + 1e-9)
    begins = found.start[second] - 0.08
    assert {0.0, 0.004, 0.006, 0.012, 0.018} <= set(begins.round(9).tolist())
    assert found.age[second].tolist() == np.searchsorted(AGES, begins + 1e-9).tolist()
    # The parts of one phase deviate together.
    assert len(set(found.instance[first].tolist())) == 1
    assert found.instance[second][0] == found.instance[first][0] + 1


def test_power_may_depend_on_the_row_before_where_that_is_frequent() -> None:
    """A row after one and after another are two kinds if each comes ten times; else they share one."""
    often = steps_of([(10_000, 0), (10_000, 1), (12_000, 0), (9_000, 0)] * 12, gap=0)
    # Touching phases of one name are one interval; a gap keeps them apart.
    apart = steps_of([(10_000, 0), (10_000, 1), (12_000, 0)] * 12, gap=300)
    assert len(set(stretches_of(often).kind.tolist())) >= 3
    rare = steps_of([(10_000, 0), (10_000, 1)] * 4)
    found = stretches_of(rare)
    inner = ~found.outside
    assert len(set(found.kind[inner].tolist())) == 2
    assert stretches_of(apart).outside.sum() > 30


def test_each_state_of_the_device_has_a_power_of_its_own() -> None:
    """A phase that ran at two clock rates is two kinds; its seconds are still those of one row."""
    pieces = steps_of([(10_000, 0), (10_000, 1)] * 40)
    states = (np.arange(len(pieces.row)) >= 40).astype(np.int64)
    slow = cut_stretches(pieces, identity_groups(pieces), 0.02, MARGIN, states=states)
    inner = ~slow.outside
    first = slow.kind[inner & (slow.start < 0.4 - 1e-9)]
    second = slow.kind[inner & (slow.start > 0.4 - 1e-9)]
    assert set(first.tolist()).isdisjoint(second.tolist())
    assert slow.weights.toarray() == pytest.approx(stretches_of(pieces).weights.toarray())


@settings(max_examples=40, deadline=None)
@given(spans_strategy, seeds, st.integers(1, 4))
def test_blocks_share_out_the_weights(spans: list[tuple[int, int, int, int]], seed: int, count: int) -> None:
    """Each block has its own weights alone; all blocks together have each weight once."""
    pieces = pieces_of(spans)
    found = stretches_of(pieces, 0.02, AGES)
    end = (pieces.stop[-1] - pieces.start[0]) / NANO
    inner = np.sort(np.random.default_rng(seed).uniform(0, end, count - 1))
    borders = np.concatenate([[0.0], inner, [end]])
    whole: Floats = np.zeros(found.weights.shape[0])
    for low, high in itertools.pairwise(borders):
        part = found.select(low - MARGIN, high + MARGIN, low, high)
        row = np.asarray(part.weights.sum(axis=1)).ravel()
        owned = (part.start >= low) & (part.start < high)
        assert np.asarray(part.weights.sum(axis=0)).ravel()[~owned] == pytest.approx(0, abs=1e-15)
        assert len(part.instance) == 0 or part.instance[0] == 0
        # No instance is cut in two at the ends of what was selected.
        outer = found.instance[np.isin(found.start, part.start)]
        assert np.isin(found.instance, outer).sum() == len(part.start)
        whole += row
    assert whole == pytest.approx(np.asarray(found.weights.sum(axis=1)).ravel(), abs=1e-12)
