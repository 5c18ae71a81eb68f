"""`wattd probe`: found, denied or absent, each with what it takes to judge it."""

import json

import pytest

from wattd.__main__ import main
from wattd.config import load
from wattd.probe import probe
from wattd.sensors import SENSORS


def test_every_sensor_is_reported_with_its_status() -> None:
    """Each sensor that a machine may have is there, found or with the reason why not."""
    found = {sensor["sensor"]: sensor for sensor in probe(load(None, {}))}
    assert set(found) == set(SENSORS) - {"simulated"}
    for sensor in found.values():
        assert sensor["status"] in {"found", "denied", "absent"}
        assert bool(sensor["reason"]) == (sensor["status"] != "found")


def test_update_period_and_call_latency_are_observed(capsys: pytest.CaptureFixture[str]) -> None:
    """The simulated GPU's 100 ms and its power are found by looking, and --json says them."""
    assert main(["probe", "--sensors", "simulated", "--json"]) == 0
    devices = {d["device"]: d for s in json.loads(capsys.readouterr().out) for d in s["devices"]}
    gpu = devices["GPU-51a71a7e-0000-4000-8000-000000000000"]
    assert gpu["update_seconds"] == pytest.approx(0.1, abs=0.01)
    assert gpu["power_watts"] == pytest.approx(95, abs=5)
    assert 0 < gpu["call_seconds_median"] <= gpu["call_seconds_max"]
    assert gpu["source"] == "simulated"


def test_wrong_usage_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere: what is wrong, and where the examples are."""
    for words in (["serve", "--bogus"], ["probe", "--format", "xml"], [], ["serve", "--hz", "fast"]):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "has examples" in message
