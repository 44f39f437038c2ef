"""The losses of a target search, per edit, and the ball that bounds its change. Everything is float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def likelihood_loss(log_probs: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """-log p of the object, mean over its tokens, weighted over contexts.

    log_probs (E, X, M) of the object's tokens, mask (E, X, M) 1 where a token is, weights (X,) summing to 1 -> (E,).
    """
    per_context = -(log_probs * mask).sum(-1) / mask.sum(-1)
    return (per_context * weights).sum(-1)


def kl_loss(log_probs: Tensor, original: Tensor) -> Tensor:
    """KL(p || original) of the next token, where p has these log-probabilities; (E, V), (E, V) -> (E,).

    At the bare subject's last token p is the edited model's, the direction of the published code (kmeng01/memit,
    compute_z.py). At a token of a removal p is the prediction about unknown subjects, and `original` the edited one: it
    is then cross-entropy, as an edit's loss is, less the entropy of p, so that 0 means reached.
    """
    return functional.kl_div(original, log_probs, log_target=True, reduction="none").sum(-1)


def lead_loss(log_probs: Tensor, original: Tensor, most: float) -> Tensor:
    """How much less the likeliest token of `original` leads all others than it did; (E, V), (E, V) -> (E,).

    Both are log-probabilities, and a lead is a difference of two. One larger than `most` counts as `most`, so the loss
    is 0 where the token leads by that, or as it did. KL does not see which token is first: where two are nearly as
    likely, a small divergence changes it. The published methods have no such term.
    """
    first = original.argmax(-1, keepdim=True)
    return (_lead(original, first).clamp_max(most) - _lead(log_probs, first)).clamp_min(0)


def _lead(log_probs: Tensor, token: Tensor) -> Tensor:
    """The lead (E,) of a token (E, 1) over the likeliest other one."""
    rest = log_probs.scatter(-1, token, float("-inf")).max(-1).values
    return log_probs.gather(-1, token)[..., 0] - rest


def decay_loss(change: Tensor, start: Tensor) -> Tensor:
    """|change| / |start|^2, as published; (E, D), (E, D) -> (E,)."""
    # The gradient of a norm at zero is NaN; with the smallest number added it is zero.
    length = torch.sqrt(change.square().sum(-1) + torch.finfo(change.dtype).tiny)
    return length / start.square().sum(-1)


def along_ball(gradient: Tensor, change: Tensor, radius: Tensor) -> Tensor:
    """The part of a gradient (E, D) along which a change can move that lies on its ball's surface and pulls outward.

    Inside the ball, or where descent leads inward, it is the gradient itself. Without this, a step of a line search
    would be moved back to where it began.
    """
    length = change.norm(dim=-1)
    outward = change / length.clamp_min(1e-30)[:, None]
    pull = (gradient * outward).sum(-1)
    held = (length >= radius * (1 - 1e-4)) & (pull < 0)
    return gradient - torch.where(held, pull, 0.0)[:, None] * outward


def into_ball(change: Tensor, radius: Tensor) -> Tensor:
    """Scale each row of `change` (E, D) down to the length `radius` (E,) where it is longer."""
    length = change.norm(dim=-1)
    return change * torch.where(length > radius, radius / length.clamp_min(1e-30), 1.0)[:, None]
