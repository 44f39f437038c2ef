"""The target's loss, term by term."""

from __future__ import annotations

import torch
from memedit.numerics.objective import decay_loss, into_ball, kl_loss, likelihood_loss


def test_likelihood_is_a_mean_over_tokens_then_over_contexts() -> None:
    log_probs = torch.tensor([[[-1.0, -3.0], [-2.0, 99.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert likelihood_loss(log_probs, mask, torch.tensor([0.5, 0.5])).tolist() == [2.0]
    assert likelihood_loss(log_probs, mask, torch.tensor([1.0, 0.0])).tolist() == [2.0]
    assert likelihood_loss(log_probs * 2, mask, torch.tensor([1.0, 0.0])).tolist() == [4.0]


def test_essence_is_zero_at_the_start_and_positive_elsewhere() -> None:
    original = torch.randn(3, 11).log_softmax(-1)
    assert torch.allclose(kl_loss(original, original), torch.zeros(3), atol=1e-6)
    moved = torch.randn(3, 11).log_softmax(-1)
    found = kl_loss(moved, original)
    assert torch.allclose(found, (moved.exp() * (moved - original)).sum(-1), atol=1e-6)
    assert bool((found > 0).all())


def test_decay_has_a_gradient_at_zero() -> None:
    change = torch.zeros(2, 4, requires_grad=True)
    decay_loss(change, torch.ones(2, 4)).sum().backward()
    assert change.grad is not None and torch.isfinite(change.grad).all()
    assert torch.allclose(decay_loss(torch.ones(1, 4) * 3, torch.ones(1, 4)), torch.tensor([1.5]))


def test_the_ball_moves_only_what_is_outside() -> None:
    change = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    found = into_ball(change, torch.tensor([1.0, 1.0]))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert torch.equal(found[1], change[1])
