"""`make bench-accuracy`: resumed cell by cell, and shown as lines, tables and a picture."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

import pytest

from bench.accuracy import __main__ as command
from bench.accuracy import picture, tables, virtual
from bench.accuracy.virtual import Cell, Trial, try_once
from bench.accuracy.workload import Workload

TINY = Workload(steps=12)
SVG = "{http://www.w3.org/2000/svg}"


class OneProcess:
    """A pool that works here and now."""

    def __init__(self, max_workers: int) -> None:
        self.workers = max_workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def map(self, work: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
        return map(work, items)


class Harness:
    """The harness with two tiny cells, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tried, self.breaks = folder, list[tuple[str, int]](), ""
        cells = [Cell(name, "h100_100", "fitted", 2, workload=TINY) for name in ("one cell", "other cell")]
        monkeypatch.setattr(command, "_ROOT", folder)
        monkeypatch.setattr(command, "_BUILD", folder / "build")
        monkeypatch.setattr(command, "RESULTS", folder / "accuracy.json")
        monkeypatch.setattr(command, "_source_sha256", lambda: "source")
        monkeypatch.setattr(command, "ProcessPoolExecutor", OneProcess)
        monkeypatch.setattr(virtual, "cells", lambda *, quick: cells)
        monkeypatch.setattr(virtual, "try_once", self.try_once)
        for name in ("QUICK", "FRESH", "SEED"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PART", "virtual")
        (folder / "docs").mkdir()

    def try_once(self, cell: Cell, seed: int) -> Trial | None:
        if cell.name == self.breaks:
            raise KeyboardInterrupt
        self.tried.append((cell.name, seed))
        return try_once(cell, seed)

    @property
    def results(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = json.loads((self.folder / "accuracy.json").read_text())["cells"]
        return cells


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """The harness with two tiny cells."""
    return Harness(tmp_path, monkeypatch)


def test_interrupted_run_goes_on_where_it_stopped(harness: Harness) -> None:
    """Finished cells are kept as they are, with the seed of the run; only the rest is tried."""
    harness.breaks = "other cell"
    with pytest.raises(KeyboardInterrupt):
        command.main()
    first = list(harness.tried)
    assert [name for name, _ in first] == ["one cell"] * 2
    harness.breaks = ""
    command.main()
    assert harness.tried[:2] == first
    assert [name for name, _ in harness.tried[2:]] == ["other cell"] * 2
    assert harness.tried[2][1] - first[0][1] == 1_000_000
    assert [cell["cell"] for cell in harness.results] == ["one cell", "other cell"]
    assert [cell["seed"] for cell in harness.results] == [first[0][1], harness.tried[2][1]]
    before = harness.results
    command.main()
    assert len(harness.tried) == 4
    assert harness.results == before


def test_cells_are_forgotten_when_the_estimator_changes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another estimator gave says nothing of this one; and FRESH=1 forgets on request."""
    command.main()
    monkeypatch.setattr(command, "_source_sha256", lambda: "another source")
    command.main()
    assert len(harness.tried) == 8
    assert harness.tried[0][1] != harness.tried[4][1]
    monkeypatch.setenv("FRESH", "1")
    command.main()
    assert len(harness.tried) == 12


def test_seed_that_is_given_is_used_and_kept_apart(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEED makes a run that can be had again; each cell has seeds of its own."""
    monkeypatch.setenv("SEED", "123")
    command.main()
    assert [seed for _, seed in harness.tried] == [123, 124, 1_000_123, 1_000_124]


def test_halves_are_kept_side_by_side(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measuring one half does not lose the other; a cell that misses makes the status 1 and is said."""
    (harness.folder / "accuracy.json").write_text(json.dumps({"cells": [real("wattd", "backward", [0.01])]}))
    status = command.main()
    assert {cell["kind"] for cell in harness.results} == {"virtual_time", "real_time"}
    missed = sum(cell.get("ok") is False for cell in harness.results)
    assert status == (1 if missed else 0)
    assert f"3 cells, {missed} of them miss a promise; accuracy.json" in capsys.readouterr().out
    monkeypatch.setenv("PART", "half")
    assert command.main() == 2
    assert "PART is virtual or real" in capsys.readouterr().err


def real(tool: str, phase: str, errors: list[float | None], **changed: Any) -> dict[str, Any]:
    """Returns a cell in real time."""
    known = [error for error in errors if error is not None]
    rms = (sum(error**2 for error in known) / len(known)) ** 0.5 if known else None
    cell = {"kind": "real_time", "tool": tool, "phase": phase, "errors": errors, "rms_ratio": rms}
    return {**cell, "trials": len(errors), "counter_milliseconds": 100, "steps": 300, "ok": None, **changed}


def test_line_says_what_is_missed() -> None:
    """A cell is a line: its errors, and a missed promise by name; a refusal is no error of 0."""
    cell = {
        "kind": "virtual_time",
        "cell": "a100 fitted",
        "trials": 60,
        "times_limit": 4.25,
        "covered_ratio": 0.875,
        "attribution_seconds": 0.8,
        "verdicts": {"times_limit": False, "coverage": False, "totals": True},
    }
    line = tables.line(cell)
    assert "4.25 x limit" in line
    assert "coverage 87.5%" in line
    assert line.endswith("MISSES times_limit, coverage")
    assert "MISSES" not in tables.line({**cell, "verdicts": {"totals": True}})
    assert tables.line(real("zeus", "backward", [0.031, -0.2])).endswith("+3.1% -20.0%")
    assert tables.line(real("wattd", "backward", [0.02, None], ok=False)).endswith(
        "+2.0% refused  MISSES ITS BOUND"
    )


def test_summary_shows_each_tool_in_one_row() -> None:
    """Phases are columns in the order of the step; what a tool does not say is a dash."""
    cells = [real(tool, phase, [0.5]) for tool in ("zeus", "wattd") for phase in tables.REFERENCE]
    cells += [real("codecarbon", "backward", [None]), real("wattd", "total", [0.001])]
    rows = [line.split("|")[1:-1] for line in tables.summary(cells).splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["counter", "tool", *tables.REFERENCE]
    assert [row[1].strip() for row in rows[2:]] == ["zeus", "wattd", "codecarbon"]
    assert [cell.strip() for cell in rows[2][2:]] == ["50%"] * 5
    assert {cell.strip() for cell in rows[4][2:]} == {"-"}
    phases = {name: {"rms_ratio": 0.0123} for name in tables.REFERENCE}
    shown = {"kind": "virtual_time", "cell": "a100 fitted", "steps": 300, "trials": 60, "phases": phases}
    both = tables.summary([*cells, {**shown, "times_limit": 2.0, "covered_ratio": 0.95}])
    assert "| a100 fitted | 300 | 60 | 1.23% |" in both
    assert both.count("\n\n") == 1


def bars(path: Path) -> dict[str, list[float]]:
    """Returns the widths of the bars of a picture by colour."""
    found: dict[str, list[float]] = {}
    for rect in ET.parse(path).getroot().iter(f"{SVG}rect"):  # noqa: S314 written by the line before
        if rect.get("height") == "10" and rect.get("y") != "34":
            found.setdefault(rect.get("fill") or "", []).append(float(rect.get("width") or 0))
    return found


def test_picture_has_a_bar_for_each_number(tmp_path: Path) -> None:
    """Bars grow with the error, of the slowest counter alone; no number is no bar, and names are escaped."""
    path = tmp_path / "accuracy.svg"
    tools = {"wattd": 0.001, "zeus <old>": 0.1}
    cells = [real(tool, phase, [error]) for tool, error in tools.items() for phase in tables.REFERENCE[:4]]
    cells.append(real("wattd", tables.REFERENCE[4], [None]))
    cells.append(real("wattd", tables.REFERENCE[0], [9.0], counter_milliseconds=20))
    picture.write(cells, path)
    (ours, theirs) = bars(path).values()
    assert (len(ours), len(theirs)) == (4, 4)
    assert len(set(ours)) == 1
    # A decade each is the same width: 0.1 is three decades from the left, 0.001 one.
    assert theirs[0] == pytest.approx(3 * ours[0], abs=0.2)
    text = path.read_text()
    assert "zeus &lt;old&gt;" in text
    assert "100 ms counter" in text


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    """Where nothing was measured in real time an older picture stands."""
    path = tmp_path / "accuracy.svg"
    picture.write([{"kind": "virtual_time"}, real("wattd", "backward", [None])], path)
    assert not path.exists()
