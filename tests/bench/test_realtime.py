"""The accuracy harness in real time: the truth it compares with, how it judges, and the whole path once."""

import contextlib
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.accuracy import realtime
from bench.accuracy.peers.play import play
from bench.accuracy.peers.tools import TOTAL
from bench.accuracy.runs import Outcome
from tests.nvml.driver import CompilerMissingError, Trace, compiler

PLAN: dict[str, Any] = {
    "idle_watts": 95.0,
    "before_seconds": 0.02,
    "after_seconds": 0.02,
    "phases": [("forward", 0.011, 600.0), ("backward", 0.007, 500.0)] * 4,
}


class Silent:
    """A tool that says nothing and takes its time between phases."""

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        sum(range(20_000))
        yield
        sum(range(20_000))

    def answers(self) -> dict[str, float]:
        return {}


def outcome(error: float | None, *, covered: bool = True) -> Outcome:
    if error is None:
        return Outcome({}, {}, {"backward": "too short a run"}, 0.1)
    return Outcome({"backward": error}, {"backward": covered}, {}, 0.1)


def cells(*outcomes: Outcome, bound: float | None = None) -> dict[str, Any]:
    return realtime._cell("wattd", "backward", list(outcomes), bound)


def test_truth_is_what_the_trace_says(tmp_path: Path) -> None:
    """A phase's joules are its power over its own time; the total is all that the trace draws in the run."""
    with Trace.create(tmp_path / "trace", capacity=64, watts=95) as trace:
        found = play(PLAN, trace, Silent())
    data = (tmp_path / "trace").read_bytes()[8192 : 8192 + 11 * 16]
    drawn = {95.0: 0.0, 600.0: 0.0, 500.0: 0.0}
    for (start, watts), (stop, _) in pairwise(struct.iter_unpack("<qd", data)):
        drawn[watts] += watts * (stop - start) / 1e9
    assert found["truth"][TOTAL] == pytest.approx(sum(drawn.values()))
    for name, watts, seconds in (("forward", 600, 0.044), ("backward", 500, 0.028)):
        assert found["truth"][name] == pytest.approx(watts * found["seconds"][name])
        assert found["seconds"][name] >= seconds
        # The tool's time after a phase draws its power and is not the phase's.
        assert found["truth"][name] < drawn[watts]


def test_error_of_repeats_is_their_rms() -> None:
    """Several runs are judged by the root of the mean square of their errors."""
    cell = cells(outcome(0.03), outcome(-0.04), bound=0.035)
    assert cell["rms_ratio"] == pytest.approx((0.0025 / 2) ** 0.5)
    assert cell["trials"] == 2
    assert cell["ok"] is False
    assert cells(outcome(0.03), bound=0.035)["ok"] is True


def test_refusal_is_counted_and_keeps_no_promise() -> None:
    """A run without a number is neither 0 nor left out in silence: it is counted and said, and fails."""
    cell = cells(outcome(0.001), outcome(None), bound=0.015)
    assert cell["errors"] == [0.001, None]
    assert (cell["refused"], cell["reason"], cell["ok"]) == (1, "too short a run", False)
    assert cells(outcome(None), bound=0.015)["ok"] is False
    assert cells(outcome(None))["ok"] is None


def test_what_is_promised_depends_on_the_phase() -> None:
    """1.5 times 1 % for phases of 30 ms and more, 1.5 times 10 % for 8-30 ms, 0.1 % for the total."""
    names = ("teacher_forward", "student_forward", "backward", "data_load", "optimizer_step", TOTAL)
    assert [realtime._bound(name) for name in names] == [0.015, 0.015, 0.015, 0.15, 0.15, 0.001]


def test_table_says_what_is_wrong() -> None:
    """The text marks a missed promise, an interval without the truth, and a refusal."""
    shared = {"counter_milliseconds": 100}
    text = realtime.table(
        [
            {**shared, **cells(outcome(0.02, covered=False), bound=0.015)},
            {**shared, **cells(outcome(None)), "phase": "data_load"},
        ]
    )
    assert "+2.00% (0 of 1 covered) NO" in text
    assert "no number" in text


def test_wrong_words_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A counter that no device has is refused with those that there are, as a usage error."""
    with pytest.raises(SystemExit) as stopped:
        realtime.main(["--counter", "50"])
    assert stopped.value.code == 2
    assert "100, 20" in capsys.readouterr().err


def test_whole_path_gets_the_total_right(tmp_path: Path) -> None:
    """Driver, daemon, client and analysis together: rows add up to what the die drew."""
    try:
        compiler()
    except CompilerMissingError as error:
        pytest.skip(f"left out: {error}")
    options = realtime.Options(steps=10, repeats=1, tools=("wattd",), keep=tmp_path)
    found = {cell["phase"]: cell for cell in realtime.measure(quick=True, counters=(20,), options=options)}
    assert found[TOTAL]["rms_ratio"] < 0.02
    assert all("no such phase" not in cell["reason"] for cell in found.values())
