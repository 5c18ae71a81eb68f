import csv
import io
import json
import os
from pathlib import Path

import pytest
from wattq import locate, numbers
from wattq.__main__ import main
from wattq.rows import COLUMNS

from tests.analysis.archives import START, ArchiveWriter
from tests.analysis.conftest import Study

pytestmark = pytest.mark.usefixtures("easily_content")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs wattq; returns status, stdout and stderr."""
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def one_line(text: str) -> bool:
    """Tells whether a message is one line and no traceback."""
    return text.count("\n") == 1 and "Traceback" not in text


def test_phases_as_json_have_the_fields_of_the_contract(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    """`wattq phases --format json` is a list of objects with these fields in this order."""
    root = str(study.writer.write())
    status, out, err = run(capsys, "phases", root, "--format", "json")
    rows = json.loads(out)
    assert (status, err) == (0, "")
    assert [list(row) for row in rows] == [list(COLUMNS)] * len(rows)
    assert run(capsys, "phases", root, "--json") == (0, out, "")


def test_phases_as_csv_hold_the_same(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV and JSON tell the same story."""
    root = str(study.writer.write())
    _, text, _ = run(capsys, "phases", root, "--format", "csv")
    rows = json.loads(run(capsys, "phases", root, "--json")[1])
    table = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["duration_seconds"]) for row in table] == [row["duration_seconds"] for row in rows]
    assert [row["phase"] for row in table] == [row["phase"] for row in rows]


