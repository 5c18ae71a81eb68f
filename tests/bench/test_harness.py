"""What benchmarks have in common."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import __main__ as command
from bench import harness

_FAST = harness.at_most("fast", 1.0, 2.0, "s", reference=0.5)
_SLOW = harness.at_most("slow", 3.0, 2.0, "s")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results file of the test's own, and two parts: one that holds its promise and one that does not."""
    path = tmp_path / "results.json"
    real = harness.merge
    monkeypatch.setattr(harness, "merge", lambda found: real(found, path))
    monkeypatch.setattr(harness, "PARTS", {"good": "json", "bad": "csv", "gone": "bench.not_there"})
    parts = {"json": SimpleNamespace(measure=lambda: iter([_FAST]))}
    parts["csv"] = SimpleNamespace(measure=lambda: iter([_SLOW]))
    monkeypatch.setattr(importlib, "import_module", lambda name: parts[name])
    return path


@given(value=st.floats(-1e9, 1e9), bound=st.floats(-1e9, 1e9))
def test_a_bound_holds_from_its_own_side(value: float, bound: float) -> None:
    """An upper bound is not exceeded, a lower one reached; a figure without a bound has no verdict."""
    assert harness.at_most("a", value, bound, "s").ok == (value <= bound)
    assert harness.at_least("a", value, bound, "s").ok == (value >= bound)
    shown = harness.shown("a", value, "s")
    assert shown.ok is shown.bound is None


def test_measures_take_turns() -> None:
    """No measure has its repeats in a row, and each gets the median of its own."""
    order = list[str]()
    values = {"a": iter([3.0, 1.0, 2.0]), "b": iter([30.0, 10.0, 20.0])}

    def measure(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or next(values[name])  # type: ignore[func-returns-value]

    assert harness.medians_in_turn(3, {"a": measure("a"), "b": measure("b")}) == {"a": 2.0, "b": 20.0}
    assert order == ["a", "b"] * 3


def test_results_are_merged_by_name(tmp_path: Path) -> None:
    """A new figure takes the place of the old one of its name; the keys are the contract's."""
    path = tmp_path / "results.json"
    harness.merge([_FAST, _SLOW], path)
    harness.merge([harness.shown("fast", 7.0, "s")], path)
    entries = json.loads(path.read_text())
    assert [(entry["name"], entry["value"], entry["ok"]) for entry in entries] == [
        ("fast", 7.0, None),
        ("slow", 3.0, False),
    ]
    assert all(list(entry) == ["name", "value", "bound", "unit", "reference", "ok"] for entry in entries)


def test_every_part_has_a_module() -> None:
    """The table names modules that exist and can measure."""
    for module in harness.PARTS.values():
        assert callable(importlib.import_module(module).measure)


def test_a_promise_that_does_not_hold_fails(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 where all holds, 1 where a promise does not, which is named; both are recorded."""
    assert command.main(["good"]) == 0
    assert command.main(["bad"]) == 1
    assert "does not hold for slow" in capsys.readouterr().err
    assert len(json.loads(results.read_text())) == 2


def test_a_part_that_is_not_there(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown part is a wrong usage; one without its module fails in one line, and the others run."""
    assert command.main(["nothing"]) == 2
    assert command.main(["gone", "good"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "bench: no part nothing; there are good, bad, gone"
    assert "bench: part gone has no module bench.not_there in this checkout" in said
    assert results.exists()
