"""The response that is found from a run, against the truth of a simulated sensor."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from wattq.fit import Fit, climb, fit_response, plausible
from wattq.problem import Noise, Problem
from wattq.regression import Run, fit_run, identity_groups, regress
from wattq.response import NAMES
from wattq.sweep import OUTSIDE

from bench.accuracy.simulator import draw, observe
from tests.analysis.simulated import Simulated, deviations, known


def run_of(unit: Simulated, *, power: bool = True) -> Run:
    """Returns a simulated run as the regression takes it."""
    pieces = unit.trace.pieces
    shown = unit.power if power else unit.power.between(0, 0)
    return Run(pieces, identity_groups(pieces), unit.counter, shown, limit_watts=700.0)


def problem_of(run: Run) -> Problem:
    return run.problem(run.blocks())


def fitted(unit: Simulated, *, power: bool = True) -> list[Fit]:
    """Returns the summits that are found from a run."""
    run = run_of(unit, power=power)
    problem = problem_of(run)
    prior = plausible(problem, run.power_seconds)
    with threadpool_limits(limits=1, user_api="blas"):
        return fit_response(problem, prior, run.update_seconds, run.power_seconds)


@pytest.mark.parametrize(("sensor", "seed"), [("h100_100", 1), ("h100_20", 2), ("v100", 3)])
def test_a_run_tells_the_response(sensor: str, seed: int) -> None:
    """Delays, rise, window, gain and offset are found within four of their own standard deviations."""
    unit = Simulated(sensor, seed, steps=150)
    found = fitted(unit)
    assert [fit.objective for fit in found[:2]] == sorted(fit.objective for fit in found[:2])
    for name, off in deviations(found[0], unit.response).items():
        assert abs(off) < 4, name
    # Being sure of nothing would be right as well: the window and the gain have to be known to some use.
    deviation = np.sqrt(np.diag(found[0].covariance))
    assert deviation[NAMES.index("power_window_seconds")] < 0.15
    assert deviation[NAMES.index("power_gain")] < 0.03
    assert 0.3 / 3 < found[0].noise.jitter / 0.1 < 3


def test_counter_alone_tells_its_own_response() -> None:
    """Without a power reading delay and rise are found; nothing is learnt of what is not there."""
    unit = Simulated("h100_20", 4, steps=150)
    (found,) = fitted(unit, power=False)
    off = deviations(found, unit.response)
    assert abs(off["counter_delay_seconds"]) < 4
    assert abs(off["rise_seconds"]) < 4
    run = run_of(unit, power=False)
    prior = plausible(problem_of(run), 0.0)
    place = NAMES.index("power_gain")
    assert found.response.power_gain == pytest.approx(prior.mean[place])
    assert found.covariance[place, place] == pytest.approx(1 / prior.precision[place, place])


def test_part_time_counter_is_told_by_what_it_misses() -> None:
    """A counter that adds up a quarter of each period is found out, and a whole one is not suspected."""
    unit = Simulated("h100_100", 5, steps=120)
    assert fitted(unit)[0].response.counter_window_seconds is None
    rng = np.random.default_rng(6)
    part = replace(unit.sensor, part_time=0.25)
    unit.drawn = draw(part, rng)
    unit.evidence = observe(part, unit.drawn, unit.trace, rng)
    found = fitted(unit)[0].response.counter_window_seconds
    assert found is not None
    assert found == pytest.approx(0.025, rel=0.25)


def test_climbing_never_goes_down() -> None:
    """What is found is at least as likely as where it began, in its own noise."""
    unit = Simulated("h100_100", 7, steps=60)
    run = run_of(unit)
    problem = problem_of(run)
    prior = plausible(problem, run.power_seconds)
    start = Fit(unit.response, np.eye(len(NAMES)), Noise(), problem.prior.mean, np.inf)
    first = climb(problem, start, prior, 1, noise_rounds=())
    last = climb(problem, start, prior, 6, noise_rounds=())
    assert last.objective <= first.objective


def test_measurement_binds_the_fit() -> None:
    """With a calibration the run moves the response no further than the calibration allows."""
    unit = Simulated("h100_100", 8, steps=60)
    measured = known(unit.response, 1e-4)
    with threadpool_limits(limits=1, user_api="blas"):
        fit, _ = fit_run(run_of(unit), measured)
    moved = np.abs(fit.response.vector() - measured.response.vector())
    assert (moved < 4 * np.sqrt(np.diag(measured.covariance))).all()
    allowed = np.sqrt(np.diag(measured.covariance))
    assert (np.sqrt(np.diag(fit.covariance)) <= allowed * (1 + 1e-9)).all()


@pytest.mark.parametrize(("shape", "aged"), [("constant", False), ("decaying", True), ("ramping", True)])
def test_power_by_age_is_used_where_there_is_any(shape: str, *, aged: bool) -> None:
    """Power that decays or ramps within phases is found; where it is constant no ages are made up."""
    unit = Simulated("h100_20", 9, steps=150, shape=shape)
    with threadpool_limits(limits=1, user_api="blas"):
        run = run_of(unit)
        fit, share = fit_run(run, known(unit.response))
        found = regress(run, fit, share)
    assert (share > 0) == aged
    half = np.hypot(found.statistical, found.response)
    for place, name in enumerate(unit.trace.pieces.rows):
        if name != OUTSIDE:
            assert abs(found.joules[place] - unit.truth[name]) < 2 * half[place], name


def test_blocks_let_power_drift() -> None:
    """A long run is solved in blocks, which share out its time; a short one is one block."""
    short = run_of(Simulated("h100_100", 10, steps=60))
    assert len(short.blocks()) == 2
    long = run_of(Simulated("h100_100", 10, steps=700))
    borders = long.blocks()
    assert len(borders) > 2
    assert borders[0] == 0
    assert (np.diff(borders) > 30).all()
    weights = [
        long.problem(borders[place : place + 2]).stretches.weights.sum() for place in range(len(borders) - 1)
    ]
    assert sum(weights) == pytest.approx(borders[-1])
