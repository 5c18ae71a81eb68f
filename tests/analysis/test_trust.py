"""What makes a regression refuse itself: numbers that would be wrong without being wide."""

from dataclasses import replace

import numpy as np
import pytest
from wattq.attribution import NotApplicableError
from wattq.calibrations import Measured, measured_of
from wattq.counter import NANO
from wattq.fit import Fit
from wattq.problem import Noise
from wattq.response import Response
from wattq.trust import contradicts, implausible, open_ended, surprising

from tests.analysis.simulated import Simulated, known

USUAL = Response(0.003, 0.002, 0.003, 0.025)


def fitted(noise: Noise | None = None, **changes: float) -> Fit:
    """A fit of a usual sensor, but for what is said."""
    covariance = np.diag([1e-8, 1e-2, 1e-8, 1e-3, 1e-6, 0.1])
    return Fit(replace(USUAL, **changes), covariance, noise or Noise(), np.zeros(0), 0.0)


def test_usual_sensor_is_plausible() -> None:
    """A fit like those of published devices is believed."""
    assert implausible(fitted(), 400.0, has_power=True) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"counter_delay_seconds": 0.1},
        {"power_delay_seconds": -0.05},
        {"rise_seconds": 0.053},
        {"power_gain": 1.4},
    ],
)
def test_response_that_no_board_has_is_refused(change: dict[str, float]) -> None:
    """A fit that needs an impossible sensor describes something else."""
    assert "no plausible response" in implausible(fitted(None, **change), 400.0, has_power=True)


@pytest.mark.parametrize("noise", [Noise(jitter=0.6), Noise(power_watts=87.0)])
def test_noise_that_the_phases_do_not_explain_is_refused(noise: Noise) -> None:
    """Readings that scatter far beyond sensors and steps are not a model's small error."""
    assert "do not explain" in implausible(fitted(noise), 400.0, has_power=True)


def test_one_reading_against_all_others_is_refused() -> None:
    """A reading that millions of chances would not bring is not averaged in."""
    assert surprising(4.5) == ""
    assert "by 40 standard deviations" in surprising(40.0)


def test_rows_that_do_not_close_are_refused() -> None:
    """What the phases explain may differ from the counter by its errors and two updates, not by more."""
    covariance = np.diag([4.0, 4.0, 8.0])
    assert open_ended(20.0, covariance, 5.0) == ""
    assert "differ by 300 J" in open_ended(-300.0, covariance, 5.0)


def test_calibration_that_the_run_contradicts_is_noticed() -> None:
    """A measured response far outside its own errors is not that of this run."""
    assert not contradicts(fitted(counter_delay_seconds=0.0032), fitted())
    assert contradicts(fitted(counter_delay_seconds=0.0045), fitted())


def test_name_without_a_uuid_is_another_device_on_each_node() -> None:
    """`package-0` of one node says nothing of that of another; a GPU is itself wherever it is."""
    one = Measured(fitted(), "2026-01-01")
    responses = {("node-2", "package-0"): one, ("", "GPU-1"): one}
    assert measured_of(responses, "node-1", "package-0") is None
    assert measured_of(responses, "node-2", "package-0") is one
    assert measured_of(responses, "node-1", "GPU-1") is one


def test_run_that_was_not_seen_is_left_to_overlap() -> None:
    """Two of eight seconds without readings are nobody's guess."""
    run = Simulated("h100_20", 16, steps=40)
    begin = int(run.trace.pieces.start[0])
    with pytest.raises(NotApplicableError, match="readings cover"):
        run.attributed(known(run.response), gaps=np.array([[begin + 2 * NANO, begin + 4 * NANO]]))
