"""What a sensor's response is, measured under a load that alternates at known moments.

The load is a run of two phases, `high` and `low`, and the response is found as from any run; but steps of
power that are large, and stretches that are now long, now short, tell delay from rise and gain from offset
far better than a training's phases do.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wattq.counter import NANO, Floats, Ints, Readings, locate
from wattq.evidence import Evidence, power_series
from wattq.regression import Run, find_response, identity_groups
from wattq.response import LOGARITHMIC, NAMES, Response
from wattq.sweep import Phases, cut

# A load whose power does not rise by this share of the high level cannot be told from noise.
_LEAST_STEP = 0.1
_LEAST_STRETCHES = 20


@dataclass(frozen=True)
class Calibration:
    """A measured response.

    Attributes:
        response: The response; None where it could not be measured.
        covariance: Of its vector's errors.
        counter_period_seconds: Usual time between updates of the counter.
        power_period_seconds: Usual time between updates of the power reading; None: it shows none.
        stretches: How many high stretches were seen.
        step_watts: By how much the load raised the power.
        reason: Why there is no response, or empty.
    """

    response: Response | None
    covariance: Floats
    counter_period_seconds: float | None = None
    power_period_seconds: float | None = None
    stretches: int = 0
    step_watts: float | None = None
    reason: str = ""

    @property
    def seen_ratio(self) -> float | None:
        """Share of the time that the power reading looks at; None where it shows none."""
        if self.response is None or not self.power_period_seconds:
            return None
        return min(self.response.power_window_seconds / self.power_period_seconds, 1.0)

    def as_event(self) -> dict[str, Any]:
        """Returns the calibration as the archive's event `calibration` carries it; SI units."""
        event: dict[str, Any] = {
            "counter_period_seconds": self.counter_period_seconds,
            "power_period_seconds": self.power_period_seconds,
            "stretches": self.stretches,
            "step_watts": self.step_watts,
            "seen_ratio": self.seen_ratio,
            "reason": self.reason or None,
        }
        if self.response is not None:
            deviation = np.sqrt(np.diag(self.covariance))
            values = np.array([getattr(self.response, name) for name in NAMES])
            deviation = np.where(LOGARITHMIC, values * deviation, deviation)
            for place, name in enumerate(NAMES):
                if name.startswith("power") and self.power_period_seconds is None:
                    continue
                event[name] = float(values[place])
                event[f"{name.rpartition('_')[0]}_sd_{name.rpartition('_')[2]}"] = float(deviation[place])
            if self.response.counter_window_seconds is not None:
                event["counter_window_seconds"] = self.response.counter_window_seconds
            event["covariance"] = self.covariance.tolist()
        return {key: value for key, value in event.items() if value is not None}


def calibrate(
    evidence: Evidence, begin_nano: Ints, end_nano: Ints, update_nano: int | None = None
) -> Calibration:
    """Measures a response.

    Args:
        evidence: What the device showed.
        begin_nano: Begin of each stretch of high load, in order, monotonic nanoseconds.
        end_nano: Its end.
        update_nano: Nominal update period of the counter, where it is known.
    """
    nothing = np.zeros((len(NAMES), len(NAMES)))
    count = len(begin_nano)
    if count < _LEAST_STRETCHES:
        return Calibration(
            None,
            nothing,
            reason=f"the load had {count} high stretches; at least {_LEAST_STRETCHES} are needed",
        )
    readings = Readings(evidence.energy_read_nano, evidence.energy_old_nano, evidence.energy_joules)
    counter, power = locate(readings, update_nano), power_series(evidence)
    if len(counter.edge) < 2 * _LEAST_STRETCHES:
        return Calibration(None, nothing, stretches=count, reason="the counter hardly moved")
    low_begin, low_end = end_nano[:-1], begin_nano[1:]
    phases = Phases(
        np.concatenate([begin_nano, low_begin]),
        np.concatenate([end_nano, low_end]),
        np.repeat(np.array([0, 1], dtype=np.int64), [count, count - 1]),
        np.zeros(2 * count - 1, dtype=np.int64),
        ("high", "low"),
    )
    pieces = cut(phases, [(int(begin_nano[0]), int(end_nano[-1]))])
    run = Run(pieces, identity_groups(pieces), counter, power, limit_watts=None)
    borders = np.array([0.0, (pieces.stop[-1] - pieces.start[0]) / NANO])
    problem = run.problem(borders)
    fit = find_response(run, borders)
    rows = pieces.rows
    high, low = (problem.mean_watts(fit.means, rows.index(name)) for name in ("high", "low"))
    reason = ""
    if high - low < _LEAST_STEP * high:
        reason = f"power does not follow the load: {low:.1f} W without it, {high:.1f} W with it"
    return Calibration(
        response=None if reason else fit.response,
        covariance=fit.covariance,
        counter_period_seconds=counter.period / NANO,
        power_period_seconds=power.period_seconds or None,
        stretches=count,
        step_watts=float(high - low),
        reason=reason,
    )
