import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import kdclient
from kdclient import data, distill, models
from kdclient.__main__ import main
from kdclient.errors import UserError
from kdclient.losses import forward_kl
from kdclient.perplexity import perplexity, settings_sha256
from tests.kdclient.conftest import make_model
from tests.kdclient.marks import Marks

pytestmark = pytest.mark.slow

Distil = Callable[..., tuple[int, Marks]]
STEP = ["data_load", "teacher_forward", "student_forward", "backward", "optimizer_step"]


@pytest.fixture
def distil(teacher: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distil:
    """Runs the command into `tmp_path/out`, with what is given after a small and quick default."""

    def run(*words: object, **options: object) -> tuple[int, Marks]:
        marks = Marks()
        torch.set_num_threads(1)  # two threads wait for each other where other work shares the cores
        monkeypatch.setattr(kdclient, "connect", lambda: marks)
        given = {
            "teacher": teacher,
            "student": "tiny",
            "text": text,
            "output": tmp_path / "out",
            "device": "cpu",
        }
        given |= {"steps": 6, "batch": 2, "window": 16, "held_out": 4, "warm_up": 2, **options}
        flags = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return main(["distill", *flags, *map(str, words)]), marks

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = models.load_model(
        str(folder), "student", torch.device("cpu"), torch.float32
    ).state_dict()
    return state


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_phases_are_marked_in_the_order_of_the_work(distil: Distil) -> None:
    """Evaluation, steps with checkpoints, the last state and the student itself, and its evaluation."""
    code, marks = distil(steps=4, checkpoint_every=2)
    assert code == 0
    evaluation = ["eval"] * 2  # 4 windows held out, 2 at once
    steps = STEP * 2 + ["checkpoint"] + STEP * 2
    assert marks.names() == evaluation * 2 + steps + ["checkpoint"] * 2 + evaluation
    assert marks.runs == [{"name": "tiny-response-0", "method": "response", "seed": 0}]


def test_tokens_are_those_worked_through(distil: Distil) -> None:
    """Each pass over tokens says how many, and a step those of its passes; loading and saving have none."""
    _, marks = distil(steps=3, accumulate=2)
    tokens = Counter[str]()
    for name, count in marks.phases:
        tokens[name] += count or 0
    assert tokens["teacher_forward"] == tokens["student_forward"] == tokens["backward"] == 3 * 2 * 2 * 16
    assert tokens["eval"] == 3 * 4 * 16
    assert tokens["optimizer_step"] == tokens["backward"]
    assert tokens["data_load"] == tokens["checkpoint"] == 0


def test_killed_in_the_last_evaluation_it_need_not_train_again(distil: Distil, tmp_path: Path) -> None:
    """The state after the last step is saved before anything else: resuming takes no step."""
    assert distil(steps=3, output=tmp_path / "o")[0] == 0
    code, marks = distil("--resume", steps=3, output=tmp_path / "o")
    assert code == 0
    assert "backward" not in marks.names()


def test_the_student_learns(
    distil: Distil, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out perplexity falls, the student folder holds the weights that gave it, and scores are sent."""
    code, marks = distil("--json", steps=15, learning_rate=0.005, cross_entropy=1)
    assert code == 0
    printed = {row["model"]: row for row in json.loads(capsys.readouterr().out)["scores"]}
    assert printed.keys() == {"teacher", "student_start", "student"}
    assert printed["student"]["value"] < 0.5 * printed["student_start"]["value"]
    sent = {score["model"]: score for score in marks.evaluations}
    for label, row in printed.items():
        assert sent[label]["value"] == row["value"]
        assert sent[label]["n"] == row["n"] == 4 * 15
        assert sent[label]["harness"] == "perplexity"
    assert len({score["settings_sha256"] for score in marks.evaluations}) == 1
    folder = str(tmp_path / "out/student")
    tokenizer = models.load_tokenizer(folder, "student")
    student = models.load_model(folder, "student", torch.device("cpu"), torch.float32)
    _, held_out = data.load([str(text)], tokenizer, window=16, held_out=4, seed=0)
    size = models.vocabulary_size(tokenizer)
    again = perplexity(student, held_out, size, Marks(), batch=2)
    assert again.value == pytest.approx(printed["student"]["value"], rel=1e-5)
    assert settings_sha256(held_out, size) == sent["student"]["settings_sha256"]


def test_the_student_comes_closer_to_its_teacher(
    distil: Distil, teacher: Path, text: Path, tmp_path: Path
) -> None:
    """On text that it has not seen, the student's divergence from its teacher falls."""
    assert distil(steps=30, batch=8, learning_rate=0.01)[0] == 0
    tokenizer = models.load_tokenizer(str(teacher), "teacher")
    size = models.vocabulary_size(tokenizer)
    _, held_out = data.load([str(text)], tokenizer, window=16, held_out=4, seed=0)
    torch.manual_seed(0)
    start = models.tiny_student(tokenizer, 16)
    cpu = torch.device("cpu")
    end = models.load_model(str(tmp_path / "out/student"), "student", cpu, torch.float32)
    truth = models.load_model(str(teacher), "teacher", cpu, torch.float32)
    with torch.no_grad():
        wanted = truth(held_out.ids).logits[..., :size]
        before, after = (
            forward_kl(model(held_out.ids).logits[..., :size], wanted, held_out.mask).item()
            for model in (start, end)
        )
    assert after < 0.9 * before


def test_a_teacher_is_its_own_perfect_student(distil: Distil, teacher: Path, tmp_path: Path) -> None:
    """Distilled into itself a model has nothing to learn: it stays what it is.

    (Adam makes a step of any gradient, and rounding leaves one; hence the small rate.)
    """
    code, marks = distil(student=teacher, weight_decay=0, steps=2, seed=3, learning_rate=1e-6)
    assert code == 0
    scores = {score["model"]: score["value"] for score in marks.evaluations}
    assert scores["student"] == pytest.approx(scores["teacher"], rel=1e-3)
    assert marks.runs[0]["name"] == "teacher-response-3"


def test_accumulation_is_the_larger_batch(distil: Distil, tmp_path: Path) -> None:
    """Two passes of two windows end where one of four does, to rounding, prompts of uneven length or not."""
    lines = [
        {"prompt": "the king " * (k % 4), "completion": "and the queen spoke of love"} for k in range(60)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"text": tmp_path / "a.jsonl", "steps": 2, "cross_entropy": 0.3, "temperature": 2}
    assert distil(batch=4, output=tmp_path / "one", **options)[0] == 0
    assert distil(batch=2, accumulate=2, output=tmp_path / "two", **options)[0] == 0
    one, two = weights(tmp_path / "one/student"), weights(tmp_path / "two/student")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between checkpoints and resumed, the student is bit for bit the same, under its run_id."""
    assert distil(output=tmp_path / "whole", checkpoint_every=2)[0] == 0

    calls = Counter[str]()
    clip = torch.nn.utils.clip_grad_norm_

    def killed(*words: Any, **options: Any) -> torch.Tensor:
        calls["clip"] += 1
        if calls["clip"] == 6:  # in step 5; the last checkpoint is after step 3
            raise KeyboardInterrupt
        return clip(*words, **options)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", killed)
    assert distil(output=tmp_path / "cut", checkpoint_every=2)[0] == 1
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    code, marks = distil("--resume", output=tmp_path / "cut", checkpoint_every=2)
    assert code == 0
    assert marks.names().count("optimizer_step") == 2
    assert marks.runs[0]["resume"] is True
    assert marks.runs[0]["run_id"] == Marks.run_id
    assert same(tmp_path / "whole/student", tmp_path / "cut/student")
    assert not list((tmp_path / "cut").glob("*.tmp"))


def test_a_seed_decides_everything(distil: Distil, tmp_path: Path) -> None:
    """The same seed gives the same student, another one another."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert distil(output=tmp_path / name, seed=seed, steps=2)[0] == 0
    assert same(tmp_path / "a/student", tmp_path / "b/student")
    assert not same(tmp_path / "a/student", tmp_path / "c/student")


def test_a_loss_that_is_no_number_stops_before_harm(
    distil: Distil, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN ends the run with the step in one line; the last checkpoint is there and sound."""
    calls = Counter[str]()

    def broken(*words: Any) -> torch.Tensor:
        calls["kl"] += 1
        loss = kl(*words)
        return loss * float("nan") if calls["kl"] == 5 else loss

    kl = forward_kl
    monkeypatch.setattr(distill, "forward_kl", broken)
    code, _ = distil(checkpoint_every=2)
    assert code == 1
    line = last_line(capsys)
    assert "step 4" in line
    assert "checkpoint.pt" in line
    saved = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)
    assert saved["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in saved["student"].values())
    assert not (tmp_path / "out/student").exists()


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says what is wrong."""
    captured = capsys.readouterr()
    assert captured.out == ""
    said = [line for line in captured.err.replace("\r", "\n").splitlines() if line.startswith("kdclient")]
    assert len(said) == 1, captured.err
    assert "Traceback" not in captured.err
    return said[0]


def test_other_tokenizers_are_refused_with_both_names(
    distil: Distil, stranger: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Response distillation compares tokens, so the tokens must be the same."""
    assert distil(student=stranger)[0] == 1
    line = last_line(capsys)
    assert str(teacher) in line
    assert str(stranger) in line


def test_padding_of_a_vocabulary_is_cut_off(teacher: Path, tmp_path: Path) -> None:
    """Models of one tokenizer and different padding are compared on the tokens alone."""
    tokenizer = models.load_tokenizer(str(teacher), "teacher")
    padded = models.load_model(str(teacher), "teacher", torch.device("cpu"), torch.float32)
    student = models.tiny_student(tokenizer, 16)
    assert padded.config.vocab_size > student.config.vocab_size == len(tokenizer)
    size = models.check_vocabularies(("t", tokenizer, padded), ("s", tokenizer, student))
    assert size == len(tokenizer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": "/nowhere/at/all"}, ["teacher", "/nowhere/at/all"]),
        ({"student": "{empty}"}, ["student", "config.json"]),
        ({"text": "{empty}"}, ["no .txt"]),
        ({"text": "/nowhere.txt"}, ["/nowhere.txt"]),
        ({"held_out": 100000}, ["too few", "--held-out"]),
        ({"device": "cuda:77"}, ["cuda:77", "--device"]),
        ({"output": "/proc/nowhere"}, ["/proc/nowhere"]),
    ],
)
def test_what_is_wrong_is_one_line(
    distil: Distil,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str],
    words: list[str],
) -> None:
    """A user's mistake ends with exit code 1 and a line that names what was given."""
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _ = distil(**{key: str(value).replace("{empty}", str(empty)) for key, value in options.items()})
    assert code == 1
    line = last_line(capsys)
    assert all(word in line for word in words), line


def test_resuming_needs_the_same_run(
    distil: Distil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint, a broken one, one of other options or of another text: each is refused in a line."""
    assert distil("--resume")[0] == 1
    assert "nothing to resume" in last_line(capsys)
    assert distil(steps=4, checkpoint_every=2)[0] == 0
    capsys.readouterr()
    assert distil("--resume", steps=4, batch=3)[0] == 1
    assert "--batch 2, not 3" in last_line(capsys)
    (tmp_path / "b.txt").write_text("another text altogether " * 200)
    assert distil("--resume", steps=4, text=tmp_path / "b.txt")[0] == 1
    assert "another text" in last_line(capsys)
    (tmp_path / "out/checkpoint.pt").write_bytes(b"PK torn")
    assert distil("--resume", steps=4)[0] == 1
    assert "not a checkpoint" in last_line(capsys)


def test_the_learning_rate_rises_and_falls() -> None:
    """Linear from above 0 to the highest, then a cosine to a tenth."""
    rates = [distill.learning_rate(step, 2.0, 10, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.1)
    assert rates[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_a_model_short_of_logits_is_refused(teacher: Path, tmp_path: Path) -> None:
    """A student that cannot say every token of its tokenizer is no student."""
    tokenizer = models.load_tokenizer(str(teacher), "teacher")
    model = models.tiny_student(tokenizer, 16)
    model.config.vocab_size -= 1
    with pytest.raises(UserError, match="logits"):
        models.check_vocabularies(("t", tokenizer, model), ("s", tokenizer, model))


def test_the_tiny_student_has_seven_million_parameters(tmp_path: Path) -> None:
    """At the vocabulary of a real small model it is as large as it says."""
    tokenizer = models.load_tokenizer(str(make_model(tmp_path, "a b c")), "teacher")
    tokenizer.add_tokens([f"extra-{k}" for k in range(49_152 - len(tokenizer))])
    student = models.tiny_student(tokenizer, 256)
    assert 6.5e6 < sum(weight.numel() for weight in student.parameters()) < 7.5e6
