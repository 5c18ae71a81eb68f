"""One regression: what is held to make observations, against slopes and dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattq.counter import Floats
from wattq.mixed import Prior
from wattq.problem import Noise, State
from wattq.response import LOGARITHMIC, NAMES, Response, View

from tests.analysis.made import Made, make, problem_of, seeds

# What the smallest quantum of a counter and of a power reading leaves unknown.
QUANTA = 3e-4, 5e-3


def state_of(made: Made, noise: Noise | None = None) -> State:
    """Returns the model at the true response, of observations without noise."""
    value = View(made.seen, made.stretches, made.response).mean(made.watts)
    problem = problem_of(made, value)
    kinds = np.unique(made.stretches.kind, return_inverse=True)[1].reshape(-1)
    means = np.bincount(kinds, weights=made.watts) / np.bincount(kinds)
    return State(problem, made.response, means, noise or Noise())


def shown(state: State, response: Response) -> Floats:
    """Returns what would be seen of the state's mean powers through another response."""
    return View(state.problem.seen, state.problem.stretches, response).mean(state.watts)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_jacobian_is_the_slope_of_what_is_seen(seed: int) -> None:
    """Each column is the change of the observations with a parameter, in the units of its vector."""
    state = state_of(make(np.random.default_rng(seed)))
    response, power = state.response, state.problem.seen.is_power
    vector = response.vector()
    # Where a stretch's tail of 5e-5 is left out there is a step, which a difference takes for a slope.
    tail = np.exp(-10) * response.rise_seconds * state.watts.max() / 1e-3
    for number, name in enumerate(NAMES):
        step = np.zeros(len(NAMES))
        step[number] = 1e-3 if LOGARITHMIC[number] else 1e-6
        up = shown(state, response.moved_to(vector + step))
        down = shown(state, response.moved_to(vector - step))
        slope = (up - down) / (2 * step[number])
        for kind, scale in ((power, response.power_gain / response.power_window_seconds), (~power, 1.0)):
            off = np.abs(state.jacobian[kind, number] - slope[kind])
            steepest = max(float(np.abs(slope[kind]).max()), 1e-3)
            assert np.median(off) <= 2e-3 * steepest, name
            jump = tail * scale if name == "rise_seconds" else 0.0
            # A difference across the begin of a tail is no slope: a reading in a hundred may have one.
            assert np.quantile(off, 0.97) <= 1e-2 * steepest + jump, name


def edge_noise(state: State) -> Floats:
    """Returns the covariance that unknown edges make, edge by edge: two rises share each."""
    seen = state.problem.seen
    count = len(seen.end)
    owner = np.full(count, -1)
    owner[seen.follower[seen.follower >= 0]] = np.flatnonzero(seen.follower >= 0)
    columns = []
    for number in range(count):
        end = np.zeros(count)
        if seen.is_power[number]:
            end[number] = (state.end_level - state.begin_level)[number]
        else:
            end[number] = state.end_level[number]
            if seen.follower[number] >= 0:
                end[seen.follower[number]] = -state.begin_level[seen.follower[number]]
            if owner[number] < 0:
                begin = np.zeros(count)
                begin[number] = state.begin_level[number] * seen.begin_half[number] / np.sqrt(3)
                columns.append(begin)
        columns.append(end * seen.end_half[number] / np.sqrt(3))
    moved = np.column_stack(columns)
    return np.asarray(moved @ moved.T)


