"""The rows of `phase_energy`: energy and interval of each phase on each device, or a reason."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wattq.counter import Device
from wattq.overlap import LEAST_COVERAGE, WIDEST, Shares
from wattq.sweep import OUTSIDE, UNRESOLVED

CALIBRATION_RATIO = 0.05
MICRO = 1_000_000

# Name and SQL type of each column, in the order in which they are printed.
COLUMNS: dict[str, str] = {
    "run_id": "VARCHAR",
    "run": "VARCHAR",
    "restarts": "INTEGER",
    "job": "VARCHAR",
    "node": "VARCHAR",
    "device": "VARCHAR",
    "domain": "VARCHAR",
    "phase": "VARCHAR",
    "count": "BIGINT",
    "duration_seconds": "DOUBLE",
    "energy_joules": "DOUBLE",
    "energy_low_joules": "DOUBLE",
    "energy_high_joules": "DOUBLE",
    "energy_statistical_joules": "DOUBLE",
    "energy_response_joules": "DOUBLE",
    "calibration_ratio": "DOUBLE",
    "energy_inclusive_joules": "DOUBLE",
    "tokens": "BIGINT",
    "energy_per_token_joules": "DOUBLE",
    "estimator": "VARCHAR",
    "source": "VARCHAR",
    "coverage_ratio": "DOUBLE",
    "max_gap_seconds": "DOUBLE",
    "valid": "BOOLEAN",
    "reason": "VARCHAR",
}


@dataclass
class Tally:
    """What a row has gathered so far, over the boots of a node.

    Attributes:
        joules: Energy, joules.
        seconds: Time, seconds.
        stretches: Uninterrupted stretches.
        statistical: Half-width from sharing updates, joules.
        response: Half-width from an unknown delay, joules.
        blind_seconds: Time without a usable update, seconds.
        max_gap_seconds: Longest interval between updates that touches the row, seconds.
    """

    joules: float = 0.0
    seconds: float = 0.0
    stretches: int = 0
    statistical: float = 0.0
    response: float = 0.0
    blind_seconds: float = 0.0
    max_gap_seconds: float = 0.0


@dataclass
class Account:
    """A device's account of one run on one node, over its boots.

    Attributes:
        device: What the device is.
        head: The columns that all rows of the run share: run_id, run, restarts, job.
        tallies: By row name.
        counts: Instances by phase name.
        tokens: Tokens by phase name; a name without tokens is absent.
        inclusive: Energy with nested phases in it by phase name, joules.
        note: Why the rows may not be only the run's (its GPUs are not known), else empty.
        updates: Counter edges inside the run.
        known: The counter's energy over the run has a meaning.
        period_seconds: Usual time between updates, seconds.
        counter_joules: The counter over the run, taken at its ends alone: what the rows have to add up to.
        estimator: Which one made the account.
        reasons: Why a row has no number, by its name, where the estimator itself knows.
        response: Where the sensor's response is from; empty where none was needed.
    """

    device: Device
    head: dict[str, Any]
    tallies: dict[str, Tally] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    inclusive: dict[str, float] = field(default_factory=dict)
    note: str = ""
    updates: int = 0
    known: bool = False
    period_seconds: float = 0.0
    counter_joules: float = 0.0
    estimator: str = "overlap"
    reasons: dict[str, str] = field(default_factory=dict)
    response: str = ""

    def add(self, names: Iterable[str], shares: Shares) -> None:
        """Adds what one boot's counter gave to each row."""
        for place, name in enumerate(names):
            tally = self.tallies.setdefault(name, Tally())
            tally.joules += float(shares.joules[place])
            tally.seconds += float(shares.seconds[place])
            tally.stretches += int(shares.stretches[place])
            tally.statistical += float(shares.statistical[place])
            tally.response += float(shares.response[place])
            tally.blind_seconds += float(shares.blind_seconds[place])
            tally.max_gap_seconds = max(tally.max_gap_seconds, float(shares.max_gap_seconds[place]))
        self.updates += shares.updates
        self.known |= shares.known
        self.period_seconds = max(self.period_seconds, shares.period_seconds)


def largest_remainder(joules: list[float]) -> list[int]:
    """Rounds energies to whole microjoules so that they add up to the rounded sum.

    Args:
        joules: Energies, joules.

    Returns:
        Microjoules; what rounding down leaves goes to the largest remainders.
    """
    scaled = np.clip(np.array(joules, dtype=np.float64), 0.0, None) * MICRO
    down = np.floor(scaled)
    left = round(float(scaled.sum())) - int(down.sum())
    order = np.argsort(down - scaled, kind="stable")
    whole = [int(number) for number in down]
    for place in order[: max(left, 0)].tolist():
        whole[place] += 1
    return whole


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _too_wide(account: Account, name: str, tally: Tally) -> str:
    """Returns why an interval is too wide to be of use, or an empty text when it is not."""
    if np.hypot(tally.statistical, tally.response) <= WIDEST * tally.joules:
        return ""
    mean = tally.seconds / max(account.counts.get(name, 0), tally.stretches, 1)
    if account.estimator == "regression":
        return "the interval is wider than half the energy: more steps would narrow it"
    if mean >= 5 * account.period_seconds:
        return "the interval is wider than half the energy"
    verb = "are shorter than" if mean < account.period_seconds else "span few of"
    return (
        f"phases of {_milliseconds(mean)} {verb} the counter's {_milliseconds(account.period_seconds)} "
        "updates: overlap cannot separate them"
    )


