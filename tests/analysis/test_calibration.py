"""Calibrations: a sensor's response under an alternating load, and the one that an archive holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wattq.calibration import Calibration, calibrate
from wattq.calibrations import Measured, measured_responses
from wattq.evidence import Evidence
from wattq.fit import Fit
from wattq.problem import Noise
from wattq.response import NAMES
from wattq.runner import Archive

from bench.accuracy.simulator import SENSORS, Drawn, draw, observe
from bench.accuracy.workload import square_wave
from tests.analysis.archives import START, ArchiveWriter
from tests.analysis.simulated import deviations

DAY = 86_400 * 10**9
NOON = 1_764_072_000 * 10**9


def measured(
    sensor: str, seed: int, *, high: float = 620.0, seconds: float = 60.0, power: bool = True
) -> tuple[Calibration, Drawn]:
    """Calibrates a simulated unit."""
    rng = np.random.default_rng(seed)
    kind = replace(SENSORS[sensor], idle_watts=90.0, tick_seconds=None)
    unit = draw(kind, rng)
    trace, begin, end = square_wave(seconds, high, 90.0, rng)
    seen = observe(kind, unit, trace, rng)
    if not power:
        seen = Evidence.of_counter(seen.energy_read_nano, seen.energy_old_nano, seen.energy_joules)
    return calibrate(seen, begin, end), unit


@pytest.mark.parametrize(("sensor", "seed"), [("h100_100", 1), ("a100", 2), ("h100_20", 3)])
def test_calibration_recovers_the_response(sensor: str, seed: int) -> None:
    """Delays, rise, window, gain and offset are within four of the standard deviations that it tells."""
    found, unit = measured(sensor, seed)
    assert found.response is not None
    fit = Fit(found.response, found.covariance, Noise(), np.zeros(0), np.inf)
    for name, off in deviations(fit, unit.response()).items():
        assert abs(off) < 4, name
    # To be sure of nothing would pass as well.
    assert (np.sqrt(np.diag(found.covariance))[:4] < [0.002, 0.3, 0.002, 0.1]).all()
    assert found.reason == ""
    assert found.counter_period_seconds == pytest.approx(unit.counter_seconds, rel=0.01)
    assert found.power_period_seconds == pytest.approx(unit.power_seconds, rel=0.01)
    assert found.step_watts == pytest.approx(530, rel=0.02)
    assert found.seen_ratio == pytest.approx(unit.window_seconds / unit.power_seconds, rel=0.2)


def test_event_tells_what_was_measured() -> None:
    """The archive's event has each parameter with its standard deviation in the parameter's own unit."""
    found, _ = measured("h100_100", 4)
    assert found.response is not None
    event = json.loads(json.dumps(found.as_event()))
    deviation = np.sqrt(np.diag(found.covariance))
    for place, name in enumerate(NAMES):
        value = getattr(found.response, name)
        assert event[name] == value
        head, _, unit = name.rpartition("_")
        relative = name in {"rise_seconds", "power_window_seconds"}
        assert event[f"{head}_sd_{unit}"] == pytest.approx(deviation[place] * (value if relative else 1))
    assert np.array(event["covariance"]) == pytest.approx(found.covariance)
    assert "reason" not in event


def test_counter_alone_is_calibrated_without_power() -> None:
    """A sensor that shows no power has no parameters of a power reading: absent, not usual ones."""
    found, _ = measured("h100_20", 5, power=False)
    event = found.as_event()
    assert {"counter_delay_seconds", "rise_seconds"} <= event.keys()
    assert not [name for name in event if name.startswith("power")]
    assert "seen_ratio" not in event


def test_load_that_does_not_show_is_said() -> None:
    """Where power does not follow the load there is no response, but the reason with both levels."""
    found, _ = measured("h100_100", 6, high=92.0)
    assert found.response is None
    assert found.reason.startswith("power does not follow the load: ")
    assert found.reason.endswith(" W with it")
    event = found.as_event()
    assert event["reason"] == found.reason
    assert not event.keys() & {*NAMES, "covariance"}


def test_short_load_and_still_counter_are_said() -> None:
    """Too few stretches, or a counter that hardly moved, are no ground for a response."""
    found, _ = measured("h100_100", 7, seconds=1.0)
    assert found.response is None
    assert "at least 20 are needed" in found.reason
    nothing = np.zeros(0, dtype=np.int64)
    begin = np.arange(30) * 10**8
    still = calibrate(Evidence.of_counter(nothing, nothing, np.zeros(0)), begin, begin + 10**7)
    assert (still.response, still.reason) == (None, "the counter hardly moved")


def event(unix_nano: int | None = NOON, **changed: Any) -> dict[str, Any]:
    """Returns the archive's event of a calibration."""
    values = dict(zip(NAMES, (0.004, 0.002, 0.003, 0.025, 0.98, 1.5), strict=True))
    line = {"type": "calibration", "monotonic_nano": START, "device": "GPU-a", **values}
    line["covariance"] = np.diag([1e-8, 1e-4, 1e-8, 1e-4, 1e-6, 1.0]).tolist()
    line["time_unix_nano"] = unix_nano
    return {name: value for name, value in (line | changed).items() if value is not None}


