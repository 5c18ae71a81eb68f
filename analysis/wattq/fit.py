"""Finds a device's response from a run: the parameters under which its observations are least surprising.

The marginal likelihood of the mixed model is climbed by Gauss-Newton in the response's parameters, the means
of the phases along with them; the variances of jitter and noise by a search. It has several summits in the
power reading's window and delay, so it is started from a grid of them, after the counter alone has told its
own.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from wattq.counter import Floats
from wattq.mixed import Prior
from wattq.problem import Noise, Problem, State
from wattq.response import Response

_WINDOWS = (0.1, 0.25, 0.5, 1.0)
_DELAYS = (0.001, 0.006, 0.014)
_ROUNDS, _STARTS_KEPT = 12, 2
_SETTLED = 1e-2
_USUAL_NOISE, _NOISE_SPREAD = np.log([0.04, 0.5]), np.array([1.5, 2.5])
# A counter that looks at a part of each period: the parts that are tried, how much the best may be off, and
# twice the gain in log likelihood that it has to bring.
_PART_TIMES, _MOST_PART = (0.1, 0.25, 0.5), 0.8
_PART_STEPS = (0.8, 1.25, 0.92, 1.08, 0.97, 1.03, 0.985, 1.015, 0.995, 1.005)
_PART_TIME_GAIN = 20.0


@dataclass(frozen=True)
class Fit:
    """A response and how well it is known.

    Attributes:
        response: The most likely one.
        covariance: Of its vector's errors.
        noise: The variances that go with it.
        means: Of the columns.
        objective: -2 log of the likelihood, with the prior; for comparing fits of the same observations.
    """

    response: Response
    covariance: Floats
    noise: Noise
    means: Floats
    objective: float


def plausible(problem: Problem, power_seconds: float) -> Prior:
    """Returns what is held of any sensor's response before it has been seen at work.

    Boards and sensors are some milliseconds late; gains are a few per cent off (published comparisons with
    external meters: 0.91 to 1.05, -23 to +6 W).
    """
    mean = np.array([0.003, np.log(0.002), 0.003, np.log(0.3 * max(power_seconds, 1e-3)), 1.0, 0.0])
    deviation = np.array([0.006, 1.0, 0.006, 1.3, 0.1, 0.1 * problem.level])
    return Prior(mean, np.diag(1 / deviation**2))


def _penalty(vector: Floats, prior: Prior) -> float:
    away = vector - prior.mean
    return float(away @ prior.precision @ away)


def _noise_at(state: State) -> Noise:
    """Returns the variances that are most likely with the response as it is."""

    def objective(logs: Floats) -> float:
        jitter, watts = np.exp(logs).tolist()
        try:
            fixed = state.solve(Noise(jitter, watts))
        except np.linalg.LinAlgError:
            return 1e30
        # A jitter of some per cent and noise of half a watt are usual: the data have to insist on others.
        return fixed.objective + float((((logs - _USUAL_NOISE) / _NOISE_SPREAD) ** 2).sum())

    start = np.log([state.noise.jitter, state.noise.power_watts])
    if not state.problem.has_power:
        found = optimize.minimize_scalar(
            lambda log: objective(np.array([log, start[1]])),
            bounds=(np.log(1e-3), np.log(0.6)),
            method="bounded",
            options={"xatol": 0.1},
        )
        return replace(state.noise, jitter=float(np.exp(found.x)))
    corners = start + np.array([[0.0, 0.0], [0.3, 0.0], [0.0, -0.7]])
    options = {"xatol": 0.05, "fatol": 0.1, "maxfev": 50, "initial_simplex": corners}
    found = optimize.minimize(objective, start, method="Nelder-Mead", options=options)
    jitter, watts = np.exp(found.x).tolist()
    return Noise(jitter, watts)


def climb(problem: Problem, fit: Fit, prior: Prior, rounds: int, *, noise_rounds: tuple[int, ...]) -> Fit:
    """Climbs the likelihood from a response.

    Args:
        problem: The observations.
        fit: Where to begin.
        prior: Of the response's vector.
        rounds: Most steps.
        noise_rounds: Before which steps the variances are searched for anew.
    """
    best = replace(fit, objective=np.inf)
    response, means, noise = fit.response, fit.means, fit.noise
    for turn in range(rounds):
        try:
            state = State(problem, response, means, noise)
            if turn in noise_rounds:
                noise = _noise_at(state)
                state = State(problem, response, means, noise)
            here = response.vector()
            objective = state.solve().objective + _penalty(here, prior)
            joint = state.solve_with_response(prior)
        except np.linalg.LinAlgError:
            break  # the step went to where nothing has a solution: what was found before it stands
        means, step = joint.mean[: len(means)], joint.mean[len(means) :]
        settled = turn > max(noise_rounds, default=1) and abs(best.objective - objective) < _SETTLED
        if objective < best.objective or turn in noise_rounds:
            covariance = joint.covariance[len(means) :, len(means) :]
            best = Fit(response, covariance, noise, means, objective)
        if settled:
            break
        response = response.moved_to(here + _bounded(step))
    return best


def _bounded(step: Floats) -> Floats:
    """Returns a step that stays where the linear model has a meaning."""
    most = np.array([0.006, 0.7, 0.006, 0.35, 0.1, np.inf])
    return np.asarray(np.clip(step, -most, most))


def fit_response(problem: Problem, prior: Prior, counter_seconds: float, power_seconds: float) -> list[Fit]:
    """Finds the response from the run.

    Args:
        problem: The observations.
        prior: Of the response's vector.
        counter_seconds: Update period of the counter.
        power_seconds: Update period of the power reading.

    Returns:
        The summits that were found, the most likely one first; the others are of other windows.
    """
    summits = _full_time(problem, prior, power_seconds)
    return _part_time(problem, prior, summits, counter_seconds)


def _full_time(problem: Problem, prior: Prior, power_seconds: float) -> list[Fit]:
    """Finds the response of a counter that looks at all of the time."""
    start = Response(0.003, 0.002, 0.003, 0.3 * max(power_seconds, 1e-3))
    nothing = Fit(
        start,
        np.asarray(np.linalg.inv(prior.precision), dtype=np.float64),
        Noise(),
        problem.prior.mean,
        np.inf,
    )
    alone = problem.without_power()
    begins = [replace(start, counter_delay_seconds=delay) for delay in (0.001, 0.008)]
    counter = min(
        (climb(alone, replace(nothing, response=one), prior, 4, noise_rounds=(2,)) for one in begins),
        key=_surprise,
    )
    if not problem.has_power:
        return [climb(problem, counter, prior, _ROUNDS, noise_rounds=(1, 4, 7))]
    found = []
    for share in _WINDOWS:
        starts = [
            replace(counter.response, power_window_seconds=share * power_seconds, power_delay_seconds=delay)
            for delay in _DELAYS
        ]
        tried = (
            climb(problem, replace(counter, response=one, objective=np.inf), prior, 3, noise_rounds=())
            for one in starts
        )
        found.append(min(tried, key=_surprise))
    found.sort(key=_surprise)
    climbed = [climb(problem, fit, prior, _ROUNDS, noise_rounds=(0, 3, 6)) for fit in found[:_STARTS_KEPT]]
    return sorted(climbed, key=_surprise) + found[_STARTS_KEPT:]


def _part_time(problem: Problem, prior: Prior, summits: list[Fit], counter_seconds: float) -> list[Fit]:
    """Lets the counter look at a part of each period only, if that explains the readings much better.

    Such a counter adds up what a power reading shows instead of the energy; it is told by what it misses.
    """
    best = summits[0]

    def tried(known: Fit, window: float) -> Fit:
        response = replace(known.response, counter_window_seconds=window)
        return climb(
            problem, replace(known, response=response, objective=np.inf), prior, 3, noise_rounds=(1,)
        )

    found = []
    for share in _PART_TIMES:
        # What such a counter adds up is the power reading, so both look at the same window.
        window = share * counter_seconds
        usual = Response(0.002, 0.002, 0.002, window)
        found.append(tried(Fit(usual, best.covariance, Noise(), problem.prior.mean, np.inf), window))
    part = min(found, key=_surprise)
    if part.objective > 10 * abs(best.objective):
        return summits
    for step in _PART_STEPS:
        window = step * (part.response.counter_window_seconds or 0.0)
        if window < _MOST_PART * counter_seconds:
            part = min(part, tried(part, window), key=_surprise)
    if part.objective > best.objective - _PART_TIME_GAIN:
        return summits
    return [climb(problem, replace(part, objective=np.inf), prior, _ROUNDS, noise_rounds=(0, 3))]


def _surprise(fit: Fit) -> float:
    return fit.objective
