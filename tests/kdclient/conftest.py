"""A daemon's end and a client of it; a teacher and a text small enough for a test, made offline."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdclient
from kdclient.client import Client
from tests.kdclient.recorder import Recorder

_WORDS = [
    "the",
    "king",
    "queen",
    "spoke",
    "of",
    "night",
    "day",
    "love",
    "went",
    "by",
    "sea",
    "sword",
    "crown",
]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "s") as running:
        yield running


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = kdclient.connect(str(tmp_path / "s"), spool=str(tmp_path / "spool"))
    yield made
    made.close()


def _sentences(count: int, seed: int) -> str:
    chance = random.Random(seed)  # noqa: S311 - no secret is made of it
    return "\n\n".join(" ".join(chance.choices(_WORDS, k=12)).capitalize() + "." for _ in range(count))


def make_model(folder: Path, words: str, *, hidden: int = 32, padded: int = 0) -> Path:
    """A random Llama with a byte-level tokenizer trained on the words.

    Args:
        folder: Where it goes.
        words: Text the tokenizer learns its merges from.
        hidden: Width.
        padded: Logits beyond the tokenizer's tokens.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words], trainer)
    special = {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast) + padded,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        # Wide enough that a random teacher has an opinion to be learned.
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random teacher, whose logits are padded by 8."""
    return make_model(tmp_path_factory.mktemp("models") / "teacher", _sentences(200, seed=1), padded=8)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of another tokenizer."""
    return make_model(tmp_path_factory.mktemp("models") / "stranger", "zebra quartz vex jumps " * 50)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with some thousand tokens of text."""
    path = tmp_path_factory.mktemp("text") / "plays.txt"
    path.write_text(_sentences(400, seed=2))
    return path
