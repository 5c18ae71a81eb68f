"""The regression's linear algebra: a mixed model with a banded covariance, in time linear in its length.

Each stretch of time has a power: the mean of its column (a phase, in a block of time) plus its own deviation.
Observations are weighted sums of these powers plus noise. What is asked for is not the means but the energy
that the stretches really used, so the deviations are predicted along (best linear unbiased prediction;
Robinson, "That BLUP is a good thing", Statistical Science 6, 1991). A stretch touches few observations, hence
the observations' covariance is banded, and its Cholesky factor as well.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from wattq.counter import Floats


class Band:
    """A symmetric banded matrix, upper form: `rows[width + i - j, j]` is entry (i, j), i <= j.

    Attributes:
        rows: The diagonals.
    """

    def __init__(self, rows: Floats) -> None:
        self.rows = rows

    @classmethod
    def of_product(cls, half: sparse.csr_matrix) -> "Band":
        """Returns `half @ half.T`."""
        product = (half @ half.T).tocoo()
        upper = product.row <= product.col
        row, column, value = product.row[upper], product.col[upper], product.data[upper]
        width = int((column - row).max(initial=0))
        rows = np.zeros((width + 1, half.shape[0]))
        rows[width + row - column, column] = value
        return cls(rows)

    def widened(self, width: int) -> Floats:
        """Returns the diagonals with rows of zeros on top for a greater width."""
        missing = width + 1 - len(self.rows)
        return np.vstack([np.zeros((missing, self.rows.shape[1])), self.rows]) if missing > 0 else self.rows

    def __add__(self, other: "Band") -> "Band":
        width = max(len(self.rows), len(other.rows)) - 1
        return Band(self.widened(width) + other.widened(width))

    def scaled(self, factor: float) -> "Band":
        """Returns the matrix times a factor."""
        return Band(factor * self.rows)


class Factor:
    """The Cholesky factor of a positive definite band.

    Attributes:
        log_determinant: Of the matrix.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not positive definite.
    """

    def __init__(self, band: Band) -> None:
        self._rows = linalg.cholesky_banded(band.rows, check_finite=False)
        self.log_determinant = 2 * float(np.log(self._rows[-1]).sum())

    def whiten(self, right: Floats) -> Floats:
        """Returns each entry less what those before it predict of it, in standard deviations."""
        (solve,) = linalg.get_lapack_funcs(("tbtrs",), (self._rows,))
        found, _ = solve(self._rows, right, uplo="U", trans="T")
        return np.asarray(found, dtype=np.float64)

    def solve(self, right: Floats) -> Floats:
        """Returns the inverse times `right`."""
        return np.asarray(linalg.cho_solve_banded((self._rows, False), right, check_finite=False))


@dataclass(frozen=True)
class Prior:
    """What is held to be plausible of the fixed effects before any observation.

    Attributes:
        mean: Of each.
        precision: Inverse of their covariance.
    """

    mean: Floats
    precision: Floats


@dataclass(frozen=True)
class Fixed:
    """The fixed effects after the observations.

    Attributes:
        mean: Of each.
        covariance: Of their errors.
        information: What the observations alone say: the inverse of their covariance without the prior.
        objective: -2 log of the marginal likelihood, but for a constant.
        residual: What is left of the observations, weighted by the inverse covariance.
        design: The design weighted likewise.
    """

    mean: Floats
    covariance: Floats
    information: Floats
    objective: float
    residual: Floats
    design: Floats


def estimate_fixed(factor: Factor, design: Floats, value: Floats, prior: Prior) -> Fixed:
    """Solves for the fixed effects by generalised least squares with a prior.

    Args:
        factor: Of the observations' covariance.
        design: A column a fixed effect.
        value: The observations.
        prior: Of the fixed effects.
    """
    rest = value - design @ prior.mean
    solved = factor.solve(np.column_stack([design, rest]))
    weighted, weighted_rest = solved[:, :-1], solved[:, -1]
    information = design.T @ weighted
    covariance = _inverse(information + prior.precision)
    step = covariance @ (design.T @ weighted_rest)
    residual = weighted_rest - weighted @ step
    quadratic = float(rest @ weighted_rest - step @ (design.T @ weighted_rest))
    evidence = -_log_determinant(covariance) - _log_determinant(prior.precision)
    return Fixed(
        mean=prior.mean + step,
        covariance=covariance,
        information=information,
        objective=factor.log_determinant + evidence + quadratic,
        residual=residual,
        design=weighted,
    )


def _inverse(matrix: Floats) -> Floats:
    """Inverts a positive definite matrix whose entries differ by orders of magnitude."""
    scale = 1 / np.sqrt(np.diag(matrix))
    inverse = linalg.inv(matrix * np.outer(scale, scale))
    return np.asarray((inverse + inverse.T) / 2 * np.outer(scale, scale))


def _log_determinant(matrix: Floats) -> float:
    return float(np.linalg.slogdet(matrix)[1])


@dataclass(frozen=True)
class Predicted:
    """Weighted sums of the stretches' powers: the energies asked for.

    Attributes:
        value: Of each sum.
        covariance: Of their errors, as if the response were known.
        sensitivity: By how much each changes with each nonlinear parameter.
    """

    value: Floats
    covariance: Floats
    sensitivity: Floats


def predict(
    factor: Factor,
    fixed: Fixed,
    *,
    matrix: sparse.csr_matrix,
    together: sparse.csr_matrix,
    variance: Floats,
    weights: sparse.csr_matrix,
    membership: sparse.csr_matrix,
    jacobian: Floats,
) -> Predicted:
    """Predicts weighted sums of the stretches' powers.

    Args:
        factor: Of the observations' covariance.
        fixed: The solution for the means.
        matrix: Weight of each stretch in each observation.
        together: Which stretches deviate from their mean together, one column an instance.
        variance: Of each instance's deviation.
        weights: Weight of each stretch in each sum, one row a sum.
        membership: Which means make up the power of each stretch, one row a stretch.
        jacobian: Change of the observations with each nonlinear parameter.
    """
    summed = weights @ together
    own = (summed @ sparse.diags_array(variance)).tocsr()
    cross = np.asarray((matrix @ together @ own.T).todense())
    solved = factor.solve(np.column_stack([cross, jacobian]))
    gain, bent = solved[:, : cross.shape[1]], solved[:, cross.shape[1] :]
    means = np.asarray((weights @ membership).todense())
    left = means - cross.T @ fixed.design
    covariance = np.asarray((own @ summed.T).todense()) - cross.T @ gain
    covariance = covariance + left @ fixed.covariance @ left.T
    value = means @ fixed.mean + cross.T @ fixed.residual
    # What a wrong parameter adds to the observations passes into the answer as any part of them does.
    slope = left @ fixed.covariance @ (fixed.design.T @ jacobian) + cross.T @ bent
    return Predicted(np.asarray(value), np.asarray(covariance), np.asarray(slope))
