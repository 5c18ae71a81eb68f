"""Finds a device's response from a run: the parameters under which its observations are least surprising.

The marginal likelihood of the mixed model is climbed by Gauss-Newton in the response's parameters, the means of
the phases along with them; the variances of jitter and noise by a search. It has several summits in the power
reading's window and delay, so it is started from a grid of them, after the counter alone has told its own.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, sparse

from wattq.counter import Floats, Ints
from wattq.mixed import Band, Factor, Fixed, Predicted, Prior, columns_of, estimate_fixed, predict
from wattq.response import LOGARITHMIC, NAMES, Observations, Response, Stretches, View

_RISE, _WINDOW, _GAIN, _OFFSET = (NAMES.index(f"{name}") for name in NAMES[1:2] + NAMES[3:])
_FINE = 1e-3
# A phase whose own mean is near 0 still has deviations of this share of the device's mean power.
_LEAST_LEVEL = 0.05
# Sharing out the smallest quantum of a counter, joules, and of a power reading, watts.
_COUNTER_NOISE, _POWER_NOISE = 3e-4, 5e-3
_WINDOWS = (0.1, 0.25, 0.5, 1.0)
_DELAYS = (0.001, 0.006, 0.014)
_ROUNDS, _STARTS_KEPT = 12, 3
_SETTLED = 1e-3


@dataclass(frozen=True)
class Noise:
    """What makes observations differ from the model.

    Attributes:
        jitter: Standard deviation of a stretch's power, as a share of its phase's mean.
        power_watts: Standard deviation of a power reading.
    """

    jitter: float = 0.03
    power_watts: float = 1.0


@dataclass(frozen=True)
class Problem:
    """Observations of one device over some time, and what they are held to be made of.

    Attributes:
        seen: The observations.
        stretches: The stretches of time.
        column: Of each stretch: which mean it has.
        free_watts: Standard deviation of a stretch that belongs to nothing that repeats; `nan` for others.
        weights: Seconds of each stretch in each row of the answer, one row a row.
        level: Mean power of the device, watts.
        most_watts: The most that it can draw.
        columns: How many means there are.
    """

    seen: Observations
    stretches: Stretches
    column: Ints
    free_watts: Floats
    weights: sparse.csr_matrix
    level: float
    most_watts: float
    columns: int

    def membership(self) -> sparse.csr_matrix:
        """Returns the membership of stretches in columns."""
        return columns_of(self.column, self.columns)

    def without_power(self) -> "Problem":
        """Returns the problem with the counter alone."""
        keep = np.flatnonzero(~self.seen.is_power)
        place = np.full(len(self.seen.end) + 1, -1)
        place[keep] = np.arange(len(keep))
        seen = self.seen
        counter = Observations(
            seen.begin[keep],
            seen.end[keep],
            seen.value[keep],
            seen.is_power[keep],
            seen.begin_half[keep],
            seen.end_half[keep],
            place[seen.follower[keep]],
        )
        return replace(self, seen=counter)

    @property
    def has_power(self) -> bool:
        """Whether there are power readings."""
        return bool(self.seen.is_power.any())


def means_prior(problem: Problem) -> Prior:
    """Returns what is held of the phases' mean powers: anything that the device can draw."""
    count = problem.columns
    return Prior(np.full(count, problem.level), np.eye(count) / problem.most_watts**2)


