"""NVML through the real pynvml and ctypes, against a simulated driver library (tests/nvml)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nvml.driver import CompilerMissingError, build

PROGRAM = """
import json, sys, time
from wattd.counter import Tracker
from wattd.sensors import ReadingError, SensorUnavailableError
from wattd.sensors.nvml import Nvml

sensor = Nvml()
try:
    channels = sensor.open()
except SensorUnavailableError as error:
    print(json.dumps({"unavailable": error.reason, "remedy": error.remedy, "denied": error.denied}))
    sys.exit()
trackers = [Tracker(number, channel.device) for number, channel in enumerate(channels)]
energies, powers, errors = [], [], []
begin = time.monotonic_ns()
while (now := time.monotonic_ns()) < begin + 450_000_000:
    for tracker, channel in zip(trackers, channels):
        try:
            tracker.take(channel.read(now), now, time.monotonic_ns(), energies, powers)
        except ReadingError as error:
            errors.append(str(error))
    time.sleep(0.002)
print(json.dumps({
    "devices": [channel.device.as_json(number) for number, channel in enumerate(channels)],
    "energies": energies[0::4], "values": energies[1::4], "watts": powers[1::4],
    "energy_joules": [(tracker.energy_microjoules or 0) / 1e6 for tracker in trackers],
    "state": channels[0].state(), "errors": errors, "resets": [tracker.resets for tracker in trackers],
}))
sensor.close()
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated library."""
    try:
        return build(tmp_path_factory.mktemp("nvml")).parent
    except CompilerMissingError as error:
        assert not os.environ.get("CI"), "CI has a C compiler"
        pytest.skip(f"left out: {error}")


def measure(driver: Path, **scenario: Any) -> dict[str, Any]:
    """What the sensor sees in 450 ms of a scenario."""
    environment = (
        os.environ | {"LD_LIBRARY_PATH": str(driver)} | {key: str(value) for key, value in scenario.items()}
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_gpus_are_named_by_uuid_and_read_in_joules(driver: Path) -> None:
    """Millijoules become microjoules, milliwatts watts; the counter does not wrap; the device is the UUID."""
    seen = measure(driver)
    first = seen["devices"][0]
    assert first["device"] == "GPU-00000000-0000-4000-8000-000000000000"
    assert first["counter_range_microjoules"] == 0
    assert first["source"] == "measured"
    assert set(seen["watts"]) == {300.0}
    assert seen["energy_joules"][0] == pytest.approx(1_000_000 + 300 * 0.4, abs=31)
    assert len(seen["energies"]) in range(8, 13), "two GPUs, an edge every 100 ms, no more"


def test_blips_are_no_zero_and_no_reset(driver: Path) -> None:
    """0 mW and a field that is NotSupported for a moment are absent: no edge, no reset, no energy lost."""
    seen = measure(driver, NVML_BLIP_EVERY=3)
    assert set(seen["watts"]) == {300.0}
    assert seen["resets"] == [0, 0]
    assert seen["values"] == sorted(seen["values"])


def test_gpu_without_instant_power_shows_its_usage(driver: Path) -> None:
    """Where field 186 is missing, power is what GetPowerUsage says."""
    assert set(measure(driver, NVML_NO_INSTANT=1, NVML_WATTS=250)["watts"]) == {250.0}


def test_gpu_without_a_counter_gets_energy_from_power(driver: Path) -> None:
    """Before Volta there is no counter: energy is the integral of power and says so by having no range."""
    seen = measure(driver, NVML_NO_ENERGY=1)
    assert "counter_range_microjoules" not in seen["devices"][0]
    assert seen["energy_joules"][0] == pytest.approx(300 * 0.45, rel=0.05)


def test_lost_gpu_is_an_error_and_never_a_number(driver: Path) -> None:
    """A GPU that falls off the bus fails each reading from then on; its energy stands still."""
    seen = measure(driver, NVML_LOST_AFTER_MS=150)
    assert seen["errors"]
    assert seen["energy_joules"][0] == pytest.approx(1_000_030, abs=31)


def test_driver_that_is_not_there_is_named_with_its_remedy(driver: Path) -> None:
    """Each reason for no NVML is one line with what to do."""
    assert "modprobe" in measure(driver, NVML_INIT=9)["remedy"]
    assert measure(driver, NVML_INIT=4)["denied"] is True


def test_state_leaves_out_what_the_gpu_does_not_show(driver: Path) -> None:
    """Device state is in SI units, and what is not supported is absent."""
    assert measure(driver)["state"] == {
        "utilization_ratio": 0.87,
        "memory_used_bytes": 20 << 30,
        "memory_total_bytes": 80 << 30,
        "temperature_celsius": 61,
        "sm_clock_hertz": 1_755_000_000,
        "power_limit_watts": 400.0,
    }
