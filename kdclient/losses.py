"""Losses of a student against its teacher, in float32, with nothing shifted inside."""

import torch
from torch import Tensor
from torch.nn import functional


def forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    valid_tokens: Tensor | float | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher: KL(teacher || student), per token.

    `T^2 * sum_t m_t * sum_v p_v (log p_v - log q_v) / N`, p and q the softmax of logits / T (Hinton et
    al., arXiv 1503.02531: T^2 keeps the size of the gradient when T changes). It is 0 for equal logits.

    Args:
        student_logits: [B, T, V].
        teacher_logits: [B, T, V], of the same vocabulary; takes no gradient.
        mask: [B, T], true where the prediction counts.
        temperature: T > 0.
        valid_tokens: N; by default what this mask counts. With accumulation of gradients, the count of
            the whole step, so that each token weighs the same whichever part it is in.

    Returns:
        Scalar, in nats a token. NaN where the mask counts nothing and no N is given.

    Raises:
        ValueError: If the two vocabularies differ in size.
    """
    student, teacher = student_logits[mask], teacher_logits[mask].detach()
    if student.shape != teacher.shape:
        raise ValueError(f"student logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    # A log-softmax in bfloat16 gives negative divergences; float64 stays what it is.
    wide = torch.promote_types(student.dtype, torch.float32)
    log_q = functional.log_softmax(student.to(wide) / temperature, dim=-1)
    log_p = functional.log_softmax(teacher.to(wide) / temperature, dim=-1)
    summed = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return summed * temperature**2 / _count(mask, valid_tokens)


def cross_entropy(
    logits: Tensor, targets: Tensor, mask: Tensor, valid_tokens: Tensor | float | None = None
) -> Tensor:
    """Negative log-likelihood of the targets, per token.

    Args:
        logits: [B, T, V].
        targets: [B, T] token numbers.
        mask: [B, T], true where the prediction counts.
        valid_tokens: As in `forward_kl`.

    Returns:
        Scalar, in nats a token.
    """
    chosen = logits[mask]
    wide = torch.promote_types(chosen.dtype, torch.float32)
    summed = functional.cross_entropy(chosen.to(wide), targets[mask], reduction="sum")
    return summed / _count(mask, valid_tokens)


def _count(mask: Tensor, valid_tokens: Tensor | float | None) -> Tensor | float:
    return mask.sum() if valid_tokens is None else valid_tokens
