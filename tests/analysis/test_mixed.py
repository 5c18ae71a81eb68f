"""The regression's algebra in bands, against plain dense matrices."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from wattq.counter import Floats
from wattq.mixed import Band, Factor, Prior, estimate_fixed, predict

from tests.analysis.made import seeds


def banded(rng: np.random.Generator, rows: int, columns: int, width: int = 3) -> sparse.csr_matrix:
    """Returns a matrix whose rows each touch a few columns that move along with them."""
    dense = np.zeros((rows, columns))
    for row in range(rows):
        first = row * max(columns - width, 0) // max(rows, 1)
        dense[row, first : first + width] = rng.uniform(0.1, 1.0, len(dense[row, first : first + width]))
    return sparse.csr_matrix(dense)


def dense_of(band: Band) -> Floats:
    """Returns a band as a full matrix."""
    width, size = len(band.rows) - 1, band.rows.shape[1]
    full = np.zeros((size, size))
    for above in range(width + 1):
        diagonal = band.rows[width - above, above:]
        full += np.diag(diagonal, above) + (np.diag(diagonal, -above) if above else 0)
    return full


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 25), st.integers(3, 25), st.floats(0.01, 10))
def test_band_is_the_matrix_that_it_stands_for(seed: int, rows: int, columns: int, factor: float) -> None:
    """Product, sum and multiple of bands are those of the matrices."""
    rng = np.random.default_rng(seed)
    one, other = banded(rng, rows, columns), banded(rng, rows, columns, 6)
    bands = Band.of_product(one), Band.of_product(other)
    first, second = (half.toarray() @ half.toarray().T for half in (one, other))
    assert dense_of(bands[0]) == pytest.approx(first)
    assert dense_of(bands[0].scaled(factor) + bands[1]) == pytest.approx(factor * first + second)
    assert dense_of(bands[1] + bands[0]) == pytest.approx(first + second)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 25))
def test_factor_solves_and_knows_the_determinant(seed: int, size: int) -> None:
    """The factor of a band gives the inverse and the determinant of the matrix."""
    rng = np.random.default_rng(seed)
    band = Band.of_product(banded(rng, size, size + 2))
    band.rows[-1] += 0.5
    full, right = dense_of(band), rng.standard_normal((size, 3))
    factor = Factor(band)
    assert factor.solve(right) == pytest.approx(np.linalg.solve(full, right), rel=1e-9, abs=1e-9)
    assert factor.log_determinant == pytest.approx(np.linalg.slogdet(full)[1], rel=1e-9, abs=1e-9)


def test_what_is_no_covariance_is_refused() -> None:
    """A band that is not positive definite has no factor."""
    with pytest.raises(np.linalg.LinAlgError):
        Factor(Band(np.array([[0.0, 2.0], [1.0, 1.0]])))


@dataclass
class Textbook:
    """A small mixed model: what is drawn, what is seen of it, and the joint normal distribution of both."""

    matrix: sparse.csr_matrix
    membership: sparse.csr_matrix
    together: sparse.csr_matrix
    variance: Floats
    noise: Band
    prior: Prior
    weights: sparse.csr_matrix
    value: Floats

    @property
    def power(self) -> tuple[Floats, Floats]:
        """Mean and covariance of the powers before anything is seen."""
        members, groups = self.membership.toarray(), self.together.toarray()
        covariance = members @ np.linalg.inv(self.prior.precision) @ members.T
        return members @ self.prior.mean, covariance + groups @ np.diag(self.variance) @ groups.T

    @property
    def seen(self) -> tuple[Floats, Floats]:
        """Mean and covariance of the observations."""
        matrix, (mean, covariance) = self.matrix.toarray(), self.power
        return matrix @ mean, matrix @ covariance @ matrix.T + dense_of(self.noise)

    @property
    def factor(self) -> Factor:
        half = self.matrix @ self.together @ sparse.diags_array(np.sqrt(self.variance))
        return Factor(Band.of_product(sparse.csr_matrix(half)) + self.noise)

    @property
    def design(self) -> Floats:
        return np.asarray((self.matrix @ self.membership).toarray())


def textbook(seed: int, *, size: int = 14, means: int = 3) -> Textbook:
    """Draws a model at random."""
    rng = np.random.default_rng(seed)
    seen = int(rng.integers(4, 20))
    number = np.arange(size)
    membership = np.zeros((size, means))
    membership[number, rng.integers(0, means, size)] = 1.0
    groups = np.zeros((size, (size + 1) // 2))
    groups[number, number // 2] = 1.0
    noise = Band.of_product(banded(rng, seen, seen, 2))
    noise.rows[-1] += 0.1
    precision = rng.standard_normal((means, means))
    return Textbook(
        banded(rng, seen, size, 4),
        sparse.csr_matrix(membership),
        sparse.csr_matrix(groups),
        rng.uniform(0.0, 2.0, groups.shape[1]),
        noise,
        Prior(rng.uniform(0, 5, means), precision @ precision.T + 0.1 * np.eye(means)),
        sparse.csr_matrix(rng.uniform(0, 1, (4, size)) * (rng.uniform(size=(4, size)) < 0.5)),
        rng.uniform(0, 5, seen),
    )


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_fixed_effects_are_the_conditional_mean(seed: int) -> None:
    """Means and their covariance are those of the joint normal distribution given the observations."""
    model = textbook(seed)
    found = estimate_fixed(model.factor, model.design, model.value, model.prior)
    mean, covariance = model.seen
    before = np.linalg.inv(model.prior.precision)
    gain = before @ model.design.T @ np.linalg.inv(covariance)
    assert found.mean == pytest.approx(model.prior.mean + gain @ (model.value - mean), rel=1e-7, abs=1e-7)
    assert found.covariance == pytest.approx(before - gain @ model.design @ before, rel=1e-6, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_objective_is_the_marginal_likelihood(seed: int) -> None:
    """-2 log of the likelihood with the means integrated out, but for what the number of values makes."""
    model = textbook(seed)
    found = estimate_fixed(model.factor, model.design, model.value, model.prior)
    density = stats.multivariate_normal.logpdf(model.value, *model.seen)
    constant = len(model.value) * np.log(2 * np.pi)
    assert found.objective == pytest.approx(-2 * density - constant, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_predicted_energies_are_the_conditional_mean(seed: int) -> None:
    """Energies are predicted with each stretch's own deviation, and so is how well they are known."""
    model = textbook(seed)
    rng = np.random.default_rng(seed + 1)
    jacobian = rng.standard_normal((len(model.value), 2))

    def predicted(value: Floats) -> tuple[Floats, Floats, Floats]:
        factor = model.factor
        fixed = estimate_fixed(factor, model.design, value, model.prior)
        answer = predict(
            factor,
            fixed,
            matrix=model.matrix,
            together=model.together,
            variance=model.variance,
            weights=model.weights,
            membership=model.membership,
            jacobian=jacobian,
        )
        return answer.value, answer.covariance, answer.sensitivity

    value, covariance, sensitivity = predicted(model.value)
    weights = model.weights.toarray()
    (mean, prior), (expected, seen) = model.power, model.seen
    gain = weights @ prior @ model.matrix.toarray().T @ np.linalg.inv(seen)
    assert value == pytest.approx(weights @ mean + gain @ (model.value - expected), rel=1e-6, abs=1e-6)
    rest = weights @ prior @ weights.T - gain @ model.matrix.toarray() @ prior @ weights.T
    assert covariance == pytest.approx(rest, rel=1e-5, abs=1e-6)
    # The sensitivity is what the answer gains from a change of the observations.
    for number in range(2):
        moved, _, _ = predicted(model.value + jacobian[:, number])
        assert sensitivity[:, number] == pytest.approx(moved - value, rel=1e-6, abs=1e-6)
