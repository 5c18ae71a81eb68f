"""Rises of the counter and power readings in one order, and the edges that they are made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.counter import NANO, UNKNOWN, Counter
from wattq.evidence import Evidence, Series, power_series
from wattq.observations import Observations, observations

MILLI = 1_000_000
ORIGIN = 7_000 * NANO
NO_POWER = Series(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

steps_strategy = st.lists(st.tuples(st.integers(15, 25), st.floats(0.01, 20)), min_size=3, max_size=60)


def counter_of(steps: list[tuple[int, float]], *, bracket: int = MILLI) -> Counter:
    """Returns a counter that rises by so many joules after so many milliseconds."""
    edge = ORIGIN + np.cumsum([length for length, _ in steps]) * MILLI
    energy = 5_000.0 + np.cumsum([joules for _, joules in steps])
    period = int(np.median(np.diff(edge)))
    return Counter(edge, np.full(len(edge), bracket), energy, period)


def power_of(count: int, every: int = 33) -> Series:
    moment = ORIGIN + np.arange(count) * every * MILLI + 500_000
    return Series(moment, np.full(count, 2 * MILLI), np.linspace(100.0, 99.0 + count, count))


@settings(max_examples=60, deadline=None)
@given(steps_strategy, st.integers(0, 30))
def test_all_is_there_once_and_in_order(steps: list[tuple[int, float]], readings: int) -> None:
    """Each rise and each reading is an observation; they come by their ends, and rises add up."""
    counter, power = counter_of(steps), power_of(readings)
    found = observations(counter, power, ORIGIN, 0.004)
    assert (np.diff(found.end) >= 0).all()
    rises = ~found.is_power
    assert found.value[rises].sum() == pytest.approx(counter.energy[-1] - counter.energy[0])
    assert found.value[found.is_power].tolist() == power.value.tolist()
    assert (found.end - found.begin)[rises].sum() == pytest.approx(
        (counter.edge[-1] - counter.edge[0]) / NANO
    )
    assert np.isnan(found.begin[found.is_power]).all()
    assert found.end_half[rises] == pytest.approx(5e-4)
    assert found.end_half[found.is_power] == pytest.approx(1e-3)


def followers_are_right(found: Observations) -> bool:
    """Tells whether each rise is followed by the one that begins where it ends, and by no other."""
    rises = np.flatnonzero(~found.is_power)
    for number in rises.tolist():
        begins = rises[np.abs(found.begin[rises] - found.end[number]) < 1e-9]
        if found.follower[number] != (begins[0] if len(begins) else -1):
            return False
    return bool((found.follower[found.is_power] == -1).all())


@settings(max_examples=60, deadline=None)
@given(steps_strategy, st.integers(0, 30), st.lists(st.booleans(), min_size=100, max_size=100))
def test_a_rise_is_followed_by_the_one_that_shares_its_edge(
    steps: list[tuple[int, float]], readings: int, kept: list[bool]
) -> None:
    """Also when some of the observations are picked out."""
    found = observations(counter_of(steps), power_of(readings), ORIGIN, 0.004)
    assert followers_are_right(found)
    some = found.pick(np.flatnonzero(kept[: len(found.end)]))
    assert followers_are_right(some)
    assert followers_are_right(found.rises())
    assert len(found.rises().end) == len(steps) - 1


@given(st.integers(2, 20), st.integers(2, 20), st.integers(6, 100))
def test_a_rise_across_a_gap_is_left_out(before: int, after: int, periods: int) -> None:
    """What the counter rose by while nobody looked is no observation of any phase."""
    steps = [(20, 1.0)] * before + [(20 * periods, 500.0)] + [(20, 1.0)] * after
    found = observations(counter_of(steps), NO_POWER, ORIGIN, 0.004)
    assert len(found.end) == len(steps) - 2
    assert found.value == pytest.approx(1.0)
    assert followers_are_right(found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 0.5), min_size=50, max_size=300), st.sampled_from([0.004, 0.01]))
def test_thinning_keeps_the_energy(joules: list[float], least: float) -> None:
    """Of a counter that moves each millisecond fewer edges are used, and between them nothing is lost."""
    counter = counter_of([(1, one) for one in joules])
    found = observations(counter, NO_POWER, ORIGIN, least)
    edge, energy = (counter.edge - ORIGIN) / NANO, counter.energy
    assert len(found.end) <= len(joules) / (1000 * least) + 1
    assert (found.end - found.begin)[1:-1] == pytest.approx(least, abs=0.0011)
    assert found.begin[1:] == pytest.approx(found.end[:-1])
    for begin, end, value in zip(found.begin, found.end, found.value, strict=True):
        low, high = np.interp([begin, end], edge, energy)
        assert value == pytest.approx(high - low, abs=1e-9)


def test_gaps_that_were_written_down_take_what_they_touch() -> None:
    """An observation that a recorded gap lies in is left out, and so is one that reaches over it."""
    found = observations(counter_of([(20, 1.0)] * 50), power_of(30), ORIGIN, 0.004)
    gaps = np.array([[0.410, 0.432], [0.7001, 0.7002]])
    left = found.outside(gaps)
    begin = np.where(left.is_power, left.end, left.begin) - left.begin_half
    for low, high in gaps.tolist():
        assert not ((begin < high) & (left.end + left.end_half > low)).any()
    gone = len(found.end) - len(left.end)
    assert 3 <= gone <= 6
    assert followers_are_right(left)


def test_between_takes_what_lies_within() -> None:
    """A rise that begins before a stretch of time says more than of it alone."""
    found = observations(counter_of([(20, 1.0)] * 50), power_of(30), ORIGIN, 0.004).between(0.2, 0.5)
    rises = ~found.is_power
    assert found.begin[rises].min() >= 0.2
    assert found.end.min() >= 0.2
    assert found.end.max() <= 0.5
    assert int(rises.sum()) == 15


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.sampled_from([UNKNOWN, 1, 3]), st.floats(0, 700)), max_size=40
    )
)
def test_power_edges_are_known_on_both_sides_and_in_order(rows: list[tuple[int, int, float]]) -> None:
    """A reading without an earlier side, and a blip of 0 W, say nothing; the rest is in order of edges."""
    read = ORIGIN + np.array([row[0] for row in rows], dtype=np.int64)
    known = np.array([row[1] for row in rows], dtype=np.int64)
    old = np.where(known == UNKNOWN, UNKNOWN, read - known * MILLI)
    watts = np.array([row[2] for row in rows], dtype=np.float64)
    nothing = np.zeros(0, dtype=np.int64)
    series = power_series(Evidence(nothing, nothing, np.zeros(0), read, old, watts))
    assert (np.diff(series.moment) > 0).all()
    assert (series.value > 0).all()
    bracket = dict(zip(series.moment.tolist(), series.bracket.tolist(), strict=True))
    good = {(r + o) // 2: r - o for r, o, w in zip(read, old, watts, strict=True) if o != UNKNOWN and w > 0}
    assert bracket.keys() <= good.keys()
    assert all(bracket[moment] in {MILLI, 3 * MILLI} for moment in bracket)
    assert bool(good) == bool(bracket)


def test_a_counter_alone_shows_no_power() -> None:
    """No power reading is an empty series with no period, not one of 0 W."""
    evidence = Evidence.of_counter(np.array([1, 2]), np.array([0, 1]), np.array([1.0, 2.0]))
    series = power_series(evidence)
    assert len(series.moment) == 0
    assert series.period_seconds == 0


def test_series_knows_its_period_and_its_parts() -> None:
    """The usual time between changes is the median, and a part has what lies in it."""
    series = power_of(10)
    assert series.period_seconds == pytest.approx(0.033)
    part = series.between(int(series.moment[2]), int(series.moment[5]))
    assert part.value.tolist() == [102.0, 103.0, 104.0]