class State:
    """The model at one response: the matrices from which all else follows."""

    def __init__(self, problem: Problem, response: Response, means: Floats, noise: Noise) -> None:
        self.problem, self.response, self.means, self.noise = problem, response, means, noise
        seen = problem.seen
        self.view = View(seen, problem.stretches, response)
        self.watts = means[problem.column]
        level = np.maximum(np.abs(self.watts), _LEAST_LEVEL * problem.level)
        free = ~np.isnan(problem.free_watts)
        own = np.where(free, 0.0, level**2)
        self._own, self._free_variance = own, np.where(free, problem.free_watts, 0.0) ** 2
        self.jittered = Band.of_product(self.view.matrix.multiply(np.sqrt(own)[None, :]).tocsr())
        self.begin_level, self.end_level = self.view.edge_levels(self.watts)
        self.fixed_part = self._edges()
        if free.any():
            root = np.sqrt(self._free_variance)[None, :]
            self.fixed_part = self.fixed_part + Band.of_product(self.view.matrix.multiply(root).tocsr())
        self.design = np.asarray((self.view.matrix @ problem.membership()).todense())
        self.factor = self.factored(noise)

    def _edges(self) -> Band:
        """Noise from not knowing when an update was: what it takes from one rise it gives to the next."""
        seen = self.problem.seen
        power = seen.is_power
        count = len(power)
        # A moment anywhere in a bracket has a variance of its half-width squared by 3.
        end = (self.end_level * seen.end_half) ** 2 / 3
        step = ((self.end_level - self.begin_level) * seen.end_half) ** 2 / 3
        begin = (self.begin_level * seen.begin_half) ** 2 / 3
        diagonal = np.where(power, step + _POWER_NOISE**2, end + begin + _COUNTER_NOISE**2)
        first = np.flatnonzero(seen.follower >= 0)
        after = seen.follower[first]
        width = int((after - first).max(initial=0))
        rows = np.zeros((width + 1, count))
        rows[-1] = diagonal
        rows[width + first - after, after] -= end[first]
        return Band(rows)

    @property
    def variance(self) -> Floats:
        """Of each stretch's deviation, watts squared."""
        return self.noise.jitter**2 * self._own + self._free_variance

    def factored(self, noise: Noise) -> Factor:
        """Returns the factor of the covariance with these variances."""
        band = self.jittered.scaled(noise.jitter**2) + self.fixed_part
        band.rows[-1] += np.where(self.problem.seen.is_power, noise.power_watts**2, 0.0)
        return Factor(band)

    @property
    def value(self) -> Floats:
        """The observations less the offset of the power reading."""
        seen = self.problem.seen
        return seen.value - np.where(seen.is_power, self.response.power_offset_watts, 0.0)

    def jacobian(self) -> Floats:
        """Returns by how much the observations change with each of NAMES, in their vector's units."""
        seen, response = self.problem.seen, self.response
        power = seen.is_power
        late = self.begin_level - self.end_level
        mean = self.view.matrix @ self.watts
        vector = response.vector()
        vector[_RISE] += _FINE
        slower = View(seen, self.problem.stretches, response.moved_to(vector)).matrix @ self.watts
        longer = response.power_window_seconds * self.begin_level - mean
        return np.column_stack(
            [
                np.where(power, 0.0, late),
                (slower - mean) / _FINE,
                np.where(power, late, 0.0),
                np.where(power, longer, 0.0),
                np.where(power, mean / response.power_gain, 0.0),
                np.where(power, 1.0, 0.0),
            ]
        )

    def solve(self, prior: Prior, noise: Noise | None = None) -> Fixed:
        """Solves for the means with the response as it is."""
        factor = self.factor if noise is None else self.factored(noise)
        return estimate_fixed(factor, self.design, self.value, prior)

    def answer(self, prior: Prior) -> tuple[Fixed, Predicted]:
        """Returns the means, and the energies that the rows really used."""
        fixed = self.solve(prior)
        problem = self.problem
        predicted = predict(
            self.factor,
            fixed,
            self.view.matrix,
            self.variance,
            problem.weights,
            problem.membership(),
            self.jacobian(),
        )
        return fixed, predicted


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


def _noise_at(state: State, prior: Prior) -> Noise:
    """Returns the variances that are most likely with the response as it is."""

    def objective(logs: Floats) -> float:
        noise = Noise(float(np.exp(logs[0])), float(np.exp(logs[-1])))
        try:
            fixed = state.solve(prior, noise)
        except np.linalg.LinAlgError:
            return 1e30
        # A share of 3 % and noise of half a watt are usual; far from both, the data have to insist.
        weak = ((logs[0] - np.log(0.04)) / 1.5) ** 2 + ((logs[-1] - np.log(0.5)) / 2.5) ** 2
        return fixed.objective + float(weak)

    start = np.log([state.noise.jitter, state.noise.power_watts])
    if not state.problem.has_power:
        found = optimize.minimize_scalar(
            lambda log: objective(np.array([log, start[1]])),
            bounds=(np.log(1e-3), np.log(0.6)),
            method="bounded",
            options={"xatol": 0.05},
        )
        return replace(state.noise, jitter=float(np.exp(found.x)))
    found = optimize.minimize(
        objective, start, method="Nelder-Mead", options={"xatol": 0.03, "fatol": 0.05, "maxfev": 60}
    )
    return Noise(float(np.exp(found.x[0])), float(np.exp(found.x[1])))


