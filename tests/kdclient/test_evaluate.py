import json
import socket
from pathlib import Path

import pytest
import torch

import kdclient
from kdclient import mmlu_dev
from kdclient.__main__ import main
from tests.kdclient.marks import Marks

pytestmark = pytest.mark.slow


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    """Stands for the daemon; and there is no network."""

    def refused(*_: object) -> None:
        raise AssertionError("something wants the network")

    torch.set_num_threads(1)
    marks = Marks()
    monkeypatch.setattr(kdclient, "connect", lambda: marks)
    monkeypatch.setattr(socket.socket, "connect", refused)
    return marks


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--device", "cpu"])


def test_the_built_in_task_has_its_281_questions() -> None:
    """Each has a text, four choices and an answer among them; one stands in two subjects."""
    questions = mmlu_dev.questions()
    assert len(questions) == 281
    assert len({question["subject"] for question in questions}) == 57
    assert len({question["question"] for question in questions}) == 280
    for question in questions:
        assert question["question"].strip()
        assert len(question["choices"]) == 4
        assert all(question["choices"])
        assert not any(
            mark in choice for choice in question["choices"] for mark in ("(A)", "(B)", "(C)", "(D)", "(E)")
        )
        assert 0 <= question["answer"] < 4


def test_a_model_is_scored_without_a_network(
    teacher: Path, marks: Marks, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are printed and sent; what was computed is in phases `eval`, less than was asked for."""
    assert evaluate(teacher, "--limit", 6, "--json", "--label", "teacher") == 0
    printed = json.loads(capsys.readouterr().out)
    (score,) = printed["scores"]
    assert (score["task"], score["metric"], score["n"]) == ("mmlu_dev", "acc", 6)
    assert score["value"] * 6 == pytest.approx(round(score["value"] * 6))
    (sent,) = marks.evaluations
    assert sent["value"] == score["value"]
    assert sent["stderr"] == score["stderr"]
    assert (sent["model"], sent["harness"]) == ("teacher", "lm-evaluation-harness")
    assert set(marks.names()) == {"eval"}
    assert sum(tokens or 0 for _, tokens in marks.phases) == printed["tokens_computed"] > 0
    # The four answers of a question share a forward pass.
    assert printed["tokens_computed"] < printed["tokens_requested"]


def test_settings_are_in_the_hash(teacher: Path, marks: Marks, tmp_path: Path) -> None:
    """Scores under equal settings have equal hashes, another limit gives another hash."""
    for limit in (2, 2, 3):
        assert evaluate(teacher, "--limit", limit) == 0
    one, again, other = (score["settings_sha256"] for score in marks.evaluations)
    assert one == again != other


def test_tasks_of_ones_own(teacher: Path, marks: Marks, tmp_path: Path) -> None:
    """A task in --include-path is found, generation too is marked with its tokens."""
    (tmp_path / "q.jsonl").write_text('{"q": "the king", "a": "x"}\n' * 3)
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {tmp_path}/q.jsonl, cache_dir: {tmp_path}/c}}\n"
        "test_split: train\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    assert evaluate(teacher, "--tasks", "own", "--include-path", tmp_path) == 0
    assert [score["task"] for score in marks.evaluations] == ["own"]
    assert sum(tokens or 0 for _, tokens in marks.phases) > 3 * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "no_such_task"], "no_such_task"),
        (["--tasks", ","], "no task given"),
        (["--include-path", "/nowhere"], "/nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(
    teacher: Path, marks: Marks, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """A user's mistake ends with exit code 1 and a line that names what was given."""
    assert evaluate(teacher, *words) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_model_that_is_not_there_is_named(marks: Marks, capsys: pytest.CaptureFixture[str]) -> None:
    """The path is in the line."""
    assert evaluate("/nowhere/model") == 1
    assert "/nowhere/model" in capsys.readouterr().err
