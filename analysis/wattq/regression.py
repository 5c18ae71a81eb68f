"""The estimator `regression`: what a phase cost, from many steps whose updates cut it in different places.

Counter and power reading are used together, as observations of one unknown: the power of each stretch of
time. See `mixed` for the algebra, `response` for what a sensor sees, `fit` for how its response is found. A
long run is solved in blocks, so that its phases may change their power over minutes.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import sparse

from wattq.counter import NANO, Counter, Floats, Ints
from wattq.evidence import Series
from wattq.fit import Fit, climb, fit_response, plausible
from wattq.mixed import Prior
from wattq.observations import observations
from wattq.problem import Noise, Problem, State
from wattq.response import Response
from wattq.stretches import AGES, Bools, Stretches, cut_stretches
from wattq.sweep import Pieces

_MARGIN_UPDATES = 3.0
_BLOCK_SECONDS = 60.0
_BLOCK_STRETCHES = 1_000
_FIT_STRETCHES, _FIT_OBSERVATIONS = 5_500, 4_000
_LONG_SECONDS, _LONG_UPDATES = 1.0, 4.0
# How late a reading may be.
_LATE_SECONDS = 0.05
# So many readings are enough to find which summit of the likelihood is the highest.
_SEARCH_OBSERVATIONS = 1_500
# At most so many observations meet one stretch of usual length.
_LEAST_UPDATE_SECONDS = 0.004
_AGE_SHARES = (0.03, 0.1, 0.3)
# Twice the gain in log likelihood that power by age has to bring.
_AGE_GAIN = 8.0


@dataclass(frozen=True)
class Regressed:
    """What the regression says, an entry a row.

    Attributes:
        joules: Energy, joules.
        statistical: 95 % half-width with the response as it is, joules.
        response: 95 % half-width from not knowing the response exactly, joules.
        covariance: Of the errors of the energies, joules squared.
        worst: The most that a reading is off, given those before it, in standard deviations.
    """

    joules: Floats
    statistical: Floats
    response: Floats
    covariance: Floats
    worst: float


class Run:
    """One device over one run, ready to be solved block by block.

    Args:
        pieces: The run, cut into rows.
        groups: Which pieces count in which rows of the answer, one row of the matrix a row.
        counter: The counter's edges, with some around the run.
        power: The power reading's edges likewise.
        limit_watts: The device's power limit; None: not known.
        gaps: Recorded gaps, one row (begin, end) each, monotonic nanoseconds; no reading across one is used.
        states: State of the device's clock in each piece; None: it did not change.
    """

    def __init__(
        self,
        pieces: Pieces,
        groups: sparse.csr_matrix,
        counter: Counter,
        power: Series,
        *,
        limit_watts: float | None,
        gaps: Ints | None = None,
        states: Ints | None = None,
    ) -> None:
        self._states = states
        self._pieces, self._groups = pieces, groups
        origin = int(pieces.start[0])
        self.power_seconds = power.period_seconds
        self.update_seconds = max(counter.period / NANO, _LEAST_UPDATE_SECONDS)
        self.margin_seconds = _MARGIN_UPDATES * max(self.update_seconds, self.power_seconds)
        self.seen = observations(counter, power, origin, _LEAST_UPDATE_SECONDS)
        if gaps is not None and len(gaps):
            self.seen = self.seen.outside((gaps - origin) / NANO)
        # Within a long phase power moves as it likes, and a reading there tells nothing of its neighbours:
        # its energy is the counter's, and the response is fitted without it.
        within = self._within_long()
        self._telling = self.seen.pick(np.flatnonzero(~within))
        self.seen = self.seen.pick(np.flatnonzero(~(within & self.seen.is_power)))
        span = np.diff(counter.edge) / NANO
        rise = np.diff(counter.energy)
        self.level = float(rise.sum() / span.sum())
        self.most_watts = limit_watts or 2 * float((rise / span)[span >= np.median(span) / 2].max())
        self._cuts: dict[bool, Stretches] = {}

    def _within_long(self) -> Bools:
        """Returns which observations look at nothing but the inside of one long piece."""
        seen, pieces = self.seen, self._pieces
        start, stop = ((edge - pieces.start[0]) / NANO for edge in (pieces.start, pieces.stop))
        long = stop - start > max(_LONG_SECONDS, _LONG_UPDATES * self.update_seconds)
        if not long.any():
            return np.zeros(len(seen.end), dtype=bool)
        start, stop = start[long], stop[long]
        begin = np.where(seen.is_power, seen.end - 1.2 * self.power_seconds, seen.begin) - _LATE_SECONDS
        place = np.searchsorted(start, begin, side="right") - 1
        inside = seen.end + seen.end_half <= stop[np.maximum(place, 0)]
        return np.asarray((place >= 0) & inside)

    def stretches(self, *, aged: bool) -> Stretches:
        """Returns the run cut into stretches, by age as well if so asked."""
        if aged not in self._cuts:
            self._cuts[aged] = cut_stretches(
                self._pieces,
                self._groups,
                self.update_seconds,
                self.margin_seconds,
                AGES if aged else (),
                states=self._states,
            )
        return self._cuts[aged]

    def blocks(self) -> Floats:
        """Returns the borders of the blocks, seconds from the run's begin."""
        start = self.stretches(aged=False).start
        end = (int(self._pieces.stop[-1]) - int(self._pieces.start[0])) / NANO
        count = min(round(end / _BLOCK_SECONDS), len(start) // _BLOCK_STRETCHES)
        return np.linspace(0.0, end, max(count, 1) + 1)

    def problem(self, borders: Floats, age_share: float = 0.0, *, telling: bool = False) -> Problem:
        """Returns the regression over some blocks.

        Args:
            borders: Of the blocks, in order, seconds.
            telling: With those observations alone that tell of the response.
            age_share: See Problem; 0: power within a phase is constant.
        """
        begin, end = float(borders[0]), float(borders[-1])
        low, high = begin - self.margin_seconds, end + self.margin_seconds
        whole = self.stretches(aged=age_share > 0)
        part = whole.select(low, high, begin, end)
        # What looks at the time before the first stretch would be explained by nothing.
        reach = 0.4 * self.margin_seconds
        every = self._telling if telling else self.seen
        seen = every.between(part.start[0] + reach, float(part.stop[-1]))
        block = np.clip(np.searchsorted(borders, part.start, side="right") - 1, 0, max(len(borders) - 2, 0))
        return Problem(seen, part, block, self.level, self.most_watts, age_share)

    def fitted_part(self, borders: Floats) -> Floats:
        """Returns the borders of the first blocks, as far as the response is fitted on them."""
        start, ends = self.stretches(aged=False).start, self._telling.end
        if len(ends) < 2:
            return borders
        # A long phase has many stretches and no reading that tells anything.
        last = max(start[min(_FIT_STRETCHES, len(start) - 1)], ends[min(_FIT_OBSERVATIONS, len(ends) - 1)])
        return borders[: max(int(np.searchsorted(borders, last, side="right")), 2)]


def find_response(run: Run, borders: Floats) -> Fit:
    """Finds the response from a run: its summits on a part that is enough for that, then the best one on all.

    Args:
        run: The run.
        borders: Of the blocks on which it is fitted.
    """
    problem = run.problem(borders, telling=True)
    prior = plausible(problem, run.power_seconds)
    ends = problem.seen.end
    if len(ends) < _SEARCH_OBSERVATIONS * 1.5:
        return fit_response(problem, prior, run.update_seconds, run.power_seconds)[0]
    part = run.problem(np.array([borders[0], ends[_SEARCH_OBSERVATIONS]]), telling=True)
    summit = fit_response(part, prior, run.update_seconds, run.power_seconds)[0]
    means = State(problem, summit.response, problem.prior.mean, summit.noise).solve().mean
    return climb(problem, replace(summit, means=means), prior, 8, noise_rounds=())


def fit_run(run: Run, measured: Fit | None) -> tuple[Fit, float]:
    """Finds the response of a run's device.

    Args:
        run: The run.
        measured: What a calibration measured; None: there is none.

    Returns:
        The fit, and the share of power by age, 0 if it does not matter.
    """
    borders = run.fitted_part(run.blocks())
    problem = run.problem(borders, telling=True)
    if measured is None:
        prior = plausible(problem, run.power_seconds)
        fit = find_response(run, borders)
    else:
        prior = Prior(
            measured.response.vector(), np.asarray(np.linalg.inv(measured.covariance), dtype=np.float64)
        )
        start = Fit(measured.response, measured.covariance, Noise(), problem.prior.mean, np.inf)
        fit = climb(problem, start, prior, 8, noise_rounds=(1, 3))
    return _aged(run, borders, fit, prior)


def _aged(run: Run, borders: Floats, best: Fit, prior: Prior) -> tuple[Fit, float]:
    """Lets power depend on a phase's age if that explains the readings much better."""
    problems = {share: run.problem(borders, share, telling=True) for share in _AGE_SHARES}
    means = len(best.means)

    def climbed(share: float, known: Fit, rounds: int, noise_rounds: tuple[int, ...]) -> Fit:
        ages = np.zeros(len(problems[share].prior.mean) - means)
        start = replace(known, means=np.append(known.means[:means], ages), objective=np.inf)
        return climb(problems[share], start, prior, rounds, noise_rounds=noise_rounds)

    def most_likely(known: Fit) -> tuple[Fit, float]:
        tried = [(climbed(share, known, 1, ()), share) for share in _AGE_SHARES]
        return min(tried, key=lambda one: one[0].objective)

    # First with the responses as they are, which costs little; then the response may follow.
    first, share = most_likely(best)
    if first.objective > best.objective - _AGE_GAIN:
        return best, 0.0
    # A model without ages makes up for them with a slow rise: the others begin with usual ones.
    begins = [best, *(replace(best, response=fresh) for fresh in _usual(best.response))]
    others = [climbed(share, begin, 4, (1,)) for begin in begins]
    best = climbed(share, min(others, key=lambda fit: fit.objective), 6, (0, 2))
    again, other = most_likely(best)
    if again.objective < best.objective and other != share:
        return climbed(other, best, 4, (1,)), other
    return best, share


def _usual(response: Response) -> list[Response]:
    """Returns the response with usual delays and rises instead of its own."""
    return [
        replace(response, counter_delay_seconds=delay, power_delay_seconds=delay, rise_seconds=0.002)
        for delay in (0.001, 0.006)
    ]


def regress(run: Run, fit: Fit, age_share: float) -> Regressed:
    """Solves a run block by block with a response.

    Args:
        run: The run.
        fit: The response, and how well it is known.
        age_share: See Problem.
    """
    borders = run.blocks()
    count = run.stretches(aged=False).weights.shape[0]
    joules, covariance = np.zeros(count), np.zeros((count, count))
    slope, worst = np.zeros((count, len(fit.covariance))), 0.0
    for low, high in pairwise(borders):
        problem = run.problem(np.array([low, high]), age_share)
        means = problem.prior.mean
        for _ in range(2):
            # The covariance depends on the powers: once with what is plausible, then with what was found.
            state = State(problem, fit.response, means, fit.noise)
            means = state.solve().mean
        part, surprise = State(problem, fit.response, means, fit.noise).answer()
        worst = max(worst, surprise)
        joules += part.value
        covariance += part.covariance
        slope += part.sensitivity
    response = slope @ fit.covariance @ slope.T
    return Regressed(
        joules=joules,
        statistical=1.96 * np.sqrt(np.clip(np.diag(covariance), 0.0, None)),
        response=1.96 * np.sqrt(np.clip(np.diag(response), 0.0, None)),
        covariance=covariance + response,
        worst=worst,
    )


def identity_groups(pieces: Pieces) -> sparse.csr_matrix:
    """Returns the groups in which each piece counts in its own row alone."""
    size = len(pieces.row)
    return sparse.csr_matrix((np.ones(size), (pieces.row, np.arange(size))), shape=(len(pieces.rows), size))
