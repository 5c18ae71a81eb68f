import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.counter import NANO, Counter, Device, Readings, blind_spots, locate, power_bounds
from wattq.overlap import share
from wattq.rows import Account, largest_remainder, rows
from wattq.sweep import OUTSIDE, UNRESOLVED, Phases, cut

MILLI = 1_000_000
NO_GAPS = np.zeros((0, 2), dtype=np.int64)
NAMES = ("a", "b", "c")


def device(**keys: Any) -> Device:
    """Returns a GPU."""
    return Device("n", "GPU-0", "gpu", "measured", "nvml", **keys)


def counter_of(edges: Any, watts: Any, period: int, begin: int = 0) -> Counter:
    """Returns the counter of a device whose power is `watts[i]` between `edges[i]` and `edges[i + 1]`."""
    limits = np.array(edges, dtype=np.int64)
    total = np.concatenate([[0.0], np.cumsum(np.array(watts) * np.diff(limits) / NANO)])
    read = np.arange(begin, limits[-1] + 1, period, dtype=np.int64)
    energy = np.round(np.interp(read, limits, total), 6)
    # A poll right at each update: the edge is known to 2 ms.
    return locate(Readings(read + MILLI, read - MILLI, energy))


def account_of(
    counter: Counter,
    spans: list[tuple[int, int, int, int]],
    end: int,
    what: Device | None = None,
    *,
    gaps: Any = NO_GAPS,
    begin: int = 0,
) -> dict[str, dict[str, Any]]:
    """Returns the rows of a run from (begin, end, name, lane)."""
    columns = np.array(spans, dtype=np.int64).reshape(-1, 4)
    phases = Phases(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], NAMES)
    pieces = cut(phases, [(begin, end)])
    account = Account(what or device(), {"run_id": "r", "run": "r", "restarts": 0, "job": None})
    account.counts = {NAMES[n]: int(c) for n, c in enumerate(np.bincount(phases.name, minlength=3)) if c}
    account.add(pieces.rows, share(counter, account.device, pieces, gaps))
    return {row["phase"]: row for row in rows(account)}


spans_strategy = st.lists(
    st.tuples(st.integers(0, 9_000), st.integers(1, 3_000), st.integers(0, 2), st.integers(0, 2)), max_size=25
)


@settings(max_examples=80, deadline=None)
@given(spans_strategy, st.lists(st.floats(5, 700), min_size=20, max_size=20), st.integers(11, 400))
def test_rows_add_up_to_the_counter(spans: list[tuple[int, int, int, int]], watts: Any, period: int) -> None:
    """Valid rows + (unresolved) + (outside) = the counter over the run, for any nesting and overlap."""
    counter = counter_of([step * 1000 * MILLI for step in range(21)], watts, period * MILLI)
    spans = [(a * MILLI, min(a + d, 12_000) * MILLI, n, lane) for a, d, n, lane in spans]
    found = account_of(counter, spans, 12_500 * MILLI)
    total = counter.at(np.array([0, 12_500 * MILLI]))
    assert math.isclose(
        sum(row["energy_joules"] or 0.0 for row in found.values()),
        total[1] - total[0],
        rel_tol=1e-9,
        abs_tol=1e-6,
    )


@settings(max_examples=60, deadline=None)
@given(spans_strategy, st.integers(1, 10**17))
def test_shifting_all_times_changes_nothing(spans: list[tuple[int, int, int, int]], shift: int) -> None:
    """A machine's uptime is no part of the answer."""
    spans = [(a * MILLI, (a + d) * MILLI, n, lane) for a, d, n, lane in spans]
    watts = [100.0, 400.0, 50.0, 300.0, 222.0, 90.0, 333.0, 10.0, 20.0, 500.0, 1.0, 70.0, 80.0]
    edges = [step * 1000 * MILLI for step in range(14)]
    counter = counter_of(edges, watts, 90 * MILLI)
    later = Counter(counter.edge + shift, counter.bracket, counter.energy, counter.period)
    here = account_of(counter, spans, 13_000 * MILLI)
    moved = [(a + shift, b + shift, n, lane) for a, b, n, lane in spans]
    there = account_of(later, moved, 13_000 * MILLI + shift, begin=shift)
    assert here.keys() == there.keys()
    for phase, row in here.items():
        for key in ("energy_joules", "energy_low_joules", "duration_seconds", "coverage_ratio"):
            assert row[key] == pytest.approx(there[phase][key], abs=2e-6), (phase, key)


