"""The target's loss, term by term."""

from __future__ import annotations

import torch
from memedit.numerics.objective import decay_loss, into_ball, kl_loss, lead_loss, likelihood_loss


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


def test_a_lead_is_lost_only_as_far_as_it_must_be_kept() -> None:
    original = torch.tensor([0.0, -3.0, -4.0]).expand(4, 3)
    now = torch.tensor([[0.0, -1.0, -9.0], [0.0, -0.5, -0.7], [-2.0, 0.0, -1.0], [-8.0, -8.0, -9.5]])
    assert lead_loss(now, original, 1.0).tolist() == [0.0, 0.5, 3.0, 1.0]
    assert lead_loss(now, original, 9.0).tolist() == [2.0, 2.5, 5.0, 3.0]
    narrow = torch.tensor([[-1.0, -1.25, -4.0]])
    assert lead_loss(narrow, narrow, 1.0).tolist() == [0.0]
    assert lead_loss(narrow[:, [1, 0, 2]], narrow, 1.0).tolist() == [0.5]


def test_a_lost_lead_draws_the_two_tokens_that_compete() -> None:
    original = torch.tensor([[0.0, -3.0, -4.0]])
    now = torch.tensor([[-2.0, 0.0, -1.0]], requires_grad=True)
    lead_loss(now, original, 1.0).sum().backward()
    assert now.grad is not None and now.grad.tolist() == [[-1.0, 1.0, 0.0]]


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
