"""What an archive may be made of, and what is refused."""

import json
import shutil
from pathlib import Path

import duckdb
import pytest
from wattq import runner
from wattq.errors import UserError
from wattq.loading import Chosen
from wattq.rows import COLUMNS
from wattq.runner import Archive

from tests.analysis.conftest import ENERGY, OVERLAP, Study, answer, by_phase, make_study


def test_torn_lines_are_counted_and_the_rest_is_read(study: Study) -> None:
    """A torn last line, in samples or events, costs itself and is counted."""
    root = study.writer.write(closed=False)
    whole = answer(root)
    for path in root.rglob("*.jsonl"):
        with path.open("a", encoding="utf-8") as file:
            file.write('{"seq":999,"type":"tick","monoto')
    with Archive(root) as archive:
        assert archive.query(ENERGY, chosen=OVERLAP).records() == whole
        assert archive.warnings() == ["2 lines could not be read (torn by a crash, or still being written)"]


def test_both_forms_of_a_segment_count_once(study: Study) -> None:
    """While a segment is compressed both files are there, and its lines count once."""
    root = study.writer.write()
    whole = answer(root)
    study.writer.write(closed=False)
    assert answer(root) == whole


def test_segment_that_is_renamed_under_our_hands_is_found_again(study: Study) -> None:
    """A segment may be compressed between the listing and the reading."""
    root = study.writer.write(closed=False)
    with Archive(root) as archive:
        whole = answer(root)
        for path in root.rglob("*.jsonl"):
            path.unlink()
        study.writer.write()
        assert archive.query(ENERGY, chosen=OVERLAP).records() == whole


def test_foreign_files_are_left_alone(study: Study) -> None:
    """A folder may hold files of other people."""
    root = study.writer.write()
    whole = answer(root)
    folder = next(root.rglob("*.zst")).parent
    (folder / "notes.jsonl").write_text("not ours\n")
    (folder / "0badcafe-000777.jsonl").write_text('{"hello": 1}\n')
    (folder / "0badcafe-000778.jsonl").write_text("")
    (root / "README").write_text("hello")
    with Archive(root) as archive:
        assert archive.query(ENERGY, chosen=OVERLAP).records() == whole
        assert archive.foreign_files == 2


def test_archive_of_another_version_is_refused(study: Study, tmp_path: Path) -> None:
    """What cannot be understood is refused in one line that names the versions."""
    study.writer.version = 2
    with pytest.raises(UserError, match="another version"):
        Archive(study.writer.write())
    study.writer.version, study.writer.root = 1, tmp_path / "liar"
    root = study.writer.write(closed=False)
    for path in root.rglob("*.jsonl"):
        path.write_text(path.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(UserError, match="version 2"):
        Archive(root)


def test_empty_archive_is_refused(tmp_path: Path) -> None:
    """Nothing there is said in one line."""
    with pytest.raises(UserError, match="no samples or events"):
        Archive(tmp_path)


def test_unknown_keys_and_types_are_ignored(study: Study) -> None:
    """A reader ignores what it does not know."""
    whole = answer(study.writer.write())
    for line in study.writer.events:
        line["shoe_size"] = {"eu": 43}
    study.writer.events.append({"type": "horoscope", "sign": [1, 2]})
    assert answer(study.writer.write()) == whole


def test_energy_is_not_computed_for_who_does_not_ask(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question about runs alone does not cost the estimator."""
    monkeypatch.setattr(runner, "estimate", lambda *_: pytest.fail("not asked for"))
    assert answer(study.writer.write(), "select run from runs") == [{"run": "study"}]


def test_choice_of_run_and_job(study: Study) -> None:
    """--run takes a name or an id, --job a job; others are left out."""
    with Archive(study.writer.write()) as archive:
        for chosen, expected in (
            (Chosen(run="study", estimator="overlap"), True),
            (Chosen(run="run-1", estimator="overlap"), True),
            (Chosen(run="x", estimator="overlap"), False),
        ):
            assert bool(archive.query(ENERGY, chosen=chosen).rows) == expected
        assert archive.query(ENERGY, chosen=Chosen(job="local-run-1", estimator="overlap")).rows
        assert not archive.query(ENERGY, chosen=Chosen(job="' or true --", estimator="overlap")).rows


def test_two_boots_of_a_node_add_up(study: Study, tmp_path: Path) -> None:
    """A run that goes on after a reboot has the energy of both boots, though counters began anew."""
    once = by_phase(answer(study.writer.write()))
    again = make_study(study.writer.root)
    again.writer.boot_id = "feedbeef-1111-2222-3333-444455556666"
    for line in again.writer.events:
        line["client"] = "c9"
    twice = by_phase(answer(again.writer.write()))
    for phase, row in once.items():
        assert twice[phase]["energy_joules"] == pytest.approx(2 * row["energy_joules"], abs=3e-6)
        assert twice[phase]["duration_seconds"] == pytest.approx(2 * row["duration_seconds"])


def test_update_that_was_lost_is_made_good_by_the_second(study: Study) -> None:
    """The absolute counters of each second stand in for ticks that were dropped."""
    rows = by_phase(answer(study.writer.write()))
    study.writer.samples = [line for line in study.writer.samples if line["type"] != "tick"]
    shutil.rmtree(study.writer.root)
    coarse = by_phase(answer(study.writer.write()))
    assert sum(row["energy_joules"] or 0 for row in coarse.values()) == pytest.approx(
        sum(row["energy_joules"] or 0 for row in rows.values()), rel=0.02
    )
    assert coarse["backward"]["max_gap_seconds"] > 0.9


def test_columns_of_phase_energy_are_those_of_the_contract() -> None:
    """The JSON of `wattq phases` has these names in this order."""
    names = " ".join(COLUMNS)
    assert names == (
        "run_id run restarts job node device domain phase count duration_seconds "
        "energy_joules energy_low_joules energy_high_joules energy_statistical_joules energy_response_joules "
        "calibration_ratio energy_inclusive_joules tokens energy_per_token_joules estimator source "
        "coverage_ratio max_gap_seconds valid reason"
    )


def test_extensions_are_never_fetched(study: Study) -> None:
    """Nothing is loaded from the network behind the user's back."""
    with Archive(study.writer.write()) as archive:
        asked = (
            "select name, value from duckdb_settings() where name like 'auto%known_extensions' order by name"
        )
        assert [value for _, value in archive.connection.execute(asked).fetchall()] == ["false", "false"]
        with pytest.raises(duckdb.Error):
            archive.query("select * from read_csv('https://example.invalid/x.csv')")


def test_archive_is_json_lines_by_the_document(study: Study) -> None:
    """The writer of these tests follows docs/archive.md, else they prove nothing."""
    root = study.writer.write(closed=False)
    for path in root.rglob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["seq"] for line in lines] == list(range(len(lines)))
        assert lines[0]["type"] == "segment"