@settings(max_examples=60, deadline=None)
@given(spans_strategy, st.floats(1, 700), st.integers(5, 300))
def test_constant_power_gives_power_times_time(
    spans: list[tuple[int, int, int, int]], watts: Any, period: int
) -> None:
    """Where power is constant a phase is P times its duration, within its interval."""
    spans = [(a * MILLI, (a + d) * MILLI, n, lane) for a, d, n, lane in spans]
    counter = counter_of([-NANO, 14_000 * MILLI], [watts], period * MILLI, -NANO)
    for row in account_of(counter, spans, 12_500 * MILLI).values():
        if row["energy_joules"] is not None:
            truth = watts * row["duration_seconds"]
            assert row["energy_low_joules"] - 2e-6 <= truth <= row["energy_high_joules"] + 2e-6
            assert row["energy_joules"] == pytest.approx(truth, rel=1e-3, abs=watts * 3e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(300, 900), st.integers(0, 2)), min_size=6, max_size=30),
    st.lists(st.floats(20, 700), min_size=3, max_size=3),
    st.integers(0, 19),
)
def test_interval_covers_the_truth_where_updates_are_short(steps: Any, watts: Any, offset: int) -> None:
    """With updates far shorter than the phases every valid interval holds the phase's true energy."""
    limits = np.concatenate([[0], np.cumsum([length for length, _ in steps])]) * MILLI
    powers = [watts[name] for _, name in steps]
    counter = counter_of(
        [-NANO, *limits.tolist(), int(limits[-1]) + NANO], [60, *powers, 60], 20 * MILLI, -offset * MILLI
    )
    spans = [(a, b, name, 0) for (a, b), (_, name) in zip(pairwise(limits.tolist()), steps, strict=True)]
    found = account_of(counter, spans, int(limits[-1]))
    for place, name in enumerate(NAMES):
        truth = sum(length / 1000 * watts[n] for length, n in steps if n == place)
        row = found.get(name)
        if row and row["valid"]:
            assert row["energy_low_joules"] <= truth <= row["energy_high_joules"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(60, 700), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(8, 160), st.integers(0, 2)), min_size=20, max_size=60),
)
def test_interval_covers_the_truth_where_updates_are_long(watts: Any, steps: Any) -> None:
    """With phases as short as the update a row is refused, or its interval still holds the truth."""
    limits = np.concatenate([[0], np.cumsum([length for length, _ in steps])]) * MILLI
    powers = [watts[name] for _, name in steps]
    counter = counter_of(
        [-NANO, *limits.tolist(), int(limits[-1]) + NANO], [60, *powers, 60], 100 * MILLI, -NANO
    )
    spans = [(a, b, name, 0) for (a, b), (_, name) in zip(pairwise(limits.tolist()), steps, strict=True)]
    found = account_of(counter, spans, int(limits[-1]), device(power_limit_watts=700.0))
    for place, name in enumerate(NAMES):
        truth = sum(length / 1000 * watts[n] for length, n in steps if n == place)
        row = found.get(name)
        if row and row["valid"]:
            assert row["energy_low_joules"] <= truth <= row["energy_high_joules"]


def test_interval_grows_as_phases_get_shorter() -> None:
    """The shorter the phases against the update, the wider the interval, until the number is refused."""
    ratios = []
    for length in (3_000, 1_000, 500):
        limits = list(range(0, 30_001, length))
        watts = [500.0 if place % 2 else 100.0 for place in range(len(limits) - 1)]
        counter = counter_of([limit * MILLI for limit in limits], watts, 70 * MILLI)
        spans = [(a * MILLI, b * MILLI, place % 2, 0) for place, (a, b) in enumerate(pairwise(limits))]
        row = account_of(counter, spans, limits[-1] * MILLI)["b"]
        ratios.append(row["energy_statistical_joules"] / row["energy_joules"])
    assert ratios == sorted(ratios)
    limits = list(range(0, 8_000, 8))
    counter = counter_of([limit * MILLI for limit in limits], [300.0] * (len(limits) - 1), 100 * MILLI)
    spans = [(a * MILLI, b * MILLI, place % 2, 0) for place, (a, b) in enumerate(pairwise(limits))]
    row = account_of(counter, spans, limits[-1] * MILLI)["b"]
    assert row["energy_joules"] is None
    assert not row["valid"]
    assert (
        row["reason"]
        == "phases of 8 ms are shorter than the counter's 100 ms updates: overlap cannot separate them"
    )


def test_refused_rows_keep_their_energy_in_unresolved() -> None:
    """What cannot be told apart is not lost."""
    limits = list(range(0, 8_001, 8))
    counter = counter_of([-NANO, 9 * NANO], [300.0], 100 * MILLI, -NANO)
    spans = [(a * MILLI, b * MILLI, place % 2, 0) for place, (a, b) in enumerate(pairwise(limits))]
    found = account_of(counter, spans, 8_000 * MILLI)
    assert found[UNRESOLVED]["energy_joules"] == pytest.approx(2_400, rel=1e-3)


