"""One device over one boot of a run, by the regression: what each row got, or why it has no number."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from wattq.clocks import Clock
from wattq.counter import NANO, Counter, Device, Floats, Ints, time_within
from wattq.evidence import Series
from wattq.fit import Fit
from wattq.overlap import Shares
from wattq.regression import Regressed, Run, fit_run, regress
from wattq.sweep import OUTSIDE, Phases, Pieces
from wattq.trust import contradicts, implausible, open_ended, surprising, unseen

_LEAST_READINGS = 20
_AROUND_NANO = 2 * NANO
# A mean power that is known no better than to this share of what the device can draw is not known.
_LEAST_KNOWN = 0.25
# Phases that begin this much at the same places between updates, at most so many, meet them always alike.
_LOCKED, _PLACES = 0.9, 4
# Fewer that begin anywhere look like it in one case of ten.
_LEAST_BEGINS = 5
# A short phase has to meet the updates in so many places.
_LEAST_TIMES = 10
# A phase of so many updates has some for itself, wherever they are.
_LONG_UPDATES = 5.0


class NotApplicableError(Exception):
    """There is no ground for a regression; the text says why."""


@dataclass(frozen=True)
class Attributed:
    """What the regression gave.

    Attributes:
        shares: What each row of the run got.
        reasons: Why a row has no number, by its name.
        inclusive: Energy with nested phases in it by phase name, joules.
        fitted_from_run: The response was found from the run itself.
        age_share: See Problem: not 0 where power within a phase was found to change with its age.
    """

    shares: Shares
    reasons: dict[str, str]
    inclusive: dict[str, float]
    fitted_from_run: bool
    age_share: float


def attribute(
    counter: Counter,
    power: Series,
    clock: Clock,
    device: Device,
    *,
    cut: tuple[Phases, Pieces, tuple[Ints, Ints, Ints]],
    gaps: Ints,
    overlap: Shares,
    measured: Fit | None,
) -> Attributed:
    """Attributes a device's energy to the rows of a run.

    Args:
        counter: The device's counter.
        power: Its power reading; empty where it shows none.
        clock: Its clock; empty where it has none.
        device: What it is.
        cut: The phases, the run cut into rows, and the merged whole intervals of each name.
        gaps: Recorded gaps, one row (begin, end) each, monotonic nanoseconds.
        overlap: What the estimator overlap says of the same.
        measured: The response that a calibration measured; None: there is none.

    Raises:
        NotApplicableError: There is too little evidence.
    """
    phases, pieces, whole = cut
    begin, end = int(pieces.start[0]), int(pieces.stop[-1])
    margin = max(_AROUND_NANO, 5 * counter.period)
    near, power = counter.between(begin - margin, end + margin), power.between(begin - margin, end + margin)
    seen = int(
        ((near.edge > begin) & (near.edge < end)).sum()
        + ((power.moment > begin) & (power.moment < end)).sum()
    )
    if len(near.edge) < 3 or seen < _LEAST_READINGS:
        raise NotApplicableError(
            f"{seen} readings are too few for a regression ({_LEAST_READINGS} are needed)"
        )
    _insist(unseen(overlap))
    groups, names = groups_of(phases, pieces, whole)
    states = clock.states(begin, end, (pieces.start + pieces.stop) // 2)
    run = Run(pieces, groups, near, power, limit_watts=device.power_limit_watts, gaps=gaps, states=states)
    try:
        # The matrices are small: threads would wait for each other far longer than they work.
        with threadpool_limits(limits=1, user_api="blas"):
            found, age_share, measured = _solve(run, measured, has_power=len(power.moment) > 0)
    except np.linalg.LinAlgError as error:
        raise NotApplicableError(
            "the readings contradict each other: the regression has no solution"
        ) from error
    rows = len(pieces.rows)
    windows = _windows(pieces)
    total = float(counter.rise(windows[:, 0], windows[:, 1]).sum())
    covariance = found.covariance[:rows, :rows]
    update_joules = run.most_watts * run.update_seconds
    _insist(open_ended(total - float(found.joules[:rows].sum()), covariance, update_joules))
    joules, moved = close(found.joules[:rows], found.statistical[:rows], total)
    statistical = np.maximum(found.statistical[:rows], moved)
    # (outside) is what is left: it has the errors of all others, and those of the run's two ends.
    others = float(covariance[1:, 1:].sum())
    statistical[0] = 1.96 * np.sqrt(max(others, 0.0) + 2 * update_joules**2 / 12)
    shares = replace(overlap, joules=joules, statistical=statistical, response=found.response[:rows])
    grids = (near.edge, power.moment) if len(power.moment) > 1 else (near.edge,)
    reasons = _reasons(pieces, shares, run, grids)
    inclusive = dict(zip(names, found.joules[rows:].tolist(), strict=True))
    return Attributed(shares, reasons, inclusive, fitted_from_run=measured is None, age_share=age_share)


def _insist(objection: str) -> None:
    if objection:
        raise NotApplicableError(objection)


def _solve(run: Run, measured: Fit | None, *, has_power: bool) -> tuple[Regressed, float, Fit | None]:
    """Solves with the measured response, or where that contradicts the readings with one fitted to them.

    Returns:
        The answer, the share of power by age, and the measured response if it was used.
    """
    objection = ""
    for known in (measured, None) if measured else (None,):
        fit, age_share = fit_run(run, known)
        objection = implausible(fit, run.level, has_power=has_power)
        if objection or (known and contradicts(fit, known)):
            continue
        found = regress(run, fit, age_share)
        objection = surprising(found.worst)
        if not objection:
            return found, age_share, known
    raise NotApplicableError(objection)


def _windows(pieces: Pieces) -> Ints:
    """Returns the uninterrupted windows of a run, one row (begin, end) each."""
    apart = np.append(True, pieces.start[1:] != pieces.stop[:-1])
    last = np.append(apart[1:], True)
    return np.column_stack([pieces.start[apart], pieces.stop[last]])


def groups_of(
    phases: Phases, pieces: Pieces, whole: tuple[Ints, Ints, Ints]
) -> tuple[sparse.csr_matrix, list[str]]:
    """Returns what share of a piece counts in which rows: each its own, then the whole of each name."""
    size, rows = len(pieces.row), len(pieces.rows)
    row, column, share = [pieces.row], [np.arange(size)], [np.ones(size)]
    names: list[str] = []
    start, stop, name = whole
    for number in np.unique(name).tolist():
        mine = np.column_stack([start, stop])[name == number]
        # A row that goes on from one phase to the next is one piece, of which the whole may have a part.
        part = (time_within(mine, pieces.stop) - time_within(mine, pieces.start)) / (
            pieces.stop - pieces.start
        )
        inside = np.flatnonzero(part > 0)
        row.append(np.full(len(inside), rows + len(names)))
        column.append(inside)
        share.append(part[inside])
        names.append(phases.names[number])
    entries = np.concatenate(share), (np.concatenate(row), np.concatenate(column))
    return sparse.csr_matrix(entries, shape=(rows + len(names), size)), names


def close(joules: Floats, width: Floats, total: float) -> tuple[Floats, Floats]:
    """Makes the rows add up to the counter, none of them negative.

    What is left belongs to (outside), the first row, which holds the run's two ends; where it would become
    negative, the others give, each by how little it is known.

    Args:
        joules: Energy of each row.
        width: Half-width of each.
        total: The counter over the run, joules.

    Returns:
        The energies, and by how much each was moved for it; the first is not counted as moved.
    """
    closed = joules.copy()
    closed[0] += total - joules.sum()
    for _ in range(len(closed)):
        short = -float(closed[closed < 0].sum())
        if not short:
            break
        closed = np.maximum(closed, 0.0)
        weight = np.where(closed > 0, width**2 + 1e-12, 0.0)
        closed = closed - short * weight / weight.sum()
    closed = np.maximum(closed, 0.0)
    moved = np.abs(closed - joules)
    moved[0] = 0.0
    return closed, moved


def _reasons(pieces: Pieces, shares: Shares, run: Run, grids: tuple[Ints, ...]) -> dict[str, str]:
    """Returns the rows that the readings do not tell from their neighbours, and why."""
    found = {}
    for number, name in enumerate(pieces.rows):
        seconds = shares.seconds[number]
        if name == OUTSIDE or not seconds:
            continue
        half = float(np.hypot(shares.statistical[number], shares.response[number]))
        reason = ""
        if seconds / shares.stretches[number] < _LONG_UPDATES * run.update_seconds:
            begins = pieces.start[pieces.row == number]
            reason = _few(len(begins)) or _locked(begins, grids)
        if not reason and half > _LEAST_KNOWN * run.most_watts * seconds:
            reason = "the readings do not tell it from what runs before and after it"
        if reason:
            found[name] = reason
    return found


def _few(times: int) -> str:
    """Returns that a short phase ran too seldom, or an empty text."""
    if times >= _LEAST_TIMES:
        return ""
    return f"it ran {times} times: a phase this short needs {_LEAST_TIMES} to be told from its neighbours"


def _locked(begins: Ints, grids: tuple[Ints, ...]) -> str:
    """Returns that a phase is in lock-step with all of a sensor's updates, or an empty text.

    It is if it always begins at the same few places between two updates. Then every step gives the same few
    equations, and no number of steps tells the phases apart.
    """
    if len(begins) < _LEAST_BEGINS:
        return ""
    for edges in grids:
        place = np.clip(np.searchsorted(edges, begins, side="right"), 1, len(edges) - 1)
        share = (begins - edges[place - 1]) / (edges[place] - edges[place - 1])
        # At h places the h-th harmonic of the places is as sharp as the first is at one.
        turns = np.exp(2j * np.pi * np.outer(np.arange(1, _PLACES + 1), share))
        if np.abs(turns.mean(axis=1)).max() < _LOCKED:
            return ""
    step = f"{1000 * float(np.median(np.diff(begins))) / NANO:.4g} ms"
    updates = f"{1000 * float(np.median(np.diff(grids[0]))) / NANO:.4g} ms"
    return (
        f"its step of {step} keeps in step with the sensor's updates of {updates}, which cut every step in "
        "the same places: a random wait of some ms a step cures it"
    )
