"""Held-out perplexity: how surprised a model is by text that it has not learned from."""

import hashlib
import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kdclient.data import Windows
from kdclient.errors import UserError
from kdclient.progress import bar

VERSION = "1"


class Perplexity(NamedTuple):
    """A perplexity with its error.

    Attributes:
        value: exp of the mean negative log-likelihood of a token.
        stderr: Standard error of `value`, from the spread between windows (tokens of one window are not
            independent); None with fewer than two windows.
        n: Tokens scored.
    """

    value: float
    stderr: float | None
    n: int


_MOST_NATS = 100.0
"""A loss that no model of text has; exp() would still be finite."""


@torch.no_grad()
def perplexity(
    model: Any, windows: Windows, vocabulary: int, run: Any, *, batch: int, what: str = "evaluating"
) -> Perplexity:
    """Perplexity of a model on windows; each batch is a phase `eval`.

    Args:
        model: A causal language model of transformers.
        windows: Text to score.
        vocabulary: Logits that mean tokens; those beyond are padding.
        run: Where phases are marked.
        batch: Windows at once.
        what: For the progress bar.

    Raises:
        UserError: No token counts, or the loss is not one of a model of text.
    """
    was_training = model.training
    model.eval()
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    for start in bar(range(0, len(windows), batch), what, unit="batch"):
        ids = windows.ids[start : start + batch].to(model.device)
        mask = windows.mask[start : start + batch, 1:].to(model.device)
        with run.phase("eval", tokens=ids.numel()):
            logits = model(ids, use_cache=False).logits[:, :-1, :vocabulary].float()
            losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            sums.append((losses.double() * mask).sum(dim=1).cpu())
            counts.append(mask.sum(dim=1).cpu())
    model.train(was_training)
    return _summary(torch.cat(sums), torch.cat(counts))


def _summary(sums: Tensor, counts: Tensor) -> Perplexity:
    """Ratio estimator over windows, and its standard error by the delta method."""
    total = int(counts.sum())
    if not total:
        raise UserError("no held-out token counts: give more text, or a larger --held-out")
    mean = float(sums.sum()) / total
    if not mean < _MOST_NATS:
        raise UserError(f"the model has no perplexity: its mean loss on held-out text is {mean:.3g} nats")
    value = math.exp(mean)
    windows = int((counts > 0).sum())
    if windows < 2:
        return Perplexity(value, None, total)
    residual = sums - mean * counts
    variance = float((residual**2).sum()) * windows / (windows - 1) / total**2
    return Perplexity(value, value * math.sqrt(variance), total)


def settings_sha256(windows: Windows, vocabulary: int) -> str:
    """Hash of what a perplexity depends on besides the model: only equal hashes may be compared.

    Args:
        windows: The text scored, as tokens.
        vocabulary: Logits taken into the softmax.
    """
    settings = {"text": windows.sha256(), "vocabulary": vocabulary, "version": VERSION}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
