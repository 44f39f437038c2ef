"""Minimize many small problems side by side: one vector each, one evaluation of all of them a step. Float32.

Each method proposes the next point of every problem from the loss and gradient at the last one. The caller moves the
point into its ball, evaluates it, and hands it back; a problem's own state never mixes with another's, so problems can
leave at any time (`keep`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's Adam defaults, which the published code uses
MEMORY = 6
"""Pairs of steps and gradient differences that L-BFGS keeps."""
FIRST, LONGEST = 0.1, 0.15
"""Lengths of its first step and of its longest, in units of the scale of the problem. Longer steps overshoot: a search
that stops as soon as the loss is small then ends at a longer change, which disturbs more."""
ENOUGH, SHRINK = 1e-4, 0.4
"""Armijo's share of the expected decrease; the factor of a step that did not reach it."""
SHORTEST = 1e-3
"""A step cut to this share of its direction gives up: the problem stands still."""
PATIENCE, GAIN = 10, 0.02
"""A problem is flat if its loss fell by less than the share `GAIN` in the last `PATIENCE` evaluations. It may be flat
at its beginning and fall later, where the softmax is sure of another token."""


class Descent(Protocol):
    """A method of descent for E problems."""

    def step(self, point: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Propose the next points (E, D), from the loss (E,) and gradient (E, D) at `point` (E, D)."""
        ...

    def keep(self, index: Tensor) -> None:
        """Keep only some of the problems, in this order."""
        ...

    @property
    def standing(self) -> Tensor | None:
        """Problems (E,) bool that no step improves; None where the method cannot tell."""
        ...

    @property
    def flat(self) -> Tensor | None:
        """Problems (E,) bool that hardly improved of late; None where the method cannot tell."""
        ...


class Adam:
    """Adam (Kingma and Ba 2015, alg. 1), with a step size (E,) for each problem."""

    def __init__(self, shape: torch.Size, rate: Tensor) -> None:
        self.rate, self.count = rate, 0
        self.mean, self.square = (torch.zeros(shape, device=rate.device) for _ in range(2))

    def step(self, point: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Propose the next points; the loss is not used."""
        self.count += 1
        first, second = BETAS
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()
        direction = self.mean / (1 - first**self.count)
        scale = (self.square / (1 - second**self.count)).sqrt() + EPSILON
        return point - self.rate[:, None] * direction / scale

    def keep(self, index: Tensor) -> None:
        """Keep only some of the problems."""
        self.rate, self.mean, self.square = self.rate[index], self.mean[index], self.square[index]

    @property
    def standing(self) -> Tensor | None:
        """None: Adam does not compare losses."""
        return None

    @property
    def flat(self) -> Tensor | None:
        """None, for the same reason."""
        return None


class LBFGS:
    """L-BFGS with backtracking (Nocedal and Wright 2006, alg. 7.4 and 3.1); `scale` (E,) is the unit of a step.

    Every proposal is one evaluation. If the loss fell enough there, it becomes the point from which the next direction
    is taken; else the step is cut and tried again from the old one. The caller may hand back another point than was
    proposed, as it does when it moves a point into its ball.
    """

    def __init__(self, shape: torch.Size, scale: Tensor) -> None:
        device = scale.device
        self.scale, self.begun = scale, False
        self.at, self.gradient, self.direction = (torch.zeros(shape, device=device) for _ in range(3))
        self.loss = torch.zeros(len(scale), device=device)
        self.share = torch.ones(len(scale), device=device)
        self.fresh = torch.ones(len(scale), dtype=torch.bool, device=device)
        self.moves: list[Tensor] = []
        self.bends: list[Tensor] = []
        self.taken: list[Tensor] = []  # (E,) bool: which problems use the pair
        self.lately: list[Tensor] = []  # (E,): the least losses after the last evaluations, the newest last

    def step(self, point: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Propose the next points."""
        if not self.begun:
            self.begun = True
            accepted = torch.ones_like(loss, dtype=torch.bool)
        else:
            moved, bent = point - self.at, gradient - self.gradient
            accepted = loss <= self.loss + ENOUGH * (self.gradient * moved).sum(-1).clamp_max(0)
            curved = accepted & ((moved * bent).sum(-1) > 0)
            self.moves, self.bends = [*self.moves, moved][-MEMORY:], [*self.bends, bent][-MEMORY:]
            self.taken = [*self.taken, curved][-MEMORY:]
        self.at = torch.where(accepted[:, None], point, self.at)
        self.gradient = torch.where(accepted[:, None], gradient, self.gradient)
        self.loss = torch.where(accepted, loss, self.loss)
        self.lately = [*self.lately, self.loss][-PATIENCE - 1 :]
        self.direction = torch.where(accepted[:, None], self._direction(), self.direction)
        self.share = torch.where(accepted, 1.0, self.share * SHRINK)
        # A direction that leads nowhere is given up for steepest descent once, then the problem stands still. This is
        # computed for all, whether any failed or not: to ask would make the host wait for a GPU in every step.
        failed = (self.share < SHORTEST) & ~self.fresh
        self.taken = [one & ~failed for one in self.taken]
        self.direction = torch.where(failed[:, None], -self._steepest()[:, None] * self.gradient, self.direction)
        self.share = torch.where(failed, 1.0, self.share)
        self.fresh = torch.where(failed, True, self.fresh & ~accepted)
        return self.at + self.share[:, None] * self.direction

    def _direction(self) -> Tensor:
        """The two loops: -H gradient, cut to the longest step."""
        found, steps = self.gradient, list[tuple[Tensor, Tensor]]()
        curvature = torch.zeros_like(self.loss)  # of the newest pair of each problem
        for move, bend, taken in zip(reversed(self.moves), reversed(self.bends), reversed(self.taken), strict=True):
            product = torch.where(taken, (move * bend).sum(-1), 0.0)
            inverse = torch.where(product > 0, 1 / product.clamp_min(1e-30), 0.0)
            along = inverse * (move * found).sum(-1)
            found = found - along[:, None] * bend
            steps.append((along, inverse))
            newest = torch.where(product > 0, product / bend.square().sum(-1).clamp_min(1e-30), 0.0)
            curvature = torch.where(curvature > 0, curvature, newest)
        found = torch.where(curvature > 0, curvature, self._steepest())[:, None] * found
        for (along, inverse), move, bend in zip(reversed(steps), self.moves, self.bends, strict=True):
            found = found + move * (along - inverse * (bend * found).sum(-1))[:, None]
        length = found.norm(dim=-1)
        return (
            -found
            * torch.where(length > LONGEST * self.scale, LONGEST * self.scale / length.clamp_min(1e-30), 1.0)[:, None]
        )

    def _steepest(self) -> Tensor:
        """The factor (E,) of the gradient in a first step."""
        return FIRST * self.scale / self.gradient.norm(dim=-1).clamp_min(1e-30)

    def keep(self, index: Tensor) -> None:
        """Keep only some of the problems."""
        for name in ("scale", "at", "gradient", "direction", "loss", "share", "fresh"):
            setattr(self, name, getattr(self, name)[index])
        self.moves, self.bends, self.taken, self.lately = (
            [one[index] for one in kept] for kept in (self.moves, self.bends, self.taken, self.lately)
        )

    @property
    def standing(self) -> Tensor | None:
        """Problems whose step was cut so often that it gives up."""
        return self.share < SHORTEST

    @property
    def flat(self) -> Tensor | None:
        """Problems whose loss fell by less than `GAIN` in the last `PATIENCE` evaluations."""
        if len(self.lately) <= PATIENCE:
            return torch.zeros_like(self.fresh)
        return self.loss > (1 - GAIN) * self.lately[0]
