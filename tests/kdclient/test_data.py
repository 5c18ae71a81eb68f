import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdclient.data import Windows, load
from kdclient.errors import UserError


def numbered(count: int, seed: int = 0) -> Windows:
    ids = torch.arange(count)[:, None].expand(count, 3).contiguous()
    return Windows(ids, torch.ones_like(ids, dtype=torch.bool), seed)


class Letters:
    """A tokenizer whose tokens are the bytes."""

    eos_token_id = 0

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


def read(*paths: Path, window: int = 8, held_out: int = 2, seed: int = 0) -> tuple[Windows, Windows]:
    return load(list(map(str, paths)), Letters(), window=window, held_out=held_out, seed=seed)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.integers(0, 5))
def test_each_time_round_takes_every_window_once(count: int, seed: int, turn: int) -> None:
    """A walk is a permutation after the other."""
    ids, _ = numbered(count, seed).batch(turn * count, count)
    assert sorted(ids[:, 0].tolist()) == list(range(count))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(0, 200), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_position_is_all_that_the_order_depends_on(count: int, start: int, sizes: list[int]) -> None:
    """However the walk is cut into batches, and wherever it is taken up, the same windows come."""
    whole, _ = numbered(count).batch(start, sum(sizes))
    parts, position = [], start
    for size in sizes:
        parts.append(numbered(count).batch(position, size)[0])
        position += size
    assert torch.equal(whole, torch.cat(parts))


def test_a_seed_is_an_order() -> None:
    """Another seed, and another time round, is another order."""
    first, again, other = (numbered(50, seed).batch(0, 50)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, numbered(50, 1).batch(50, 50)[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 400), st.integers(1, 2))
def test_text_is_learned_or_held_out_never_both(
    tmp_path_factory: pytest.TempPathFactory, length: int, held: int
) -> None:
    """All windows of the text are there once, and the held-out ones are spread over it."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    text = "".join(chr(97 + k % 26) for k in range(length))
    path.write_text(text)
    if length + 1 < 8 * (held + 1):
        with pytest.raises(UserError, match="too few"):
            read(path, held_out=held)
        return
    train, aside = read(path, held_out=held)
    whole = torch.tensor([*text.encode(), 0][: (length + 1) // 8 * 8]).view(-1, 8)
    assert len(aside) == held
    found = sorted(torch.cat([train.ids, aside.ids]).tolist())
    assert found == sorted(whole.tolist())


def test_a_prompt_is_read_and_not_learned(tmp_path: Path) -> None:
    """Of a JSON line with a prompt only the completion, and the end after it, is in the mask."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "ab", "completion": "xyz"}) + "\n" for _ in range(4)) + "\n"
    )
    train, aside = read(path, window=6, held_out=1)
    for windows in (train, aside):
        assert windows.ids.tolist() == [[*b"abxyz", 0]] * len(windows)
        assert windows.mask.tolist() == [[False] * 2 + [True] * 4] * len(windows)


def test_a_folder_is_read_whole_and_in_order(tmp_path: Path) -> None:
    """Texts below a folder count, in the order of their names; other files do not."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("B" * 31)
    (tmp_path / "a.txt").write_text("A" * 31)
    (tmp_path / "c.bin").write_bytes(b"\xff" * 40)
    train, aside = read(tmp_path, held_out=1)
    assert len(train) + len(aside) == 8
    assert sorted({chr(row[0]) for row in torch.cat([train.ids, aside.ids]).tolist()}) == ["A", "B"]


def test_long_files_lose_nothing_at_the_cuts(tmp_path: Path) -> None:
    """A file of many pieces comes out whole, but for the end marks between its pieces."""
    text = "\n\n".join(f"paragraph {k} " + "word " * 50 for k in range(400))
    (tmp_path / "a.txt").write_text(text)
    train, aside = read(tmp_path / "a.txt", window=2, held_out=1)
    # Window 1 of 2 each: the middle one of the text was set aside.
    middle = (len(train) + 1) // 2
    ids = torch.cat([train.ids[:middle], aside.ids, train.ids[middle:]]).flatten().tolist()
    got = bytes(i for i in ids if i).decode()
    assert text.startswith(got)
    assert len(text) - len(got) <= 1


def test_the_hash_knows_text_and_mask() -> None:
    """Other tokens, or the same read with another mask, hash differently."""
    one, two = numbered(4), numbered(5)
    masked = Windows(one.ids, torch.zeros_like(one.mask))
    assert one.sha256() == numbered(4, seed=9).sha256()
    assert len({one.sha256(), two.sha256(), masked.sha256()}) == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n \n", "empty"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "line 2"),
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.jsonl", b'{"text": 3}\n', "line 1"),
        ("a.jsonl", b'{"text": \n', "line 1"),
        ("a.bin", b"x", "no .txt"),
        ("a.txt", b"short", "too few"),
    ],
)
def test_bad_text_is_refused_in_a_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """What is wrong with a text is said in one line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path is in the line."""
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        read(tmp_path / "nowhere")


def test_line_separators_inside_a_text_are_text(tmp_path: Path) -> None:
    """A JSON line ends with a newline and nothing else: U+2028 in a text does not break it."""
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b" * 40}, ensure_ascii=False) + "\n", encoding="utf-8")
    train, _ = read(path)
    assert len(train) > 0