@settings(max_examples=15, deadline=None)
@given(seeds, st.floats(0.005, 0.3), st.floats(0.1, 3.0))
def test_likelihood_has_jitter_edges_and_noise(seed: int, jitter: float, watts: float) -> None:
    """Instances deviate together, an edge gives to one rise what it takes from another, readings err."""
    made = make(np.random.default_rng(seed), kinds=3)
    half = np.arange(len(made.watts)) // 2
    made = replace(made, stretches=replace(made.stretches, instance=half, kind=half % 3))
    state = state_of(made)
    matrix, together = state.view.matrix.toarray(), state.problem.together.toarray()
    first = np.flatnonzero(np.append(True, half[1:] != half[:-1]))
    free = state.problem.free_variance
    own = np.where(free > 0, free, (jitter * state.watts[first]) ** 2)
    covariance = matrix @ together @ np.diag(own) @ together.T @ matrix.T + edge_noise(state)
    power = made.seen.is_power
    covariance += np.diag(np.where(power, QUANTA[1] ** 2 + watts**2, QUANTA[0] ** 2))
    prior = state.problem.prior
    covariance += state.design @ np.linalg.inv(prior.precision) @ state.design.T
    rest = state.value - state.design @ prior.mean
    surprise = np.linalg.slogdet(covariance)[1] + rest @ np.linalg.solve(covariance, rest)
    assert state.solve(Noise(jitter, watts)).objective == pytest.approx(surprise, rel=1e-5)


def test_solution_is_the_truth_where_nothing_hides_it() -> None:
    """With the true response, means and energies come out as they went in."""
    made = make(np.random.default_rng(3), kinds=3, seconds=6.0)
    state = state_of(made, Noise(0.03, 0.1))
    kinds = made.stretches.kind
    truth = np.bincount(kinds, weights=made.watts) / np.bincount(kinds)
    found = state.solve()
    assert found.mean == pytest.approx(truth, rel=0.03)
    answer, surprise = state.answer()
    assert surprise < 5
    whole = made.stretches.weights @ made.watts
    sd = np.sqrt(np.diag(answer.covariance))
    middle = (made.stretches.start > 0.2) & (made.stretches.stop < 5.8)
    assert (np.abs(answer.value - whole) < 4 * sd + 1e-3)[middle].all()


def test_wrong_response_is_moved_towards_the_truth() -> None:
    """One Gauss-Newton step from a response that is a little off brings every parameter closer."""
    made = make(np.random.default_rng(5), kinds=3, seconds=8.0)
    made = replace(made, watts=np.array([100.0, 600.0, 350.0])[made.stretches.kind])
    state = state_of(made, Noise(1e-3, 0.1))
    truth = made.response.vector()
    off = np.array([5e-4, 0.1, -5e-4, 0.05, 0.01, 2.0])
    start = State(state.problem, made.response.moved_to(truth + off), state.solve().mean, state.noise)
    wide = Prior(truth + off, np.diag(1 / np.array([0.01, 1, 0.01, 1, 0.1, 50.0]) ** 2))
    step = start.solve_with_response(wide).mean[-len(NAMES) :]
    assert (np.abs(off + step) < 0.6 * np.abs(off)).all()


def test_rare_and_outside_may_have_any_power() -> None:
    """What does not repeat ten times has no spread that could be known; the rest shares a jitter."""
    made = make(np.random.default_rng(7))
    size = len(made.watts)
    kind = np.zeros(size, dtype=np.int64)
    kind[:5] = 1
    outside = np.zeros(size, dtype=bool)
    outside[-3:] = True
    stretches = replace(made.stretches, kind=kind, outside=outside)
    problem = problem_of(replace(made, stretches=stretches))
    free = problem.free_variance > 0
    assert free.tolist() == [True] * 5 + [False] * (size - 8) + [True] * 3
    watts = np.full(size, 200.0)
    assert problem.jitter_variance(watts)[~free] == pytest.approx(200.0**2)
    assert (problem.jitter_variance(watts)[free] == 0).all()


def test_counter_alone_leaves_the_power_reading_out() -> None:
    """Without power there are rises alone, and those who follow each other still do."""
    made = make(np.random.default_rng(9))
    problem = problem_of(made)
    alone = problem.without_power()
    assert problem.has_power
    assert not alone.has_power
    seen = alone.seen
    assert len(seen.end) == int((~made.seen.is_power).sum())
    linked = np.flatnonzero(seen.follower >= 0)
    assert seen.begin[seen.follower[linked]] == pytest.approx(seen.end[linked])
