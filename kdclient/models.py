"""Teachers and students: loaded from a Hugging Face model id or a folder, or made fresh."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from kdclient.errors import UserError

logging.set_verbosity_error()  # its advice is about its own use; ours are one-line errors

TINY = "tiny"


def device(wanted: str) -> torch.device:
    """The device to compute on.

    Args:
        wanted: `auto`, or a name of torch's: `cpu`, `cuda`, `cuda:1`.

    Raises:
        UserError: If this machine does not have it.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(wanted)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"no device {wanted!r} on this machine: use --device auto, cpu, cuda or cuda:N"
        ) from error
    return found


def load_tokenizer(name: str, what: str) -> Any:
    """The tokenizer of a model.

    Args:
        name: Hugging Face model id or folder.
        what: `teacher`, `student` or `model`, for the message.

    Raises:
        UserError: If there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise _not_found(name, what, error) from error


def load_model(name: str, what: str, place: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model, in evaluation mode.

    Args:
        name: Hugging Face model id or folder.
        what: `teacher`, `student` or `model`, for the message.
        place: Where its weights go.
        dtype: Of its weights.

    Raises:
        UserError: If it cannot be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except Exception as error:
        raise _not_found(name, what, error) from error
    return model.to(place).eval()


def _not_found(name: str, what: str, error: Exception) -> UserError:
    path = Path(name)
    if path.is_dir():
        whole = (path / "config.json").is_file()
        detail = (str(error).strip() or repr(error)).splitlines()[0] if whole else "it has no config.json"
        return UserError(f"cannot load the {what} from folder {name}: {detail}")
    return UserError(
        f"cannot load the {what} {name!r}: no such folder, and no Hugging Face model that is in the cache or "
        f"can be fetched; give the folder of a model, or an id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def tiny_student(tokenizer: Any, window: int) -> Any:
    """A fresh Llama of about 7 M parameters at a vocabulary of 49,152, for the teacher's tokenizer.

    Its weights come from torch's current random state.

    Args:
        tokenizer: The teacher's.
        window: Longest text it must read, in tokens, at least.
    """
    config = LlamaConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max(2048, window),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def vocabulary_size(tokenizer: Any) -> int:
    """Tokens that the tokenizer can give: its highest number and 1. Models pad theirs beyond it."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_vocabularies(teacher: tuple[str, Any, Any], student: tuple[str, Any, Any]) -> int:
    """How many logits of both models mean the same tokens.

    Args:
        teacher: Name, tokenizer and model.
        student: Likewise.

    Returns:
        Logits to compare; what a model has beyond them is padding, and is cut off before the softmax.

    Raises:
        UserError: If the tokenizers differ, or a model has fewer logits than its tokenizer has tokens.
    """
    (teacher_name, teacher_tokenizer, _), (student_name, student_tokenizer, _) = teacher, student
    if teacher_tokenizer.get_vocab() != student_tokenizer.get_vocab():
        raise UserError(
            f"teacher {teacher_name} and student {student_name} have different tokenizers "
            f"({len(teacher_tokenizer)} and {len(student_tokenizer)} tokens): take a student of the "
            f"teacher's family, or --student {TINY}"
        )
    size = vocabulary_size(teacher_tokenizer)
    for name, _, model in (teacher, student):
        if model.config.vocab_size < size:
            raise UserError(
                f"{name} has {model.config.vocab_size} logits, but its tokenizer has {size} tokens"
            )
    return size
