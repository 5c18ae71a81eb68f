"""One regression: observations of a device over some time, and what they are held to be made of."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from wattq.counter import Floats, Ints
from wattq.mixed import Band, Factor, Fixed, Predicted, Prior, estimate_fixed, predict
from wattq.observations import Observations
from wattq.response import NAMES, Response, View
from wattq.stretches import AGES, Stretches

_RISE = NAMES.index("rise_seconds")
_FINE = 1e-3
# A phase whose own mean is near 0 still has deviations of this share of the device's mean power.
_LEAST_LEVEL = 0.05
# What the smallest quantum of a counter leaves unknown, joules, and that of a power reading, watts.
_COUNTER_NOISE, _POWER_NOISE = 3e-4, 5e-3
# A row with fewer instances has no spread that could be known: each of them may have any power.
_LEAST_INSTANCES = 10
_FREE_SHARE = 0.5
# How far the ages of a phase, from the first on, may be from its mean, and its slope, against each other:
# what a phase begins with (caches, clocks, the launch of its kernels) is what differs most.
_AGE_SCALES = np.array([4.0, 2.0, 1.0, 0.5])
_SLOPE = 3.5


@dataclass(frozen=True)
class Noise:
    """What makes observations differ from the model.

    Attributes:
        jitter: Standard deviation of an instance's power, as a share of its phase's mean.
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
        block: Number of the block of time that each stretch is in; a phase has a mean in each.
        level: Mean power of the device, watts.
        most_watts: The most that it can draw.
        age_share: Standard deviation of a phase's power at an age against its mean, as a share of `level`.
    """

    seen: Observations
    stretches: Stretches
    block: Ints
    level: float
    most_watts: float
    age_share: float = 0.0

    def without_power(self) -> "Problem":
        """Returns the problem with the counter alone."""
        return replace(self, seen=self.seen.rises())

    @property
    def has_power(self) -> bool:
        """Whether there are power readings."""
        return bool(self.seen.is_power.any())

    @cached_property
    def _columns(self) -> tuple[Ints, int, Ints]:
        """Column of the mean of each stretch, how many there are, and the column of its age or -1."""
        _, kind = np.unique(self.stretches.kind, return_inverse=True)
        kind = kind.reshape(-1)
        known, column = np.unique(self.block * (int(kind.max()) + 1) + kind, return_inverse=True)
        aged = np.where(self.stretches.outside, -1, (len(AGES) + 1) * kind + self.stretches.age)
        _, age = np.unique(aged, return_inverse=True)
        return column.reshape(-1), len(known), age.reshape(-1) - int(self.stretches.outside.any())

    @property
    def means(self) -> int:
        """How many means of phases there are."""
        return self._columns[1]

    def mean_watts(self, means: Floats, row: int) -> float:
        """Returns the mean power of a row, given all means, watts."""
        seconds = self.stretches.weights[[row]]
        return float((seconds @ (self.membership @ means)).item() / seconds.sum())

    @cached_property
    def membership(self) -> sparse.csr_matrix:
        """Which means make up the power of each stretch, one row a stretch."""
        column, count, age = self._columns
        size = len(column)
        row = np.arange(size)
        if not self.age_share:
            return sparse.csr_matrix((np.ones(size), (row, column)), shape=(size, count))
        has = np.flatnonzero(age >= 0)
        ages = int(age.max(initial=-1)) + 1
        # A phase's slope from begin to end stands beside its ages.
        _, slope = np.unique(self.stretches.kind[has], return_inverse=True)
        columns = np.concatenate([column, count + age[has], count + ages + slope.reshape(-1)])
        young = _AGE_SCALES[self.stretches.age[has]]
        values = np.concatenate([np.ones(size), young, _SLOPE * self.stretches.position[has]])
        shape = (size, count + ages + int(slope.max(initial=-1)) + 1)
        return sparse.csr_matrix((values, (np.concatenate([row, has, has]), columns)), shape=shape)

    @cached_property
    def prior(self) -> Prior:
        """What is held of the means: a phase may draw anything that the device can."""
        ages = self.membership.shape[1] - self.means
        mean = np.append(np.full(self.means, self.level), np.zeros(ages))
        deviation = np.append(
            np.full(self.means, self.most_watts), np.full(ages, self.age_share * self.level)
        )
        return Prior(mean, np.diag(1 / deviation**2))

    @cached_property
    def together(self) -> sparse.csr_matrix:
        """Which stretches make up each instance, one column an instance."""
        size = len(self.stretches.instance)
        shape = (size, int(self.stretches.instance[-1]) + 1)
        return sparse.csr_matrix((np.ones(size), (np.arange(size), self.stretches.instance)), shape=shape)

    @cached_property
    def _first(self) -> Ints:
        """First stretch of each instance."""
        instance = self.stretches.instance
        return np.flatnonzero(np.append(True, instance[1:] != instance[:-1]))

    @cached_property
    def free_variance(self) -> Floats:
        """Of each instance that belongs to nothing that repeats, watts squared; 0 for the others."""
        _, kind = np.unique(self.stretches.kind[self._first], return_inverse=True)
        kind = kind.reshape(-1)
        rare = np.bincount(kind)[kind] < _LEAST_INSTANCES
        free = self.stretches.outside[self._first] | rare
        return np.where(free, (_FREE_SHARE * self.level) ** 2, 0.0)

    def jitter_variance(self, watts: Floats) -> Floats:
        """Of each instance, for a jitter of 1, watts squared; `watts` are the stretches' mean powers."""
        level = np.maximum(np.abs(watts[self._first]), _LEAST_LEVEL * self.level)
        return np.where(self.free_variance > 0, 0.0, level**2)


