"""What a sensor shows of stretches of power, against integration by brute force."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.observations import Observations
from wattq.response import LOGARITHMIC, NAMES, Response, View

from tests.analysis.made import GRID, brute_force, make, seeds, stretches_of


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_weights_add_up_to_seconds_and_gain(seed: int) -> None:
    """Of a constant power a counter shows its whole energy, and a reading the power times its gain."""
    made = make(np.random.default_rng(seed))
    total = np.asarray(View(made.seen, made.stretches, made.response).matrix.sum(axis=1)).ravel()
    power = made.seen.is_power
    # A tail of 5e-5 of the rise is left out.
    left_out = 1e-4 * made.response.rise_seconds
    seconds = (made.seen.end - made.seen.begin)[~power]
    assert total[~power] == pytest.approx(seconds, abs=left_out)
    window = made.response.power_window_seconds
    assert total[power] == pytest.approx(made.response.power_gain, abs=2 * left_out / window)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.005, 0.01, 0.025]))
def test_part_time_counter_stands_for_its_whole_period(seed: int, window: float) -> None:
    """A counter that looks at the last part of a period counts its power for all of the period."""
    made = make(np.random.default_rng(seed))
    part = replace(made.response, counter_window_seconds=window)
    total = np.asarray(View(made.seen, made.stretches, part).matrix.sum(axis=1)).ravel()
    rises = ~made.seen.is_power
    assert total[rises] == pytest.approx((made.seen.end - made.seen.begin)[rises], rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([None, 0.01]))
def test_closed_form_is_what_filtering_on_a_fine_grid_gives(seed: int, part: float | None) -> None:
    """Delay, first-order rise, window, gain, offset and bracket do what they are said to do."""
    made = make(np.random.default_rng(seed))
    made = replace(made, response=replace(made.response, counter_window_seconds=part))
    shown = View(made.seen, made.stretches, made.response).mean(made.watts)
    power = made.seen.is_power
    expected = brute_force(made)
    assert shown[power] == pytest.approx(expected[power], abs=0.5)
    assert shown[~power] == pytest.approx(expected[~power], abs=0.005 if part is None else 0.02)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_edge_levels_are_the_slope_by_the_edge(seed: int) -> None:
    """The level at an edge is what an observation gains when that edge is a little later."""
    made = make(np.random.default_rng(seed))
    begin, end = View(made.seen, made.stretches, made.response).edge_levels(made.watts)

    def mean(shift_begin: float, shift_end: float) -> np.ndarray:
        moved = replace(made.seen, begin=made.seen.begin + shift_begin, end=made.seen.end + shift_end)
        return View(moved, made.stretches, made.response).mean(made.watts)

    step = 1e-6
    power = made.seen.is_power
    by_end = (mean(0, step) - mean(0, -step)) / (2 * step)
    by_begin = (mean(step, 0) - mean(-step, 0)) / (2 * step)
    scale = made.response.power_gain / made.response.power_window_seconds
    # A step of power that the edge passes within the difference bends the slope; so does the tail left out.
    assert end[~power] == pytest.approx(by_end[~power], abs=1.0)
    assert begin[~power] == pytest.approx(-by_begin[~power], abs=1.0)
    # Both sides of a reading's window move with its only edge.
    assert (end - begin)[power] == pytest.approx(by_end[power], abs=2.0 * scale)


@given(
    st.tuples(
        st.floats(-0.01, 0.02),
        st.floats(1e-4, 0.05),
        st.floats(-0.01, 0.02),
        st.floats(1e-3, 0.2),
        st.floats(0.5, 1.5),
        st.floats(-50, 50),
    )
)
def test_vector_and_response_are_the_same(values: tuple[float, float, float, float, float, float]) -> None:
    """A response comes back from its vector; what cannot be negative stands as a logarithm."""
    response = Response(*values, counter_window_seconds=0.02)
    vector = response.vector()
    assert vector[LOGARITHMIC] == pytest.approx(np.log(np.array(values)[LOGARITHMIC]))
    again = Response(0.0, 1.0, 0.0, 1.0, counter_window_seconds=0.02).moved_to(vector)
    assert [getattr(again, name) for name in NAMES] == pytest.approx(values)
    assert again.counter_window_seconds == 0.02


def test_step_comes_late_and_smeared() -> None:
    """A power from 1 s on is half there after the delay and rise times ln 2; before the delay it is not."""
    stretches = stretches_of(np.array([1.0]), np.array([2.0]))
    response = Response(0.01, 0.004, 0.02, 0.001)
    moments = 1.0 + np.array([0.009, 0.01 + 0.004 * np.log(2), 0.1])
    tiny = np.full(3, GRID / 100)
    nothing = np.zeros(3)
    seen = Observations(moments - 0.001, moments, nothing, np.zeros(3, bool), tiny, tiny, np.full(3, -1))
    _, level = View(seen, stretches, response).edge_levels(np.array([100.0]))
    assert level == pytest.approx([0.0, 50.0, 100.0], abs=0.05)
