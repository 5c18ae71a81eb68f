"""Counters: cumulative energy never goes down, wraps are undone, the unknown is not counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattd.counter import Counter, Integrator, Tracker
from wattd.values import Device, Domain, Reading, Source

SECOND = 1_000_000_000
RANGE = 262_143_328_850


def device(counter_range: int | None) -> Device:
    """A device whose counter wraps after `counter_range`."""
    return Device(
        device="d",
        index=0,
        domain=Domain.PACKAGE,
        source=Source.MEASURED,
        sensor="rapl",
        counter_range_microjoules=counter_range,
    )


@given(st.lists(st.integers(0, 500_000_000), max_size=50), st.integers(0, RANGE - 1))
def test_wraps_are_undone(steps: list[int], start: int) -> None:
    """However often a counter wraps, its cumulative energy is the sum of its steps."""
    counter, true, raw = Counter(RANGE), start, start
    assert counter.update(raw, SECOND) == true
    for number, step in enumerate(steps, start=2):
        true += step
        assert counter.update(true % RANGE, number * SECOND) == true
    assert counter.resets == 0


@given(st.lists(st.integers(0, RANGE - 1), min_size=1, max_size=50), st.sampled_from([0, RANGE]))
def test_energy_never_goes_down(raws: list[int], counter_range: int) -> None:
    """Whatever a counter shows, the cumulative energy never falls."""
    counter = Counter(counter_range)
    totals = [counter.update(raw, number * SECOND) for number, raw in enumerate(raws, start=1)]
    assert totals == sorted(totals)


def test_reset_is_counted_and_adds_nothing() -> None:
    """A counter that does not wrap and goes back was reset: what it held is not energy."""
    counter = Counter(0)
    counter.update(5_000_000, SECOND)
    assert counter.update(1_000, 2 * SECOND) == 5_000_000
    assert counter.update(2_000, 3 * SECOND) == 5_001_000
    assert counter.resets == 1


def test_counter_that_shows_less_for_a_moment_has_not_begun_anew() -> None:
    """A blip is no new beginning: what stood there before is not counted again."""
    counter, tick = Counter(0), SECOND // 10
    shown = [15_000_000_000, 15_007_000_000, 0, 0, 15_021_000_000, 15_028_000_000]
    totals = [counter.update(raw, number * tick) for number, raw in enumerate(shown, start=1)]
    assert totals[-1] == 15_028_000_000
    assert totals == sorted(totals)
    assert counter.resets == 1


def test_impossible_step_is_not_energy() -> None:
    """A jump that no device can draw is a broken counter."""
    counter = Counter(0)
    counter.update(0, SECOND)
    assert counter.update(10**12, SECOND + 10_000_000) == 0
    assert counter.resets == 1


def test_counter_that_may_have_begun_anew_is_not_trusted() -> None:
    """After a driver's absence a value that a new counter could show is no energy, even if it is larger."""
    counter = Counter(0)
    counter.update(5_000_000, SECOND)
    counter.suspect_restart()
    assert counter.update(40_000_000, 11 * SECOND) == 5_000_000
    assert counter.resets == 1
    assert counter.update(41_000_000, 12 * SECOND) == 6_000_000, "it goes on from there"


def test_counter_that_cannot_have_begun_anew_goes_on() -> None:
    """A new counter could not have come so far in ten seconds: it is the old one, and nothing is lost."""
    counter = Counter(0)
    counter.update(10**12, SECOND)
    counter.suspect_restart()
    assert counter.update(10**12 + 3_000_000_000, 11 * SECOND) == 10**12 + 3_000_000_000
    assert counter.resets == 0


def test_silence_longer_than_a_wrap_is_unknown() -> None:
    """After a silence in which the counter may have wrapped twice, the energy in between is unknown."""
    counter = Counter(RANGE)
    counter.update(1_000_000, SECOND)
    assert counter.update(2_000_000, 600 * SECOND) == 1_000_000
    assert counter.resets == 1


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(1, SECOND)), min_size=2, max_size=30))
def test_integrated_power_is_the_trapezoid(readings: list[tuple[float, int]]) -> None:
    """Energy integrated from power is the trapezoid over the readings, to the microjoule."""
    integrator, now, joules, last = Integrator(), 0, 0.0, None
    for watts, step in readings:
        now += step
        if last is not None:
            joules += (last + watts) / 2 * step / SECOND
        total = integrator.update(watts, now)
        last = watts
    assert total == pytest.approx(joules * 1e6, abs=2)


def test_power_apart_is_not_joined() -> None:
    """Two power readings ten seconds apart say nothing of the time in between."""
    integrator = Integrator()
    integrator.update(300, SECOND)
    assert integrator.update(300, 11 * SECOND) == 0
    assert integrator.resets == 1


def test_edge_lies_between_the_last_old_and_the_first_new_reading() -> None:
    """An edge lies after the last question that got the old value, before the first answer with the new."""
    tracker, energies, powers = Tracker(3, device(0)), list[int](), list[float]()
    tracker.take(Reading(100, 50.0), 10, 12, energies, powers)
    tracker.take(Reading(100, 50.0), 20, 22, energies, powers)
    tracker.take(Reading(170, 60.0), 30, 32, energies, powers)
    assert energies == [3, 100, 12, 0, 3, 170, 32, 20]
    assert powers == [3, 50.0, 12, 0, 3, 60.0, 32, 20]


def test_blip_without_a_value_changes_nothing() -> None:
    """A reading that shows neither energy nor power is no zero."""
    tracker, energies, powers = Tracker(0, device(0)), list[int](), list[float]()
    tracker.take(Reading(100, 50.0), 10, 12, energies, powers)
    tracker.take(Reading(None, None), 20, 22, energies, powers)
    tracker.take(Reading(100, 50.0), 30, 32, energies, powers)
    assert tracker.energy_microjoules == 100
    assert len(energies) == len(powers) == 4


def test_silent_counter_is_not_replaced_by_power() -> None:
    """A counter that shows nothing for a moment while power is shown goes on where it was."""
    tracker, energies, powers = Tracker(0, device(0)), list[int](), list[float]()
    for number, raw in enumerate([10**12, None, None, 10**12 + 60_000_000], start=1):
        tracker.take(Reading(raw, 300.0), number * SECOND, number * SECOND + 1, energies, powers)
    assert energies[1::4] == [10**12, 10**12 + 60_000_000]
    assert energies[7] == SECOND, "the edge may lie anywhere in the silence"


def test_device_without_a_counter_gets_energy_from_power() -> None:
    """300 W for one second are 300 J, also where there is no counter."""
    tracker, energies, powers = Tracker(0, device(None)), list[int](), list[float]()
    for number in range(11):
        tracker.take(
            Reading(None, 300.0), 1 + number * SECOND // 10, 2 + number * SECOND // 10, energies, powers
        )
    assert tracker.energy_microjoules == 300_000_000