class State:
    """The model at one response: the matrices from which all else follows."""

    def __init__(self, problem: Problem, response: Response, means: Floats, noise: Noise) -> None:
        self.problem, self.response, self.noise = problem, response, noise
        self.view = View(problem.seen, problem.stretches, response)
        self.watts = np.asarray(problem.membership @ means)
        self._own = problem.jitter_variance(self.watts)
        self._whole = (self.view.matrix @ problem.together).tocsr()
        self.jittered = self._spread(self._own)
        self.begin_level, self.end_level = self.view.edge_levels(self.watts)
        self._fixed = self._edges() + self._spread(problem.free_variance)
        self.design = np.asarray((self.view.matrix @ problem.membership).todense())
        self.factor = self.factored(noise)

    def _spread(self, variance: Floats) -> Band:
        return Band.of_product((self._whole @ sparse.diags_array(np.sqrt(variance))).tocsr())

    def _edges(self) -> Band:
        """Noise from not knowing when an update was: what it takes from one rise it gives to the next."""
        seen = self.problem.seen
        power = seen.is_power
        count = len(power)
        # A moment anywhere in a bracket has a variance of its half-width squared by 3.
        end = (self.end_level * seen.end_half) ** 2 / 3
        step = ((self.end_level - self.begin_level) * seen.end_half) ** 2 / 3
        begin = (self.begin_level * seen.begin_half) ** 2 / 3
        own = end + begin
        first = np.flatnonzero(seen.follower >= 0)
        if self.response.counter_window_seconds is not None:
            # A counter that looks at a window alone has no edge in common with the next; but how long the
            # period was that it stands for is known no better than both edges.
            length = np.where(power, 1.0, seen.end - seen.begin)
            own = step + (seen.value / length) ** 2 * (seen.begin_half**2 + seen.end_half**2) / 3
            first = first[:0]
        diagonal = np.where(power, step + _POWER_NOISE**2, own + _COUNTER_NOISE**2)
        after = seen.follower[first]
        width = int((after - first).max(initial=0))
        rows = np.zeros((width + 1, count))
        rows[-1] = diagonal
        rows[width + first - after, after] -= end[first]
        return Band(rows)

    @property
    def variance(self) -> Floats:
        """Of each instance's deviation, watts squared."""
        return self.noise.jitter**2 * self._own + self.problem.free_variance

    def factored(self, noise: Noise) -> Factor:
        """Returns the factor of the covariance with these variances."""
        band = self.jittered.scaled(noise.jitter**2) + self._fixed
        band.rows[-1] += np.where(self.problem.seen.is_power, noise.power_watts**2, 0.0)
        return Factor(band)

    @property
    def value(self) -> Floats:
        """The observations less the offset of the power reading."""
        seen = self.problem.seen
        return seen.value - np.where(seen.is_power, self.response.power_offset_watts, 0.0)

    @cached_property
    def jacobian(self) -> Floats:
        """By how much the observations change with each of NAMES, in their vector's units."""
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

    def solve(self, noise: Noise | None = None) -> Fixed:
        """Solves for the means with the response as it is."""
        factor = self.factor if noise is None else self.factored(noise)
        return estimate_fixed(factor, self.design, self.value, self.problem.prior)

    def solve_with_response(self, prior: Prior) -> Fixed:
        """Solves for the means and, to first order, for the way to the best response.

        Args:
            prior: Of the response's vector.
        """
        base, here = self.problem.prior, self.response.vector()
        mean = np.concatenate([base.mean, prior.mean - here])
        size = len(base.mean)
        precision = np.zeros((len(mean), len(mean)))
        precision[:size, :size], precision[size:, size:] = base.precision, prior.precision
        design = np.column_stack([self.design, self.jacobian])
        return estimate_fixed(self.factor, design, self.value, Prior(mean, precision))

    def answer(self) -> tuple[Predicted, float]:
        """Returns the energies that the rows really used, and how far the most surprising reading is off.

        The second is in standard deviations.
        """
        problem, fixed = self.problem, self.solve()
        surprise = self.factor.whiten(self.value - self.design @ fixed.mean)
        predicted = predict(
            self.factor,
            fixed,
            matrix=self.view.matrix,
            together=problem.together,
            variance=self.variance,
            weights=problem.stretches.weights,
            membership=problem.membership,
            jacobian=self.jacobian,
        )
        return predicted, float(np.abs(surprise).max(initial=0.0))
