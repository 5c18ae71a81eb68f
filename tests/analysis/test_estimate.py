"""`wattq phases` on trainings whose truth is known: which estimator answers, why, and where none can."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wattq.__main__ import main
from wattq.choice import choose, worst
from wattq.response import NAMES

from tests.analysis.archives import MILLI, NANO, START, WALL, ArchiveWriter, SimulatedDevice, staircase
from tests.analysis.conftest import Study

# Phase, milliseconds, watts on the GPU.
SHORT = (("data_load", 8, 130.0), ("forward", 60, 620.0), ("backward", 75, 450.0), ("optimizer", 12, 320.0))
LONG = (("forward", 4_000, 620.0), ("backward", 5_000, 450.0))
# A step of exactly twice the counter's period.
IN_STEP = (("forward", 70, 620.0), ("backward", 90, 450.0), ("optimizer", 40, 320.0))
GPU = SimulatedDevice("GPU-a", "gpu", [], 100 * MILLI, 11 * MILLI, jitter_nano=MILLI)
POWER = replace(GPU, power_update_nano=100 * MILLI)
Ask = Callable[..., tuple[list[dict[str, Any]], str]]


def trained(root: Path, step: Any, steps: int, device: SimulatedDevice, *, jitter: float = 0.05) -> Study:
    """Simulates a training on one GPU; each phase's duration and power jitter."""
    rng = np.random.default_rng(steps)
    begin = now = START + 2 * NANO
    spans = []
    for _ in range(steps):
        for phase, length, watts in step:
            end = now + round(length * MILLI * (1 + jitter * rng.uniform(-1, 1)))
            spans.append((phase, now, end, watts * (1 + jitter * rng.uniform(-1, 1))))
            now = end
    powers = staircase([(a, b, watts) for _, a, b, watts in spans], 90.0)
    writer = ArchiveWriter(root, devices=[replace(device, steps=powers)])
    writer.run("run-1", begin, now, run="study", gpu_uuids=["GPU-a"], gpu_source="torch")
    for phase, a, b, _ in spans:
        writer.phase("run-1", phase, a, b)
    writer.measure(START, now + NANO, MILLI)
    return Study(writer, begin, now, spans)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Asks `wattq phases` of an archive; returns the rows, and what the table says of the choice."""

    def asked(study: Study, *options: str, table: bool = True) -> tuple[list[dict[str, Any]], str]:
        root = str(study.writer.root)
        assert main(["phases", root, "--json", *options]) == 0
        rows = json.loads(capsys.readouterr().out)
        device = study.writer.devices[0]
        rise = sum(row["energy_joules"] or 0.0 for row in rows)
        # The counter at the run's ends lies on a straight line between its updates.
        assert rise == pytest.approx(float(device.energy(study.end) - device.energy(study.begin)), abs=60)
        if not table:
            return rows, ""
        assert main(["phases", root, *options]) == 0
        text = capsys.readouterr().out
        assert "= counter" in text
        assert "DOES NOT" not in text
        return rows, " ".join(text.split("estimator ")[1].split())

    return asked


def phases_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["phase"]: row for row in rows if not row["phase"].startswith("(")}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Phases far shorter than the updates, with a power reading."""
    study = trained(tmp_path_factory.mktemp("short"), SHORT, 150, POWER)
    study.writer.write()
    return study


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Phases far longer than the updates."""
    device = replace(POWER, update_nano=20 * MILLI)
    study = trained(tmp_path_factory.mktemp("long"), LONG, 3, device)
    study.writer.write()
    return study


def test_auto_takes_regression_for_short_phases(short: Study, ask: Ask) -> None:
    """Where overlap cannot separate phases the regression answers, says so, and holds the truth."""
    rows, said = ask(short)
    assert said.startswith("regression: phases are too short for overlap against updates of 100 ms; response")
    for name, row in phases_of(rows).items():
        assert (row["estimator"], row["valid"]) == ("regression", True)
        assert row["reason"] == "response fitted from the run"
        half = row["energy_high_joules"] - row["energy_joules"]
        assert abs(row["energy_joules"] - short.truth(name)) < 1.5 * half, name
        assert half < 0.25 * row["energy_joules"]
    assert phases_of(rows)["forward"]["energy_joules"] == pytest.approx(short.truth("forward"), rel=0.005)


def test_auto_takes_overlap_for_long_phases(long: Study, ask: Ask) -> None:
    """Where overlap knows every phase to one per cent it needs no second opinion."""
    rows, said = ask(long)
    assert said.startswith("overlap: every phase is known to 1%")
    for name, row in phases_of(rows).items():
        assert (row["estimator"], row["valid"], row["reason"]) == ("overlap", True, None)
        assert row["energy_low_joules"] <= long.truth(name) <= row["energy_high_joules"]


def test_estimator_that_is_asked_for_answers(short: Study, long: Study, ask: Ask) -> None:
    """`--estimator` is obeyed, also where the other one would be the better choice."""
    rows, said = ask(short, "--estimator", "overlap")
    assert said == "overlap, as asked"
    assert {row["estimator"] for row in rows} == {"overlap"}
    assert not phases_of(rows)["data_load"]["valid"]
    rows, said = ask(long, "--estimator", "regression")
    assert said == "regression, as asked; response fitted from the run"
    for name, row in phases_of(rows).items():
        assert (row["estimator"], row["valid"]) == ("regression", True)
        assert row["energy_joules"] == pytest.approx(long.truth(name), rel=0.01)


def test_counter_alone_is_less_sure_through_the_whole_path(short: Study, ask: Ask, tmp_path: Path) -> None:
    """Without the power reading the same run gets wider intervals, or none."""
    alone = trained(tmp_path, SHORT, 150, GPU)
    alone.writer.write()
    with_power, without = (phases_of(ask(study, table=False)[0]) for study in (short, alone))
    for name, row in without.items():
        if row["valid"]:
            half = row["energy_high_joules"] - row["energy_joules"]
            assert half > 1.5 * (with_power[name]["energy_high_joules"] - with_power[name]["energy_joules"])
            assert abs(row["energy_joules"] - alone.truth(name)) < 1.5 * half, name


@pytest.mark.parametrize("estimator", ["auto", "regression"])
def test_phases_in_step_with_the_counter_are_refused(tmp_path: Path, ask: Ask, estimator: str) -> None:
    """A step of exactly two updates cuts every step in the same places: no number, and the reason."""
    device = replace(POWER, jitter_nano=0)
    study = trained(tmp_path, IN_STEP, 100, device, jitter=0.0)
    study.writer.write()
    rows, _ = ask(study, "--estimator", estimator, table=False)
    for row in phases_of(rows).values():
        assert (row["valid"], row["energy_joules"]) == (False, None)
        assert "its step of 200 ms keeps in step with the sensor's updates of 100 ms" in row["reason"]


@pytest.mark.parametrize("steps", [3, 1])
@pytest.mark.parametrize("estimator", ["auto", "regression"])
def test_run_with_nothing_to_see_is_refused(tmp_path: Path, ask: Ask, steps: int, estimator: str) -> None:
    """Three steps, or a run shorter than two updates, get a reason and no number."""
    study = trained(tmp_path, SHORT, steps, POWER)
    study.writer.write()
    rows, said = ask(study, "--estimator", estimator)
    for row in phases_of(rows).values():
        assert (row["valid"], row["energy_joules"]) == (False, None)
        assert row["reason"]
    assert "too few for a regression" in said or "shorter" in said


def calibrated(device: str, days: int) -> dict[str, Any]:
    """Returns a calibration of the simulated sensors, so many days after the first."""
    values = dict(zip(NAMES, (0.0, 1e-4, 0.0, 0.025, 1.0, 0.0), strict=True))
    covariance = np.diag([1e-8, 0.25, 1e-8, 1e-4, 1e-6, 1.0]).tolist()
    head = {"type": "calibration", "monotonic_nano": START, "time_unix_nano": WALL + days * 86_400 * NANO}
    return {**head, "device": device, **values, "covariance": covariance}


def test_calibration_in_the_archive_is_used_and_said(tmp_path: Path, ask: Ask) -> None:
    """The newest response that was measured of this device counts; the date of it is in the answer."""
    study = trained(tmp_path, SHORT, 60, POWER)
    study.writer.events += [calibrated("GPU-a", 2), calibrated("GPU-a", 0), calibrated("GPU-b", 9)]
    study.writer.events.append({**calibrated("GPU-a", 5), "covariance": [[1.0]]})
    study.writer.write(closed=False)
    events = next(tmp_path.rglob("kind=events/**/*.jsonl"))
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seq": 999_999, **calibrated("GPU-a", 7)})[:-40])
    rows, said = ask(study)
    assert said.endswith("response measured 2025-11-26")
    for name, row in phases_of(rows).items():
        assert row["reason"] == "response measured 2025-11-26"
        half = row["energy_high_joules"] - row["energy_joules"]
        assert abs(row["energy_joules"] - study.truth(name)) < 1.5 * half, name


def row(name: str, joules: float | None, half: float = 0.0) -> dict[str, Any]:
    return {
        "phase": name,
        "valid": joules is not None,
        "energy_joules": joules,
        "energy_statistical_joules": half,
        "energy_response_joules": 0.0,
    }


def test_the_better_account_gives_more_numbers_and_then_narrower_ones() -> None:
    """A number is worth more than a narrow interval; what lies outside of all phases does not count."""
    none = [row("a", None), row("b", None), row("(unresolved)", 5.0), row("(outside)", 1.0)]
    one = [row("a", 10.0, 1.0), row("b", None), row("(outside)", 1.0)]
    wide = [row("a", 10.0, 4.0), row("b", 20.0, 5.0), row("(outside)", 1.0, 100.0)]
    narrow = [row("a", 10.0, 1.0), row("b", 20.0, 2.0), row("(outside)", 1.0, 200.0)]
    order = [none, one, wide, narrow]
    for place, better in enumerate(order):
        for worse in order[:place]:
            assert choose(worse, better)
            assert not choose(better, worse)
    # Where neither has a number the regression's reasons say more.
    assert choose(none, none)
    assert worst(one) == worst(none) == float("inf")
    assert worst(wide) == pytest.approx(0.4)
    assert worst(narrow) == pytest.approx(0.1)