def test_no_counter_is_no_number() -> None:
    """Without a reading there is no energy, not even 0, and a reason."""
    nothing = locate(Readings(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)))
    found = account_of(nothing, [(0, NANO, 0, 0)], 2 * NANO)
    assert [row["energy_joules"] for row in found.values()] == [None, None, None]
    assert "wattd probe" in found["a"]["reason"]


def test_run_shorter_than_two_updates_is_refused() -> None:
    """One update says nothing of what happened between."""
    counter = counter_of([0, 10 * NANO], [100.0], NANO)
    found = account_of(counter, [(1_200 * MILLI, 1_900 * MILLI, 0, 0)], 2_900 * MILLI, begin=1_100 * MILLI)
    assert found["a"]["reason"] == "the run is shorter than two updates of the counter"
    assert found[UNRESOLVED]["energy_joules"] + found[OUTSIDE]["energy_joules"] == pytest.approx(
        180, rel=1e-6
    )


def test_gap_takes_coverage_and_then_the_number() -> None:
    """Time without updates is not covered; a row that is mostly blind has no number."""
    read = np.concatenate([np.arange(0, 4 * NANO, 100 * MILLI), np.arange(10 * NANO, 14 * NANO, 100 * MILLI)])
    counter = locate(Readings(read, read - 10 * MILLI, read / NANO * 50.0))
    found = account_of(counter, [(0, 5 * NANO, 0, 0), (5 * NANO, 12 * NANO, 1, 0)], 13 * NANO)
    assert found["a"]["coverage_ratio"] == pytest.approx(0.78, abs=0.01)
    assert found["a"]["max_gap_seconds"] == pytest.approx(6.1, abs=0.05)
    assert not found["b"]["valid"]
    assert "gaps" in found["b"]["reason"]


def test_recorded_gap_counts_even_where_updates_look_whole() -> None:
    """A gap that the daemon wrote down is believed."""
    counter = counter_of([0, 10 * NANO], [100.0], 100 * MILLI)
    gap = np.array([[2 * NANO, 3 * NANO]], dtype=np.int64)
    found = account_of(counter, [(0, 5 * NANO, 0, 0)], 9 * NANO, gaps=gap)
    assert found["a"]["coverage_ratio"] == pytest.approx(0.8, abs=1e-3)


def test_estimate_carries_its_models_interval() -> None:
    """An estimated source is valid with the interval of its model."""
    counter = counter_of([0, 10 * NANO], [100.0], 10 * MILLI)
    model = Device("n", "package-0", "package", "estimated", "cpu_estimate", uncertainty_ratio=0.6)
    row = account_of(counter, [(NANO, 9 * NANO, 0, 0)], 10 * NANO, model)["a"]
    assert row["valid"]
    assert row["energy_response_joules"] == pytest.approx(480, rel=0.02)
    assert row["source"] == "estimated"


def test_edge_is_the_middle_of_its_bracket_and_near_its_reading() -> None:
    """An edge lies midway between old and new reading, and not earlier than one nominal update before it."""
    read = np.array([100, 200, 300], dtype=np.int64) * MILLI
    old = np.array([-1, 190 * MILLI, 200 * MILLI], dtype=np.int64)
    energy = np.array([1.0, 2.0, 3.0])
    assert locate(Readings(read, old, energy)).edge.tolist() == [50 * MILLI, 195 * MILLI, 250 * MILLI]
    assert locate(Readings(read, old, energy), MILLI).edge[-1] == 300 * MILLI - MILLI // 2


def test_copy_of_a_counter_does_not_displace_its_edge() -> None:
    """The counter's copy of each second may be rounded to just before the update, whose bracket stays."""
    read = np.array([100_000_000, 199_999_000, 200_000_000], dtype=np.int64)
    old = np.array([90 * MILLI, -1, 190 * MILLI], dtype=np.int64)
    counter = locate(Readings(read, old, np.array([1.0, 2.0, 2.0])))
    assert counter.edge.tolist() == [95 * MILLI, 195 * MILLI]


def test_row_that_shares_with_one_never_seen_alone_gets_the_wider_bounds() -> None:
    """Half the run at 60 W in `a` alone says nothing of `c`, which only ever shares its updates with `a`."""
    steps = [(10, 0)] * 9 + [(10, 0), (8, 1), (16, 2), (43, 0), (33, 2)]
    watts = (60.0, 60.0, 115.0)
    limits = np.concatenate([[0], np.cumsum([length for length, _ in steps])]) * MILLI
    end = int(limits[-1])
    edges = [-NANO, *limits.tolist(), end + NANO]
    counter = counter_of(edges, [60, *(watts[name] for _, name in steps), 60], 100 * MILLI, -NANO)
    spans = [(a, b, name, 0) for (a, b), (_, name) in zip(pairwise(limits.tolist()), steps, strict=True)]
    row = account_of(counter, spans, end, device(power_limit_watts=700.0))["a"]
    truth = sum(length / 1000 * 60 for length, name in steps if name == 0)
    assert not row["valid"] or row["energy_low_joules"] <= truth <= row["energy_high_joules"]


