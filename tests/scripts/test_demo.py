import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.load import load


def rows(energies: list[float | None], device: str = "d") -> list[dict[str, Any]]:
    return [{"run_id": "r", "node": "n", "device": device, "energy_joules": energy} for energy in energies]


def counter(joules: float | None, device: str = "d") -> dict[str, Any]:
    return {"run_id": "r", "run": "run", "node": "n", "device": device, "counter_joules": joules}


def check(phases: list[dict[str, Any]], counters: list[dict[str, Any]]) -> None:
    module = load("demo")
    answers = {"phases": phases, "sql": counters}
    module.__dict__["ask"] = lambda command, *_: answers[command]
    try:
        module.check_sum(Path("archive"))
    except module.DemoError as error:
        raise AssertionError(str(error)) from error


def test_rows_that_add_up_are_shown_with_both_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Sum, counter and their relative difference are said; a row without a number adds nothing."""
    check(rows([1.5, None, 2.5]), [counter(4.0 * (1 + 1e-12))])
    said = capsys.readouterr().out
    assert "rows 4.000000 J, counter 4.000000 J" in said
    assert "they do" in said
    check(rows([1.5, 2.5]), [counter(4.0000004)])  # kept in whole microjoules


@pytest.mark.parametrize(
    ("phases", "counters", "said"),
    [
        (rows([1.0, 2.0]), [counter(3.000002)], "do not add up"),
        (rows([1e6, 2e6]), [counter(3e6 + 0.004)], "do not add up"),
        (rows([1.0]), [counter(1.0), counter(1.0, "other")], "one is missing"),
        (rows([1.0]), [counter(None)], "one is missing"),
        (rows([1.0]) + rows([2.0], "other"), [counter(1.0)], "without a counter"),
    ],
)
def test_rows_that_do_not_add_up_fail(phases: list[Any], counters: list[Any], said: str) -> None:
    """A difference, or one of the two numbers missing, ends the demonstration."""
    with pytest.raises(AssertionError, match=said):
        check(phases, counters)


def test_the_daemon_is_stopped_whatever_happens(tmp_path: Path) -> None:
    """The daemon stops cleanly after a failure too, and its socket's folder goes."""
    module = load("demo")
    daemon = module.daemon(tmp_path / "archive", tmp_path / "log")
    with pytest.raises(InterruptedError), daemon as socket:  # noqa: PT012 - raised inside, which is the test
        assert Path(socket).is_socket()
        raise InterruptedError
    assert not Path(socket).parent.exists()
    assert any((tmp_path / "archive").rglob("*.jsonl.zst"))


def test_a_daemon_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    """The daemon's own last line is in ours."""
    module = load("demo")
    (tmp_path / "archive").write_text("a file, not a folder")
    with (
        pytest.raises(module.DemoError, match="did not get ready: wattd"),
        module.daemon(tmp_path / "archive", tmp_path / "log"),
    ):
        pass


def test_two_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second would remove the archive of the first."""
    module = load("demo")
    module.__dict__["ROOT"] = tmp_path
    (tmp_path / "build").mkdir()
    descriptor = os.open(tmp_path / "build/demo.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(module.DemoError, match="another demonstration"), module.alone():
        pass
    os.close(descriptor)
