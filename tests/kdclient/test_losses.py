import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdclient.losses import cross_entropy, forward_kl


def logits(seed: int, shape: tuple[int, int, int] = (2, 5, 7), scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def backward(loss: torch.Tensor) -> None:
    """`loss.backward()`, which torch leaves without types."""
    torch.autograd.backward([loss])


def some_mask(seed: int, shape: tuple[int, int] = (2, 5)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[0, 0] = True
    return mask


def oracle(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float) -> float:
    """The formula with Python's floats, one term at a time."""
    total, valid = 0.0, 0
    for q_row, p_row, counted in zip(
        student.flatten(0, 1), teacher.flatten(0, 1), mask.flatten(), strict=True
    ):
        if not counted:
            continue
        valid += 1
        q = [math.exp(x / temperature) for x in q_row.tolist()]
        p = [math.exp(x / temperature) for x in p_row.tolist()]
        total += sum(
            a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q))) for a, b in zip(p, q, strict=True)
        )
    return temperature**2 * total / valid


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_forward_kl_is_its_formula(seed: int, temperature: float) -> None:
    """KL(teacher || student) times T^2, summed over the vocabulary, averaged over the counted tokens."""
    student, teacher, mask = logits(seed), logits(seed + 1), some_mask(seed)
    want = oracle(student, teacher, mask, temperature)
    assert forward_kl(student, teacher, mask, temperature).item() == pytest.approx(want, rel=1e-12)
    narrow = forward_kl(student.float(), teacher.float(), mask, temperature)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(want, rel=1e-4)


def test_gradients_are_right() -> None:
    """The gradient of both losses is that of finite differences; none reaches the teacher."""
    student = logits(1).requires_grad_()
    teacher, mask = logits(2).requires_grad_(), some_mask(3)
    assert torch.autograd.gradcheck(lambda s: forward_kl(s, teacher, mask, 2.0), student)
    targets = torch.randint(0, 7, (2, 5))
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, targets, mask), student)
    backward(forward_kl(student, teacher, mask))
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_perfect_student_loses_nothing(dtype: torch.dtype) -> None:
    """Equal logits give 0 and no gradient (the teacher's entropy is not in the loss), as does a shift."""
    teacher = logits(4).to(dtype)
    student = teacher.clone().requires_grad_()
    mask = torch.ones(2, 5, dtype=torch.bool)
    loss = forward_kl(student, teacher, mask, 2.0)
    backward(loss)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e-6
    assert forward_kl(logits(4) + 5, logits(4), mask).item() == pytest.approx(0, abs=1e-12)


def test_narrow_logits_give_no_negative_loss() -> None:
    """bfloat16 logits are widened before the softmax: no token's divergence is below rounding."""
    teacher = logits(5, (1, 200, 50)).bfloat16()
    student = (teacher.float() + 0.01 * logits(6, (1, 200, 50)).float()).bfloat16()
    for token in range(200):
        mask = torch.zeros(1, 200, dtype=torch.bool)
        mask[0, token] = True
        assert forward_kl(student, teacher, mask).item() >= -1e-6


def test_what_is_masked_does_not_count() -> None:
    """Anything may stand at a masked place, even NaN: loss and gradient do not change."""
    student, teacher, mask = logits(7), logits(8), some_mask(9)
    clean = student.clone().requires_grad_()
    backward(forward_kl(clean, teacher, mask))
    dirty = torch.where(mask[..., None], student, torch.nan).requires_grad_()
    loss = forward_kl(dirty, torch.where(mask[..., None], teacher, torch.inf), mask)
    backward(loss)
    assert loss.item() == forward_kl(student, teacher, mask).item()
    assert clean.grad is not None
    assert dirty.grad is not None
    assert torch.equal(clean.grad, dirty.grad)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_parts_of_a_batch_add_up(seed: int, cut: int) -> None:
    """With the count of the whole step, accumulation gives the loss of the undivided batch, however cut."""
    student, teacher, mask = logits(seed, (6, 4, 9)), logits(seed + 1, (6, 4, 9)), some_mask(seed, (6, 4))
    targets = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(seed))
    valid = mask.sum()
    parts = [slice(None, cut), slice(cut, None)]
    kl = sum(forward_kl(student[p], teacher[p], mask[p], 2.0, valid).item() for p in parts)
    assert kl == pytest.approx(forward_kl(student, teacher, mask, 2.0).item(), rel=1e-12)
    entropy = sum(cross_entropy(student[p], targets[p], mask[p], valid).item() for p in parts)
    assert entropy == pytest.approx(cross_entropy(student, targets, mask).item(), rel=1e-12)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """With T^2 the gradient of a warm softmax stays within the size of the cold one's."""
    mask = torch.ones(2, 5, dtype=torch.bool)
    norms = []
    for temperature in (20.0, 40.0):
        student = logits(10).requires_grad_()
        backward(forward_kl(student, logits(11), mask, temperature))
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_vocabularies_of_two_sizes_are_refused() -> None:
    """Nothing is padded silently: zeros would take most of the mass."""
    with pytest.raises(ValueError, match="student logits"):
        forward_kl(logits(1, (1, 2, 7)), logits(1, (1, 2, 8)), torch.ones(1, 2, dtype=torch.bool))


def test_nothing_counted_is_not_zero() -> None:
    """A loss over no token is unknown, not 0."""
    assert math.isnan(forward_kl(logits(1), logits(2), torch.zeros(2, 5, dtype=torch.bool)).item())