def climb(problem: Problem, fit: Fit, prior: Prior, rounds: int, *, noise_rounds: tuple[int, ...]) -> Fit:
    """Climbs the likelihood from a response.

    Args:
        problem: The observations.
        fit: Where to begin.
        prior: Of the response's vector.
        rounds: Most steps.
        noise_rounds: Before which steps the variances are searched for anew.
    """
    base = means_prior(problem)
    best, step_size = fit, 1.0
    response, means, noise = fit.response, fit.means, fit.noise
    for turn in range(rounds):
        state = State(problem, response, means, noise)
        if turn in noise_rounds:
            noise = _noise_at(state, base)
            state = State(problem, response, means, noise)
        objective = state.solve(base).objective + _penalty(response.vector(), prior)
        jacobian = state.jacobian()
        design = np.column_stack([state.design, jacobian])
        here = response.vector()
        joint = Prior(
            np.concatenate([base.mean, prior.mean - here]), _block(base.precision, prior.precision)
        )
        fixed = estimate_fixed(state.factor, design, state.value, joint)
        count = problem.columns
        found = Fit(response, fixed.covariance[count:, count:], noise, fixed.mean[:count], objective)
        settled = abs(best.objective - objective) < _SETTLED * 10 and turn > 1
        if objective < best.objective or turn == 0 or turn in noise_rounds:
            best = found
        if settled:
            break
        step = fixed.mean[count:]
        response = response.moved_to(here + _bounded(step))
        means = fixed.mean[:count]
    return best


def _block(first: Floats, second: Floats) -> Floats:
    size = len(first) + len(second)
    whole = np.zeros((size, size))
    whole[: len(first), : len(first)] = first
    whole[len(first) :, len(first) :] = second
    return whole


def _bounded(step: Floats) -> Floats:
    """Returns a step that stays where the linear model has a meaning."""
    most = np.array([0.006, 0.7, 0.006, 0.35, 0.1, np.inf])
    return np.asarray(np.clip(step, -most, most))


def fit_response(problem: Problem, prior: Prior, power_seconds: float) -> Fit:
    """Finds the response from the run.

    Args:
        problem: The observations.
        prior: Of the response's vector.
        power_seconds: Update period of the power reading.
    """
    means = np.full(problem.columns, problem.level)
    start = Response(0.003, 0.002, 0.003, 0.3 * max(power_seconds, 1e-3))
    nothing = Fit(start, np.linalg.inv(prior.precision), Noise(), means, np.inf)
    alone = problem.without_power()
    candidates = [
        climb(alone, replace(nothing, response=replace(start, counter_delay_seconds=delay)), prior, 4, noise_rounds=(2,))
        for delay in (0.001, 0.008)
    ]
    counter = min(candidates, key=lambda fit: fit.objective)
    if not problem.has_power:
        return climb(problem, counter, prior, _ROUNDS, noise_rounds=(1, 4))
    starts = [
        replace(
            counter.response,
            power_window_seconds=share * power_seconds,
            power_delay_seconds=delay,
        )
        for share in _WINDOWS
        for delay in _DELAYS
    ]
    tried = [climb(problem, replace(counter, response=one, objective=np.inf), prior, 3, noise_rounds=()) for one in starts]
    tried.sort(key=lambda fit: fit.objective)
    climbed = [
        climb(problem, fit, prior, _ROUNDS, noise_rounds=(0, 3)) for fit in tried[:_STARTS_KEPT]
    ]
    return min(climbed, key=lambda fit: fit.objective)
