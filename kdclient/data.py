"""Text in, windows of tokens out: in an order that a seed and a position fix."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdclient.errors import UserError
from kdclient.progress import bar

_SUFFIXES = (".txt", ".md", ".jsonl")
_TOKENISE_AT_ONCE = 64  # pieces of text: enough to keep the tokenizer's threads busy
_PIECE_CHARACTERS = 20_000


class Windows:
    """Windows of equal length, and an endless, shuffled walk through them.

    Attributes:
        ids: [N, W] token numbers.
        mask: [N, W], true for a token that is to be learned (a prompt is not).
    """

    def __init__(self, ids: Tensor, mask: Tensor, seed: int = 0) -> None:
        self.ids = ids
        self.mask = mask
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.ids.shape[0]

    def batch(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        """The windows from `position` to `position + count` of the walk.

        Each time round is a new permutation. Nothing but the seed and the position decides what comes,
        so a position is all that a resumed run needs.

        Args:
            position: Windows taken before.
            count: Windows wanted.

        Returns:
            Token numbers and mask, [count, W] each.
        """
        rows = torch.tensor([self._row(place) for place in range(position, position + count)])
        return self.ids[rows], self.mask[rows]

    def _row(self, position: int) -> int:
        turn, place = divmod(position, len(self))
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + turn)
            self._order = (turn, torch.randperm(len(self), generator=generator).tolist())
        return self._order[1][place]

    def sha256(self) -> str:
        """Hash of tokens and mask: equal for the same text read in the same way."""
        digest = hashlib.sha256(str(tuple(self.ids.shape)).encode())
        digest.update(self.ids.numpy().tobytes())
        digest.update(self.mask.numpy().tobytes())
        return digest.hexdigest()


def load(
    paths: Sequence[str], tokenizer: Any, *, window: int, held_out: int, seed: int
) -> tuple[Windows, Windows]:
    """Read text, tokenise it once, cut it into windows, and set some aside.

    Args:
        paths: Files or folders of .txt, .md and .jsonl; a JSON line has `text`, or `prompt` and
            `completion` (the prompt is read and not learned).
        tokenizer: Of transformers.
        window: Tokens a window.
        held_out: Windows set aside, evenly spread over the text.
        seed: Of the order of the others.

    Returns:
        The windows to learn from, and those held out.

    Raises:
        UserError: If there is no text, or too little of it.
    """
    documents = list(_documents(paths))
    ids, mask = _tokenise(documents, tokenizer)
    count = len(ids) // window
    if count <= held_out:
        raise UserError(
            f"the text has {len(ids)} tokens, which is {count} windows of {window}: too few to hold out "
            f"{held_out} and learn from the rest; give more text, or smaller --window or --held-out"
        )
    table = torch.tensor(ids[: count * window], dtype=torch.int64).view(count, window)
    learned = torch.tensor(mask[: count * window], dtype=torch.bool).view(count, window)
    aside = torch.zeros(count, dtype=torch.bool)
    aside[[(2 * k + 1) * count // (2 * held_out) for k in range(held_out)]] = True
    return Windows(table[~aside], learned[~aside], seed), Windows(table[aside], learned[aside])


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"no {', '.join(_SUFFIXES)} file in {given}: give a folder with text")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"no such file or folder: {given}")


def _documents(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Prompt (not learned; mostly empty) and text of each document."""
    for path in _files(paths):
        try:
            text = path.read_text(encoding="utf-8", errors="strict")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if path.suffix == ".jsonl":
            yield from _records(path, text)
        else:
            # Long files go in pieces, so that a bar moves and no tokenizer sees megabytes at once.
            yield from (("", piece) for piece in _pieces(text))


def _records(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            pair = ("", record["text"]) if "text" in record else (record["prompt"], record["completion"])
        except (ValueError, KeyError, TypeError):
            pair = (None, None)
        if not all(isinstance(part, str) for part in pair):
            raise UserError(
                f'{path}, line {number}: wanted {{"text": ...}}, or {{"prompt": ..., "completion": ...}}, '
                "of strings"
            )
        yield pair


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = text.find("\n\n", start + _PIECE_CHARACTERS)
        end = len(text) if cut < 0 else cut
        yield text[start:end]
        start = end


def _tokenise(documents: list[tuple[str, str]], tokenizer: Any) -> tuple[list[int], list[bool]]:
    if not any(text.strip() for _, text in documents):
        raise UserError("the text is empty: give files with something in them to --text")
    ids: list[int] = []
    mask: list[bool] = []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    starts = range(0, len(documents), _TOKENISE_AT_ONCE)
    for start in bar(starts, "tokenising", unit="batch"):
        group = documents[start : start + _TOKENISE_AT_ONCE]
        prompts = _encode(tokenizer, [prompt for prompt, _ in group])
        texts = _encode(tokenizer, [text for _, text in group])
        for prompt, text in zip(prompts, texts, strict=True):
            ids += prompt + text + end
            mask += [False] * len(prompt) + [True] * (len(text) + len(end))
    return ids, mask


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return encoded
