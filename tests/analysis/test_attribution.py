"""What the regression gives to the rows of a run: all of the counter, with an honest width, or a reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.attribution import NotApplicableError, _locked, close, groups_of
from wattq.counter import NANO
from wattq.regression import identity_groups
from wattq.sweep import OUTSIDE, Phases, cut, union

from tests.analysis.made import seeds
from tests.analysis.simulated import Simulated, half_widths, known

MILLI = 1_000_000
joules_strategy = st.lists(st.floats(-20, 1000), min_size=1, max_size=9)


@settings(max_examples=12, deadline=None)
@given(seeds, st.sampled_from(["h100_100", "h100_20", "v100"]), st.tuples(*[st.booleans()] * 3))
def test_rows_add_up_to_the_counter(seed: int, sensor: str, shape: tuple[bool, bool, bool]) -> None:
    """Rows of a device = its counter over the run, whatever nests and overlaps; none is negative."""
    nested, overlapped, power = shape
    run = Simulated(sensor, seed, steps=12, nested=nested, overlapped=overlapped)
    found = run.attributed(known(run.response), power=power)
    assert found.shares.joules.sum() == pytest.approx(run.rise, rel=1e-9)
    assert (found.shares.joules >= 0).all()
    assert (half_widths(found) >= 0).all()
    assert not found.fitted_from_run


@given(joules_strategy, st.floats(0.01, 5000), seeds)
def test_closing_adds_up_and_leaves_nothing_negative(joules: list[float], total: float, seed: int) -> None:
    """Whatever the regression says, the rows are a whole counter and no row gives energy back."""
    width = np.random.default_rng(seed).uniform(0, 50, len(joules))
    closed, moved = close(np.array(joules), width, total)
    assert closed.sum() == pytest.approx(total, rel=1e-9)
    assert (closed >= 0).all()
    assert moved[0] == 0
    assert moved[1:] == pytest.approx(np.abs(closed - joules)[1:])


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=9), st.floats(0, 500))
def test_closing_leaves_rows_alone_where_the_outside_can_give(joules: list[float], more: float) -> None:
    """What lies outside of all phases takes the difference as long as it has it."""
    phases = np.array([0.0, *joules])
    closed, moved = close(phases, np.ones(len(phases)), sum(joules) + more)
    assert closed[1:] == pytest.approx(joules, abs=1e-9)
    assert closed[0] == pytest.approx(more, abs=1e-6)
    assert moved == pytest.approx(0, abs=1e-9)


def test_closing_takes_from_what_is_least_known() -> None:
    """Where the outside has too little, a wide row gives more than a narrow one."""
    closed, _ = close(np.array([0.0, 100.0, 100.0]), np.array([1.0, 1.0, 10.0]), 190.0)
    assert closed[0] == 0
    assert 100 - closed[1] < (100 - closed[2]) / 50


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 300), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=20,
    )
)
def test_groups_are_each_row_and_the_whole_of_each_name(spans: list[tuple[int, int, int, int]]) -> None:
    """A piece counts in its own row, and in the inclusive energy of every name that runs in it."""
    begin, length, name, lane = np.array(spans, dtype=np.int64).T
    phases = Phases(begin, begin + length, name, lane, ("a", "b", "c"))
    pieces = cut(phases, [(0, 1000)])
    groups, names = groups_of(phases, pieces, union(phases.begin, phases.end, phases.name))
    rows = len(pieces.rows)
    assert (groups[:rows] != identity_groups(pieces)).nnz == 0
    seconds = groups @ (pieces.stop - pieces.start)
    for place, said in enumerate(names):
        moments = np.zeros(1000, dtype=bool)
        for start, stop, number in zip(begin, begin + length, name, strict=True):
            if phases.names[number] == said:
                moments[start:stop] = True
        assert seconds[rows + place] == pytest.approx(moments.sum())


def test_short_phases_are_right_within_their_intervals() -> None:
    """Phases far shorter than the counter's updates: near the truth, and the interval says how near."""
    run = Simulated("h100_100", 11, steps=150)
    found = run.attributed(known(run.response))
    half = half_widths(found)
    for place, name in enumerate(run.trace.pieces.rows):
        if name == OUTSIDE:
            continue
        truth = run.truth[name]
        assert abs(found.shares.joules[place] - truth) < 1.5 * half[place], name
        assert half[place] < (0.2 if name in {"data_load", "optimizer_step"} else 0.01) * truth
    assert found.reasons == {}


