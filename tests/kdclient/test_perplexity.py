"""Held-out perplexity: a ratio over tokens with its error, and a refusal where there is none."""

import math

import pytest
import torch

from kdclient.errors import UserError
from kdclient.perplexity import _summary


def test_perplexity_is_exp_of_the_mean_loss_a_token() -> None:
    """Windows count by their tokens, not one each."""
    score = _summary(torch.tensor([10.0, 60.0], dtype=torch.float64), torch.tensor([10, 30]))
    assert score.value == pytest.approx(math.exp(70 / 40))
    assert score.n == 40
    assert score.stderr is not None
    assert score.stderr > 0


def test_windows_that_agree_have_no_error() -> None:
    """The error is that of windows that differ."""
    score = _summary(torch.tensor([20.0, 60.0], dtype=torch.float64), torch.tensor([10, 30]))
    assert score.stderr == pytest.approx(0, abs=1e-9)


def test_no_token_is_no_number() -> None:
    """Without a token that counts there is nothing to say."""
    with pytest.raises(UserError, match="no held-out token"):
        _summary(torch.tensor([0.0]), torch.tensor([0]))


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 5000.0])
def test_model_that_diverged_has_no_perplexity(loss: float) -> None:
    """A loss that no model of text has is refused, not written down as infinity."""
    with pytest.raises(UserError, match="has no perplexity"):
        _summary(torch.tensor([loss, loss], dtype=torch.float64), torch.tensor([1, 1]))