def test_reading_without_news_is_no_edge() -> None:
    """A counter that stands still, or is read twice, makes no update."""
    read = np.array([100, 200, 300, 300], dtype=np.int64) * MILLI
    counter = locate(Readings(read, read - MILLI, np.array([1.0, 1.0, 2.0, 2.0])))
    assert counter.energy.tolist() == [1.0, 2.0]


def test_blurred_updates_bound_power_by_the_limit() -> None:
    """Where every update is a mixture, what was seen says nothing of the extremes."""
    counter = counter_of([0, 10 * NANO], [300.0], 100 * MILLI)
    assert power_bounds(counter, 700.0, blurred=True) == pytest.approx((0.0, 735.0))
    low, high = power_bounds(counter, 700.0, blurred=False)
    assert 0 < low < 300 < high < 400


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_largest_remainder_adds_up(joules: list[float]) -> None:
    """Whole microjoules add up to the rounded sum, and none is more than one off."""
    micro = largest_remainder(joules)
    assert sum(micro) == round(float(np.sum(np.array(joules) * 1e6)))
    assert all(abs(whole - amount * 1e6) <= 1.01 for whole, amount in zip(micro, joules, strict=True))


def test_blind_spots_are_disjoint() -> None:
    """Gaps that overlap long intervals count once."""
    read = np.array([0, 1, 2, 12, 13], dtype=np.int64) * NANO
    counter = locate(Readings(read, read - MILLI, np.arange(5.0)))
    spots = blind_spots(counter, np.array([[3 * NANO, 14 * NANO]], dtype=np.int64), [(0, 20 * NANO)])
    assert (spots[1:, 0] > spots[:-1, 1]).all()
    assert spots[-1, 1] == 20 * NANO


@pytest.mark.parametrize("lost_ms", [1_000, 3_000, 5_000, 9_000])
def test_energy_that_nobody_counted_is_in_the_interval_or_refused(lost_ms: int) -> None:
    """A counter that stood still in a gap: the interval reaches the truth, or there is no number."""
    end, begin = 15_000, 5_000
    edges = [-1_000 * MILLI, begin * MILLI, (begin + lost_ms) * MILLI, (end + 1_000) * MILLI]
    counter = counter_of(edges, [200.0, 0.0, 200.0], 100 * MILLI, begin=-1_000 * MILLI)
    gaps = np.array([[begin * MILLI, (begin + lost_ms) * MILLI]], dtype=np.int64)
    row = account_of(counter, [(0, end * MILLI, 0, 0)], end * MILLI, gaps=gaps)["a"]
    assert row["valid"] or lost_ms > 3_000
    if row["valid"]:
        assert row["energy_high_joules"] >= 200.0 * end / 1000
    else:
        assert row["reason"]


def test_counter_that_counted_on_over_a_gap_loses_nothing() -> None:
    """A hardware counter that went on while nobody looked needs no wider interval for it."""
    end = 15_000 * MILLI
    counter = counter_of([-1_000 * MILLI, end + 1_000 * MILLI], [200.0], 100 * MILLI, begin=-1_000 * MILLI)
    gaps = np.array([[5_000 * MILLI, 8_000 * MILLI]], dtype=np.int64)
    row = account_of(counter, [(0, end, 0, 0)], end, gaps=gaps)["a"]
    assert row["energy_joules"] == pytest.approx(3_000, rel=1e-3)
    assert row["energy_high_joules"] - row["energy_joules"] < 30


def test_model_bounds_what_its_estimate_can_be() -> None:
    """A saturated CPU's estimate: short phases at the model's limit get a number within its interval."""
    end = 2_000 * MILLI
    counter = counter_of([-NANO, end + NANO], [6.5], 10 * MILLI, -NANO)
    spans = [(at * MILLI, (at + 19) * MILLI, 0, 0) for at in range(0, 1_900, 100)]
    spans += [(at + 19 * MILLI, at + 81 * MILLI, 1, 0) for at, *_ in spans]
    model = Device("n", "package-0", "package", "estimated", "cpu_estimate", uncertainty_ratio=0.7)
    row = account_of(counter, spans, end, replace(model, power_limit_watts=6.5))["a"]
    assert row["energy_joules"] == pytest.approx(19 * 0.019 * 6.5, rel=0.02)
    assert row["energy_statistical_joules"] < 0.3 * row["energy_joules"]