def test_table_has_units_intervals_and_the_sum_check(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    """People see units in the headings, an interval, why a number is missing, and that the rows add up."""
    study.writer.phase("run-1", "flash", study.begin, study.begin + 2_000_000)
    status, out, _ = run(capsys, "phases", str(study.writer.write()))
    assert status == 0
    for word in ("energy J", "± J", "time s", "mJ/token", "GPU-aaaa", "rows", "= counter", "phases of 2 ms"):
        assert word in out
    assert "GPU-aaaa: estimator overlap: every phase is known to" in out


def test_table_says_what_is_estimated(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """An estimate is called one wherever it is shown."""
    study.writer.devices[1].source = "estimated"
    study.writer.devices[1].uncertainty_ratio = 0.4
    _, out, _ = run(capsys, "phases", str(study.writer.write()))
    assert "package-0 (estimated)" in out
    assert "; estimated;" in out


def test_runs_and_sql(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """`runs` gives a run's energy, `sql` any view's rows, both as JSON."""
    root = str(study.writer.write())
    _, out, _ = run(capsys, "runs", root, "--json")
    assert json.loads(out)[0]["tokens_phase"] == "student_forward"
    assert "study" in run(capsys, "runs", root)[1]
    _, out, _ = run(
        capsys, "sql", root, "select phase, count(*) as n from phases group by 1 order by 1", "--json"
    )
    assert json.loads(out)[0] == {"phase": "backward", "n": 6}
    assert "backward" in run(capsys, "sql", root, "select distinct phase from phases")[1]


@pytest.mark.parametrize(
    ("query", "place"),
    [("select nothing from runs", "nothing"), ("selec 1", "selec"), ("select * from nowhere", "nowhere")],
)
def test_sql_errors_are_one_line_with_the_position(
    study: Study, capsys: pytest.CaptureFixture[str], query: str, place: str
) -> None:
    """A wrong query is one line that shows where it is wrong."""
    status, out, err = run(capsys, "sql", str(study.writer.write()), query)
    assert (status, out) == (1, "")
    assert one_line(err)
    assert f"(line 1, at: {place}" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["phases", "ROOT", "--estimator", "magic"], 2, "--help"),
        (["phases", "ROOT", "--format", "xml"], 2, "--help"),
        (["frobnicate"], 2, "--help"),
        (["phases", "/nowhere/at/all"], 1, "no archive at /nowhere/at/all"),
        (["phases", "ROOT", "--run", "nobody"], 1, "no such run"),
        (["runs", "ROOT", "--job", "77"], 1, "no such run"),
        (["report", "ROOT", "--run", "nobody"], 1, "no such run"),
        (["report", "ROOT", "--output", "/nowhere/report.html"], 1, "cannot write"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(
    study: Study, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    """A mistake is one line on stderr, status 1 or 2, and never a traceback."""
    root = str(study.writer.write())
    status, out, err = run(capsys, *[root if word == "ROOT" else word for word in arguments])
    assert (status, out) == (code, "")
    assert one_line(err)
    assert says in err
    assert err.startswith("wattq")


@pytest.mark.parametrize("command", ["phases", "runs", "report"])
def test_empty_archive_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """An empty archive, and one without runs, are one clear line."""
    status, _, err = run(capsys, command, str(tmp_path))
    assert status == 1
    assert one_line(err)
    writer = ArchiveWriter(tmp_path)
    writer.events.append({"type": "daemon", "monotonic_nano": START, "what": "started"})
    status, _, err = run(capsys, command, str(writer.write()))
    assert status == 1
    assert one_line(err)
    assert "no run yet" in err


def test_run_without_devices_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Marks without a sensor are no reason to print an empty table."""
    writer = ArchiveWriter(tmp_path)
    writer.run("r", START, START + 10)
    status, _, err = run(capsys, "phases", str(writer.write()))
    assert status == 1
    assert "wattd probe" in err


def test_torn_lines_are_told_on_stderr(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be read is counted on stderr, and stdout stays clean."""
    root = study.writer.write(closed=False)
    with next(root.rglob("kind=samples/**/*.jsonl")).open("a", encoding="utf-8") as file:
        file.write('{"torn')
    status, out, err = run(capsys, "phases", str(root), "--json")
    assert status == 0
    assert json.loads(out)
    assert err == "wattq: 1 line could not be read (torn by a crash, or still being written)\n"


@pytest.mark.parametrize("command", ["phases", "runs", "sql", "report"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every command explains itself by example."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"wattq {command} " in capsys.readouterr().out.split("examples:")[1]


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Called alone, wattq says what it can do."""
    status, out, _ = run(capsys)
    assert status == 0
    assert "phases" in out


def test_archive_is_found_by_the_configuration(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without ARCHIVE the daemon's configuration says where it is."""
    root = study.writer.write()
    config = tmp_path / "config.toml"
    config.write_text(f'archive = "{root}"\n')
    monkeypatch.setenv("WATTD_CONFIG", str(config))
    assert run(capsys, "phases", "--json")[0] == 0
    assert json.loads(run(capsys, "sql", "select run from runs", "--json")[1]) == [{"run": "study"}]


@pytest.mark.parametrize(("text", "says"), [(None, "not a file"), ("archive = ", "cannot be read")])
def test_bad_configuration_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str | None,
    says: str,
) -> None:
    """A configuration that is missing or broken is named."""
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_text(text)
    monkeypatch.setenv("WATTD_CONFIG", str(config))
    status, _, err = run(capsys, "phases")
    assert status == 2
    assert one_line(err)
    assert says in err


def test_default_folder_is_roots_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any configuration the default folders of the daemon are looked into."""
    monkeypatch.delenv("WATTD_CONFIG", raising=False)
    monkeypatch.setattr(locate, "_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder = tmp_path / ".local/state/wattd/archive"
    folder.mkdir(parents=True)
    assert locate.find_archive(None) == folder


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (1234.5678, 12.3, "1,235"),
        (1234.5678, 0.123, "1,234.57"),
        (0.0123456, None, "0.01235"),
        (98765.4, None, "98,765"),
        (0.0, None, "0"),
        (None, None, "-"),
    ],
)
def test_numbers_have_the_digits_they_deserve(value: float | None, half: float | None, text: str) -> None:
    """Two digits of the half-width, or four of the value."""
    assert numbers.number(value, half) == text


def test_share_is_whole_only_when_nothing_is_missing() -> None:
    """99.97 % is not 100 %."""
    assert numbers.share(0.9997) == "99.9 %"
    assert numbers.share(1.0) == "100 %"
    assert numbers.share(None) == "-"


def test_query_that_is_empty_is_refused(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """No SQL is wrong usage, in one line."""
    status, out, err = run(capsys, "sql", str(study.writer.write()), " ; ")
    assert (status, out) == (2, "")
    assert one_line(err)


def test_what_is_no_number_is_null_in_json(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Infinity and NaN are not JSON: null."""
    query = "select 'inf'::double as a, 'nan'::double as b, 1.5 as c"
    status, out, _ = run(capsys, "sql", str(study.writer.write()), query, "--json")
    assert status == 0
    assert json.loads(out) == [{"a": None, "b": None, "c": 1.5}]


def test_total_says_what_nobody_saw(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that began long before the first reading has a total with a reason, not a bare number."""
    begin = study.writer.events[0]["monotonic_nano"]
    study.writer.events[0]["monotonic_nano"] = begin - (study.end - study.begin) // 3
    status, out, _ = run(capsys, "runs", str(study.writer.write()), "--json")
    assert status == 0
    (row,) = json.loads(out)
    assert "of the run: what nobody saw may be missing" in row["reason"]