def refusal(account: Account, name: str, tally: Tally) -> str:
    """Returns why there is no ground for a number, or an empty text."""
    if not account.known:
        return "the counter gave nothing new over the run: see the view gaps, or ask `wattd probe`"
    if account.updates < 2:
        return "the run is shorter than two updates of the counter"
    if tally.seconds == 0:
        return ""
    coverage = 1 - tally.blind_seconds / tally.seconds
    if coverage < LEAST_COVERAGE:
        return f"readings cover {coverage:.0%} of the time: see the view gaps"
    return account.reasons.get(name) or _too_wide(account, name, tally)


def _row(account: Account, name: str, tally: Tally, micro: int | None, reason: str) -> dict[str, Any]:
    """Makes one row; without `micro` it has no energy."""
    joules = None if micro is None else micro / MICRO
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= account.head
    row |= {
        "node": account.device.node,
        "device": account.device.device,
        "domain": account.device.domain,
        "phase": name,
        "duration_seconds": tally.seconds,
        "calibration_ratio": CALIBRATION_RATIO,
        "estimator": account.estimator,
        "source": account.device.source,
        "coverage_ratio": 1 - tally.blind_seconds / tally.seconds if tally.seconds else None,
        "max_gap_seconds": tally.max_gap_seconds if account.known and tally.seconds else None,
        "valid": joules is not None,
        "reason": reason or None,
    }
    if joules is not None:
        response = float(np.hypot(tally.response, (account.device.uncertainty_ratio or 0.0) * joules))
        half = float(np.hypot(tally.statistical, response))
        row |= {
            "energy_joules": joules,
            "energy_low_joules": max(joules - half, 0.0),
            "energy_high_joules": joules + half,
            "energy_statistical_joules": tally.statistical,
            "energy_response_joules": response,
        }
    return row


def _phase_row(account: Account, name: str, tally: Tally, micro: int, reason: str) -> dict[str, Any]:
    """Makes the row of a phase or of phases side by side."""
    if reason:
        row = _row(account, name, tally, None, reason)
    else:
        row = _row(account, name, tally, micro, "; ".join(filter(None, (account.note, account.response))))
    together = name not in account.counts
    row["count"] = tally.stretches if together else account.counts[name]
    if not reason:
        row["energy_inclusive_joules"] = row["energy_joules"] if together else account.inclusive.get(name)
    beside = not together and any("+" in other and name in other.split("+") for other in account.tallies)
    if not together and name in account.tokens:
        row["tokens"] = account.tokens[name]
        if not reason and account.tokens[name] > 0 and not beside:
            row["energy_per_token_joules"] = row["energy_joules"] / account.tokens[name]
    if beside and not reason:
        note = "part of its time is in the rows with a +, where other phases ran beside it"
        row["reason"] = "; ".join(part for part in (row["reason"], note) if part)
    return row


def rows(account: Account) -> list[dict[str, Any]]:
    """Closes a device's account: its rows, which add up to the counter over the run.

    Returns:
        One row a phase, by falling time, then `(unresolved)` if there is an invalid row, then `(outside)`.
    """
    outside = account.tallies.get(OUTSIDE, Tally())
    for name in account.counts:
        account.tallies.setdefault(name, Tally())
    names = sorted(
        (name for name in account.tallies if name != OUTSIDE), key=lambda n: (-account.tallies[n].seconds, n)
    )
    micro = largest_remainder([account.tallies[name].joules for name in names] + [outside.joules])
    reasons = {name: refusal(account, name, account.tallies[name]) for name in names}
    found = [
        _phase_row(account, name, account.tallies[name], amount, reasons[name])
        for name, amount in zip(names, micro, strict=False)
    ]
    if any(reasons.values()):
        lost = Tally()
        bad = [name for name in names if reasons[name]]
        for tally in (account.tallies[name] for name in bad):
            lost.joules += tally.joules
            lost.seconds += tally.seconds
            lost.statistical += tally.statistical
            lost.response += tally.response
            lost.blind_seconds += tally.blind_seconds
            lost.max_gap_seconds = max(lost.max_gap_seconds, tally.max_gap_seconds)
        amount = sum(amount for name, amount in zip(names, micro, strict=False) if reasons[name])
        found.append(
            _row(
                account,
                UNRESOLVED,
                lost,
                amount if account.known else None,
                "what the rows without a number used",
            )
        )
    why = "" if account.known else refusal(account, OUTSIDE, outside)
    found.append(_row(account, OUTSIDE, outside, micro[-1] if account.known else None, why))
    return found