def test_response_is_fitted_where_none_was_measured() -> None:
    """Without a calibration the run itself tells the response; the intervals are wider for it."""
    run = Simulated("h100_100", 12, steps=100)
    fitted, given_it = run.attributed(), run.attributed(known(run.response))
    assert fitted.fitted_from_run
    assert fitted.shares.response.sum() > given_it.shares.response.sum()
    assert fitted.shares.joules.sum() == pytest.approx(run.rise, rel=1e-9)


def test_counter_alone_is_less_sure() -> None:
    """What the power reading tells is missing from the counter alone, and the interval says so."""
    run = Simulated("h100_100", 13, steps=100)
    both, alone = (run.attributed(known(run.response), power=power) for power in (True, False))
    phases = np.array([name != OUTSIDE for name in run.trace.pieces.rows])
    assert (half_widths(alone)[phases] > 1.5 * half_widths(both)[phases]).all()


def test_inclusive_energy_has_the_nested_phases_in_it() -> None:
    """What an outer phase used with all in it is its own row and those of the nested ones."""
    run = Simulated("h100_20", 14, steps=40, nested=True)
    found = run.attributed(known(run.response))
    rows = dict(zip(run.trace.pieces.rows, found.shares.joules.tolist(), strict=True))
    parts = rows["update"] + rows["student_forward"] + rows["backward"]
    assert found.inclusive["update"] == pytest.approx(parts, rel=0.01)
    assert found.inclusive["data_load"] == pytest.approx(rows["data_load"], rel=0.05)


def test_too_few_readings_are_refused() -> None:
    """A run with hardly a reading in it is told why, and gets nothing."""
    run = Simulated("h100_100", 15, steps=3)
    with pytest.raises(NotApplicableError, match=r"readings are too few for a regression \(20 are needed\)"):
        run.attributed()


def test_short_phase_that_ran_seldom_is_refused() -> None:
    """A fast counter reads a run of three steps often enough; three times are too few to tell phases."""
    found = Simulated("h100_20", 17, steps=3).attributed()
    assert {reason.partition(":")[0] for reason in found.reasons.values()} == {"it ran 3 times"}
    assert len(found.reasons) == 5


def test_readings_across_a_recorded_gap_are_not_used() -> None:
    """Where the daemon says that it was blind for a moment, nothing is an observation; all adds up still."""
    run = Simulated("h100_20", 16, steps=40)
    begin = int(run.trace.pieces.start[0])
    gaps = np.array([[begin + 2_000 * MILLI, begin + 2_015 * MILLI]])
    whole, blind = run.attributed(known(run.response)), run.attributed(known(run.response), gaps=gaps)
    assert blind.shares.joules.sum() == pytest.approx(run.rise, rel=1e-9)
    assert half_widths(blind)[1:].sum() > half_widths(whole)[1:].sum()


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(5, 60))
def test_lock_step_is_told_from_chance(seed: int, places: int, steps: int) -> None:
    """Begins at a few places between updates are in step; a grid that drifts against them frees them."""
    rng = np.random.default_rng(seed)
    counter = np.arange(2_000) * 100 * MILLI
    begins = np.cumsum(np.full(steps, 300 * MILLI)) + np.arange(steps) % places * 100 * MILLI // places
    begins += rng.integers(0, 100) * MILLI
    assert "keeps in step with the sensor's updates of 100 ms" in _locked(begins, (counter,))
    drifting = np.arange(2_000) * 113 * MILLI + 5
    many = np.cumsum(np.full(60, 300 * MILLI))
    assert _locked(many, (counter, drifting)) == ""
    anywhere = np.sort(rng.integers(0, 150 * NANO, 60))
    assert _locked(anywhere, (counter,)) == ""
    assert _locked(begins[:4], (counter,)) == ""
