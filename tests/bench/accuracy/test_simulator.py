"""Workloads and sensors in virtual time: their truth, and what they show of it, by brute force."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.counter import NANO, Floats

from bench.accuracy.simulator import SENSORS, Drawn, Sensor, draw, observe
from bench.accuracy.workload import REFERENCE, Trace, Workload, run, square_wave

seeds = st.integers(0, 2**32 - 1)
# Nothing at random in what is shown.
STILL = replace(SENSORS["h100_20"], noise_watts=(0.0, 0.0), update_jitter_seconds=0.0)


@settings(max_examples=20, deadline=None)
@given(
    seeds,
    st.sampled_from(["constant", "decaying", "ramping", "drifting"]),
    st.sampled_from(["", "nested", "overlapped"]),
)
def test_truth_is_the_energy_of_the_trace(seed: int, shape: str, kind: str) -> None:
    """Joules of all rows are the power of the trace over the run, however phases nest and overlap."""
    workload = Workload(steps=4, shape=shape, nested=kind == "nested", overlapped=kind == "overlapped")
    trace = run(workload, np.random.default_rng(seed))
    begin, end = trace.pieces.start[0] / NANO, trace.pieces.stop[-1] / NANO
    left, right = np.clip(trace.start[:-1], begin, end), np.clip(trace.start[1:], begin, end)
    assert trace.truth.sum() == pytest.approx(float((trace.watts * (right - left)).sum()), rel=1e-6)
    assert (trace.pieces.start[1:] == trace.pieces.stop[:-1]).all()
    names = {name for row in trace.pieces.rows[1:] for name in row.split("+")}
    expected = {phase.name for phase in REFERENCE} | {
        "": set(),
        "nested": {"update"},
        "overlapped": {"copy"},
    }[kind]
    assert names == expected
    assert ("+" in "".join(trace.pieces.rows)) == (kind == "overlapped")


def test_reference_is_the_published_step() -> None:
    """Durations and powers of the reference workload come out as its jitter allows."""
    trace = run(Workload(steps=200), np.random.default_rng(1))
    for phase in REFERENCE:
        row = trace.pieces.rows.index(phase.name)
        mine = trace.pieces.row == row
        length = (trace.pieces.stop - trace.pieces.start)[mine] / NANO
        assert length.mean() == pytest.approx(phase.seconds, rel=0.01)
        assert 0.02 < length.std() / phase.seconds < 0.04
        assert trace.truth[row] / length.sum() == pytest.approx(phase.watts, rel=0.01)


def test_what_happens_follows_from_the_seed() -> None:
    """The same seed gives the same run and the same readings, another one others."""
    sensor = SENSORS["a100"]

    def readings(seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        drawn = draw(sensor, rng)
        return observe(sensor, drawn, run(Workload(steps=5), rng), rng).energy_joules

    assert readings(3).tolist() == readings(3).tolist()
    assert readings(3).tolist() != readings(4).tolist()


def smeared(trace: Trace, unit: Drawn, fine: float = 2e-5) -> tuple[Floats, Floats]:
    """Returns moments and the energy up to each as it comes out of the board, summed up step by step."""
    time = np.arange(trace.start[0], trace.start[-1], fine)
    place = np.searchsorted(trace.start, time + fine / 2, side="right") - 1
    watts = trace.watts[np.clip(place, 0, len(trace.watts) - 1)]
    level, total, energy = float(watts[0]), 0.0, []
    decay = float(np.exp(-fine / unit.rise_seconds))
    for power in watts.tolist():
        before = level
        level = power + (level - power) * decay
        total += (before + level) / 2 * fine
        energy.append(total)
    return time + fine, np.array(energy)


def test_readings_are_late_smeared_and_in_windows() -> None:
    """Counter and power show what passed delay and rise, the power the mean of its window with its gain."""
    rng = np.random.default_rng(5)
    unit = replace(draw(STILL, rng), gain=1.03, offset_watts=-4.0, window_seconds=0.025)
    trace = run(Workload(steps=4), rng)
    seen = observe(STILL, unit, trace, rng)
    time, energy = smeared(trace, unit)
    for read, old, joules in zip(
        seen.energy_read_nano, seen.energy_old_nano, seen.energy_joules, strict=True
    ):
        # The update lies in the bracket, so what it showed lies between what both sides would have shown.
        sides = np.array([old, read]) / NANO - unit.counter_delay_seconds
        low, high = np.interp(sides, time, energy)
        assert low - 0.01 <= joules - 5_000.0 <= high + 0.01
    grid = np.arange(len(seen.power_watts)) * unit.power_seconds
    # The brackets agree on where the grid lies.
    first = float((seen.power_old_nano / NANO - grid).max() + (seen.power_read_nano / NANO - grid).min()) / 2
    shown = first + grid - unit.power_delay_seconds
    mean = (np.interp(shown, time, energy) - np.interp(shown - 0.025, time, energy)) / 0.025
    assert seen.power_watts == pytest.approx(1.03 * mean - 4.0, abs=20)
    assert np.mean(np.abs(seen.power_watts - (1.03 * mean - 4.0))) < 3


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(sorted(SENSORS)))
def test_readings_are_such_as_a_sampler_writes(seed: int, name: str) -> None:
    """Brackets are open on neither side, edges come in order, and the counter never goes down."""
    rng = np.random.default_rng(seed)
    sensor: Sensor = SENSORS[name]
    unit = draw(sensor, rng)
    seen = observe(sensor, unit, run(Workload(steps=3), rng), rng)
    assert (np.diff(seen.energy_joules) >= 0).all()
    for read, old in (
        (seen.energy_read_nano, seen.energy_old_nano),
        (seen.power_read_nano, seen.power_old_nano),
    ):
        assert (read > old).all()
        assert (np.diff(read) > 0).all() or name == "rapl"
    assert (len(seen.power_watts) == 0) == (sensor.power_seconds is None)
    low, high = sensor.rise_seconds
    assert low <= unit.rise_seconds <= high
    low, high = sensor.lag_seconds
    assert low <= unit.counter_delay_seconds <= high
    assert unit.window_seconds == pytest.approx(sensor.window_seconds, rel=sensor.window_spread + 0.01)


def test_part_time_counter_misses_what_it_does_not_look_at() -> None:
    """A counter that looks at a quarter of each period counts another energy than was drawn, but near it."""
    rng = np.random.default_rng(9)
    sensor = replace(STILL, counter_seconds=0.1)
    unit, trace = draw(sensor, rng), run(Workload(steps=60), rng)
    whole = observe(sensor, unit, trace, np.random.default_rng(1)).energy_joules
    part = observe(replace(sensor, part_time=0.25), unit, trace, np.random.default_rng(1)).energy_joules
    assert np.ptp(part) == pytest.approx(np.ptp(whole), rel=0.05)
    # Not before and after the run, where both see the same.
    assert np.std(np.diff(part)[15:-15]) > 1.5 * np.std(np.diff(whole)[15:-15])


def test_square_wave_marks_its_high_stretches() -> None:
    """Begin and end of each high stretch are told exactly; lengths vary, so that no grid keeps in step."""
    trace, begin, end = square_wave(20.0, 600.0, 90.0, np.random.default_rng(2))
    middle = (begin + end) / 2 / NANO
    watts = trace.watts[np.searchsorted(trace.start, middle, side="right") - 1]
    assert watts == pytest.approx(600, rel=0.04)
    between = (end[:-1] + begin[1:]) / 2 / NANO
    assert trace.watts[np.searchsorted(trace.start, between, side="right") - 1] == pytest.approx(90, rel=0.04)
    length = (end - begin) / NANO
    assert length.min() >= 0.005
    assert 0.05 < length.max() <= 0.4
    assert length.std() > 0.3 * length.mean()
