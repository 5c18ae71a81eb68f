"""Whether a regression may be believed: what would make its numbers wrong without making them wide."""

import numpy as np

from wattq.counter import Floats
from wattq.fit import Fit
from wattq.overlap import Shares

# What boards and sensors are like, generously: published gains are 0.91 to 1.05, delays some milliseconds.
_DELAYS_SECONDS = (-0.015, 0.06)
_MOST_RISE_SECONDS = 0.03
_GAINS = (0.8, 1.25)
# Noise beyond this means that the model does not describe what happened.
_MOST_JITTER = 0.55
_MOST_NOISE_SHARE, _MOST_NOISE_WATTS = 0.06, 3.0
# Standard deviations that no reading among millions is off by chance.
_MOST_SURPRISE = 9.0
# What may be unseen of a run: so many updates, at its ends, and this share.
_UNSEEN_UPDATES, _UNSEEN_SHARE = 3.0, 0.005
_MOST_ROWS = 64
# Half the sum of squares that six parameters may be away from what was measured of them: once in 10^8.
_MOST_AWAY = 50.0


def unseen(overlap: Shares) -> str:
    """Returns why a run was not seen well enough for a regression, or an empty text."""
    if len(overlap.seconds) > _MOST_ROWS:
        return f"{len(overlap.seconds)} rows are too many for a regression ({_MOST_ROWS} at most)"
    blind, seconds = float(overlap.blind_seconds.sum()), float(overlap.seconds.sum())
    if blind > max(_UNSEEN_UPDATES * overlap.period_seconds, _UNSEEN_SHARE * seconds):
        return f"readings cover {1 - blind / seconds:.1%} of the run: overlap alone bounds what was not seen"
    return ""


def implausible(fit: Fit, level: float, *, has_power: bool) -> str:
    """Returns why a fit describes no sensor, or an empty text.

    Args:
        fit: The response, and the noise that goes with it.
        level: Mean power of the device, watts.
        has_power: There are power readings.
    """
    response, noise = fit.response, fit.noise
    delays = [response.counter_delay_seconds, *([response.power_delay_seconds] if has_power else [])]
    sound = all(_DELAYS_SECONDS[0] <= delay <= _DELAYS_SECONDS[1] for delay in delays)
    sound &= response.rise_seconds <= _MOST_RISE_SECONDS
    sound &= not has_power or _GAINS[0] <= response.power_gain <= _GAINS[1]
    if not sound:
        return "no plausible response of the sensor explains the readings"
    most = _MOST_NOISE_SHARE * level + _MOST_NOISE_WATTS
    if noise.jitter > _MOST_JITTER or (has_power and noise.power_watts > most):
        return "the readings vary in ways that the phases do not explain"
    return ""


def surprising(worst: float) -> str:
    """Returns that a reading contradicts the others, or an empty text.

    Args:
        worst: The most that a reading is off, given those before it, in standard deviations.
    """
    return (
        ""
        if worst <= _MOST_SURPRISE
        else f"a reading contradicts the others by {worst:.0f} standard deviations"
    )


def contradicts(fit: Fit, measured: Fit) -> bool:
    """Returns whether the readings of a run do not fit what a calibration measured."""
    away = fit.response.vector() - measured.response.vector()
    return float(away @ np.linalg.solve(measured.covariance, away)) > _MOST_AWAY


def open_ended(left: float, covariance: Floats, update_joules: float) -> str:
    """Returns why the rows cannot be closed to the counter, or an empty text.

    Args:
        left: What the counter has over the sum of the rows, joules.
        covariance: Of the errors of the rows, joules squared.
        update_joules: Energy of an update; the counter at each end of the run is known no better.
    """
    spread = float(np.sqrt(max(covariance.sum(), 0.0)))
    if abs(left) <= 4 * spread + 2 * update_joules:
        return ""
    return f"the counter and what the phases explain differ by {abs(left):.3g} J"
