"""Cells of trials in virtual time: repeatable, and judged by what went in."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.accuracy import __main__ as command
from bench.accuracy.virtual import Cell, Trial, cells, summarise, try_once
from bench.accuracy.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("long", "short")
SECONDS = np.array([0.06, 0.01])
TRUTH = np.array([100.0, 10.0])
CELL = Cell("h100_100 fitted", "h100_100", "fitted", 40, judged=True)


def trial(off: Any, half: float = 0.02, limit: Any = 0.01, **changed: Any) -> Trial:
    """Returns a trial whose answers are off by these shares of the truth."""
    made = Trial(
        names=NAMES,
        seconds=SECONDS,
        truth=TRUTH,
        answer=TRUTH * (1 + np.asarray(off)),
        half=half * TRUTH,
        limit=TRUTH * (1 + np.asarray(limit)),
        refused=np.zeros(2, dtype=bool),
        total=1e-6,
        attribution_seconds=0.5,
    )
    return replace(made, **changed)


def test_a_trial_follows_from_its_seed() -> None:
    """The same seed gives the same trial to the last bit, another one another."""
    cell = Cell("tiny", "h100_100", "fitted", 1, workload=Workload(steps=20))
    one, again, other = try_once(cell, 7), try_once(cell, 7), try_once(cell, 8)
    for name in ("truth", "answer", "half", "limit"):
        assert getattr(one, name).tolist() == getattr(again, name).tolist()
        assert getattr(one, name).tolist() != getattr(other, name).tolist()
    assert one is not None
    assert again is not None
    assert one.total == again.total
    assert abs(one.total) < 1e-9


def test_limit_is_better_than_what_had_to_be_fitted() -> None:
    """With the truth about the sensor the same system is nearer to the truth, over some trials."""
    cell = Cell("tiny", "h100_100", "fitted", 6, workload=Workload(steps=40))
    found = summarise(cell, [try_once(cell, seed) for seed in range(6)])
    assert found["times_limit"] > 1
    assert found["trials"] == 6
    assert set(found["phases"]) == {
        "data_load",
        "teacher_forward",
        "student_forward",
        "backward",
        "optimizer_step",
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)), min_size=2, max_size=30))
def test_errors_are_summed_up_by_phase(offs: list[tuple[float, float]]) -> None:
    """Each phase has the root of the mean square of its own errors and the share of intervals that hold."""
    found = summarise(CELL, [trial(off) for off in offs])
    for place, name in enumerate(NAMES):
        mine = np.array([off[place] for off in offs])
        phase = found["phases"][name]
        assert phase["rms_ratio"] == pytest.approx(np.sqrt(np.mean(mine**2)), abs=1e-12)
        assert phase["times_limit"] == pytest.approx(100 * phase["rms_ratio"])
        inside = np.mean(np.abs(mine) < 0.02)
        assert phase["covered_ratio"] == pytest.approx(
            inside, abs=np.mean(np.abs(np.abs(mine) - 0.02) < 1e-9) + 1e-9
        )
        assert phase["duration_seconds"] == pytest.approx(SECONDS[place])
    whole = np.mean([phase["covered_ratio"] for phase in found["phases"].values()])
    assert found["covered_ratio"] == pytest.approx(whole)


def planted(bias: float) -> dict[str, Any]:
    """Returns what is said of a cell whose long phase is biased, and as noisy as its intervals say."""
    rng = np.random.default_rng(3)
    noise = 0.002 * rng.standard_normal((40, 2)) * [1, 10]
    limits = 0.002 * rng.standard_normal((40, 2)) * [1, 10]
    half = np.array([0.004, 0.04]) * TRUTH
    bent = noise + np.array([bias, 0.0])
    trials = [trial(off, limit=best) for off, best in zip(bent, limits, strict=True)]
    return summarise(CELL, [replace(one, half=half) for one in trials])


def test_planted_bias_is_found() -> None:
    """A phase that is 2 % off makes its cell fail by limit, bound and coverage; else it passes."""
    good = planted(0.0)
    assert good["ok"], good["verdicts"]
    assert good["verdicts"].keys() == {
        "times_limit",
        "coverage",
        "totals",
        "long_phases",
        "short_phases",
        "speed",
    }
    bad = planted(0.02)
    assert not bad["ok"]
    failed = {name for name, kept in bad["verdicts"].items() if not kept}
    assert failed == {"times_limit", "coverage", "long_phases"}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"total": 0.002}, "totals"),
        ({"total": -0.002}, "totals"),
        ({"attribution_seconds": 3.1}, "speed"),
        ({"half": TRUTH}, "coverage"),
        ({"half": TRUTH * 0}, "coverage"),
    ],
)
def test_each_promise_can_fail(changed: dict[str, Any], verdict: str) -> None:
    """Totals, time, and intervals that are too wide as well as too narrow are each a promise."""
    trials = [trial([0.004, 0.03], **changed) for _ in range(20)]
    assert not summarise(CELL, trials)["verdicts"][verdict]


def test_promises_are_made_where_they_hold() -> None:
    """Absolute bounds are for fine sensors, the time for 300 fitted steps, 1.3 times for calibrated."""
    plain = replace(CELL, judged=False)
    assert summarise(plain, [trial(0.005)])["verdicts"].keys() == {
        "times_limit",
        "coverage",
        "totals",
        "speed",
    }
    calibrated = replace(plain, response="calibrated")
    trials = [trial(0.02)]
    assert summarise(calibrated, trials)["verdicts"].keys() == {"times_limit", "coverage", "totals"}
    assert summarise(plain, trials)["verdicts"]["times_limit"]
    assert not summarise(calibrated, trials)["verdicts"]["times_limit"]


def test_refusals_are_counted() -> None:
    """A phase that got no number is told; its error counts as it would have been."""
    trials = [trial(0.01), trial(0.01, refused=np.array([False, True]))]
    found = summarise(CELL, trials)
    assert [found["phases"][name]["refused_ratio"] for name in NAMES] == [0.0, 0.5]


def test_phases_of_any_length_are_grouped_by_it() -> None:
    """Steps that are drawn anew for each trial have no names in common: their phases are told by length."""
    found = summarise(replace(CELL, shuffled=True), [trial(0.01)])
    assert set(found["phases"]) == {"8-30 ms", "30-1000 ms"}


def test_cells_are_those_that_are_promised() -> None:
    """Every device and number of steps has cells, calibrated and fitted, each with a name of its own."""
    every = cells(quick=False)
    assert len({cell.name for cell in every}) == len(every)
    trials = {
        (cell.sensor, cell.response): cell.trials
        for cell in every
        if cell.workload == Workload() and cell.judged
    }
    assert set(trials.values()) == {200, 60}
    assert {sensor for sensor, _ in trials} == {"a100", "h100_20", "h100_100", "v100", "rapl"}
    assert {cell.workload.steps for cell in every} == {300, 1_000, 10_000}
    quick = cells(quick=True)
    assert 0 < len(quick) < 10
    assert {cell.name for cell in quick} <= {cell.name for cell in every}


def test_cells_are_measured_anew_when_what_they_depend_on_changes() -> None:
    """Every module that a trial runs through is part of what finished cells are kept for."""
    words = "import sys, bench.accuracy.virtual; print(*(m for m in sys.modules if m.startswith('wattq.')))"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    used = {name.removeprefix("wattq.") for name in done.stdout.split()}
    assert used == set(command._ESTIMATOR.split())