def kept(root: Path, *events: dict[str, Any]) -> dict[str, Measured]:
    """Returns the calibrations of GPUs that are found in an archive with these events."""
    writer = ArchiveWriter(root)
    writer.events += events
    with Archive(writer.write()) as archive:
        found = measured_responses(archive.connection, archive.segments)
    return {device: one for (node, device), one in found.items() if not node}


def test_newest_calibration_of_each_device_counts(tmp_path: Path) -> None:
    """Whatever the order in the archive, a device's latest measurement is the one; it tells its day."""
    found = kept(
        tmp_path,
        event(NOON + DAY, rise_seconds=0.003),
        event(NOON, rise_seconds=0.001),
        event(None, rise_seconds=0.009),
        event(NOON - DAY, device="GPU-b", rise_seconds=0.005),
    )
    assert found.keys() == {"GPU-a", "GPU-b"}
    assert found["GPU-a"].fit.response.rise_seconds == 0.003
    assert found["GPU-a"].when == "2025-11-26"
    assert found["GPU-b"].when == "2025-11-24"


@pytest.mark.parametrize(
    "broken",
    [
        {"covariance": [[1.0]]},
        {"covariance": [[1.0] * 6] * 5 + [[1.0]]},
        {"covariance": [[float("nan")] * 6] * 6},
        {"covariance": np.zeros((6, 6)).tolist()},
        {"covariance": None, "reason": "power does not follow the load"},
        {"rise_seconds": None},
        {"rise_seconds": -0.001},
        {"power_window_seconds": 0.0},
        {"device": None},
    ],
)
def test_broken_calibration_is_left_alone(tmp_path: Path, broken: dict[str, Any]) -> None:
    """What cannot be a response, newer as it may be, does not take the place of one that can."""
    found = kept(tmp_path, event(), event(NOON + DAY, **broken))
    assert found.keys() == {"GPU-a"}
    assert found["GPU-a"].when == "2025-11-25"
    assert found["GPU-a"].fit.response.rise_seconds == 0.002


def test_calibration_of_a_counter_alone_is_complete(tmp_path: Path) -> None:
    """A device without a power reading needs no parameters of one."""
    line = {name: value for name, value in event().items() if not name.startswith("power")}
    assert kept(tmp_path, line)["GPU-a"].fit.response.counter_delay_seconds == 0.004


def test_part_time_counter_comes_back_from_the_archive(tmp_path: Path) -> None:
    """That a counter looks at a part of each period only is kept."""
    found = kept(tmp_path, event(counter_window_seconds=0.025), event(device="GPU-b"))
    assert found["GPU-a"].fit.response.counter_window_seconds == 0.025
    assert found["GPU-b"].fit.response.counter_window_seconds is None
