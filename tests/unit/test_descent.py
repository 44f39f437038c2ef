"""Descent of many problems side by side: to the minimum, each on its own, and in few evaluations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from memedit.numerics.descent import LBFGS, PATIENCE, Adam, Descent
from memedit.numerics.objective import along_ball, into_ball
from torch import Tensor

E, D = 5, 12


def problems(seed: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """E smooth convex problems of different scale and condition: log-sum-exp of affine functions, plus a square."""
    draw = torch.Generator().manual_seed(seed)
    slopes = torch.randn(E, 40, D, generator=draw) * torch.logspace(-1, 0.5, E)[:, None, None]
    offsets = torch.randn(E, 40, generator=draw)

    def measure(point: Tensor) -> tuple[Tensor, Tensor]:
        at = point.clone().requires_grad_()
        loss = torch.logsumexp(torch.einsum("ekd,ed->ek", slopes[: len(at)], at) + offsets[: len(at)], -1)
        loss = loss + 0.05 * at.square().sum(-1)
        (gradient,) = torch.autograd.grad(loss.sum(), at)
        return loss.detach(), gradient

    return measure


def run(method: Descent, measure: Callable[[Tensor], tuple[Tensor, Tensor]], steps: int) -> list[Tensor]:
    point, losses = torch.zeros(E, D), list[Tensor]()
    for _ in range(steps):
        loss, gradient = measure(point)
        losses.append(loss)
        point = method.step(point, loss, gradient)
    return losses


def lowest(measure: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The minimum by torch's own L-BFGS in float64-like care: many iterations, strong Wolfe."""
    point = torch.zeros(E, D, requires_grad=True)
    optimizer = torch.optim.LBFGS([point], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss, gradient = measure(point.detach())
        point.grad = gradient
        return loss.sum()

    optimizer.step(closure)  # type: ignore[arg-type]
    return measure(point.detach())[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_lbfgs_reaches_the_minimum_of_every_problem(seed: int) -> None:
    measure = problems(seed)
    losses = run(LBFGS(torch.Size((E, D)), torch.ones(E)), measure, 80)
    best = torch.stack(losses).amin(0)
    assert torch.allclose(best, lowest(measure), atol=2e-3)


@pytest.mark.slow
def test_it_needs_fewer_evaluations_than_adam() -> None:
    measure, wanted = problems(0), lowest(problems(0)) + 0.05

    def count(losses: list[Tensor]) -> Tensor:
        return (torch.stack(losses) > wanted).sum(0)

    # The minima are up to twice as far as the unit of the problems.
    second = count(run(LBFGS(torch.Size((E, D)), torch.full((E,), 2.0)), measure, 200))
    first = count(run(Adam(torch.Size((E, D)), torch.full((E,), 0.05)), measure, 200))
    assert float(second.float().mean()) < float(first.float().mean()) / 2


def test_adam_is_torchs() -> None:
    measure = problems(1)
    ours = run(Adam(torch.Size((E, D)), torch.full((E,), 0.05)), measure, 12)
    point = torch.zeros(E, D, requires_grad=True)
    optimizer, theirs = torch.optim.Adam([point], lr=0.05), list[Tensor]()
    for _ in range(12):
        loss, point.grad = measure(point.detach())
        theirs.append(loss)
        optimizer.step()
    assert torch.allclose(torch.stack(ours), torch.stack(theirs), atol=1e-5)


@pytest.mark.parametrize("kind", [Adam, LBFGS])
def test_a_problem_moves_the_same_when_others_leave(kind: type[Adam] | type[LBFGS]) -> None:
    measure = problems(2)
    together, alone = kind(torch.Size((E, D)), torch.full((E,), 0.3)), kind(torch.Size((E, D)), torch.full((E,), 0.3))
    one, other = torch.zeros(E, D), torch.zeros(E, D)
    for _ in range(4):
        one, other = (method.step(at, *measure(at)) for method, at in ((together, one), (alone, other)))
    index = torch.tensor([0, 1, 2])
    alone.keep(index)
    other = other[index]
    for _ in range(6):
        one, other = (method.step(at, *measure(at)) for method, at in ((together, one), (alone, other)))
        assert torch.allclose(one[:3], other, atol=1e-5)


def test_a_point_moved_into_a_ball_still_descends() -> None:
    measure, method, radius = problems(0), LBFGS(torch.Size((E, D)), torch.ones(E)), torch.full((E,), 0.05)
    point = torch.zeros(E, D)
    start = measure(point)[0]
    lowest_seen = start
    for _ in range(30):
        loss, gradient = measure(point)
        lowest_seen = torch.minimum(lowest_seen, loss)
        point = into_ball(method.step(point, loss, along_ball(gradient, point, radius)), radius)
        assert bool((point.norm(dim=-1) <= 0.05 + 1e-6).all())
    assert bool((lowest_seen < start).all())


def test_a_problem_that_no_step_improves_stands_still() -> None:
    method, point = LBFGS(torch.Size((2, D)), torch.ones(2)), torch.zeros(2, D)
    slope = torch.ones(2, D)
    for number in range(24):
        # The first problem's loss only rises whatever is tried; the second falls along its gradient.
        loss = torch.stack([torch.tensor(float(number > 0)), point[1].sum()])
        point = method.step(point, loss, slope)
    assert method.standing is not None
    assert method.standing.tolist() == [True, False]


def test_a_problem_that_hardly_gains_is_flat_and_one_that_gains_is_not() -> None:
    method, point, slope = LBFGS(torch.Size((3, D)), torch.ones(3)), torch.zeros(3, D), torch.ones(3, D)
    for number in range(2 * PATIENCE):
        # Of losses between 1 and 8, the first falls by 0.1 % a step, the others by 3 %.
        loss = torch.tensor([8 * 0.999**number, 8 * 0.97**number, 2 * 0.97**number])
        point = method.step(point, loss, 1e-9 * slope)
        assert method.flat is not None
        assert method.flat.tolist() == [number >= PATIENCE, False, False]
    method.keep(torch.tensor([2, 0]))
    assert method.flat is not None
    assert method.flat.tolist() == [False, True]


def test_at_the_surface_of_the_ball_only_what_pulls_outward_is_taken_away() -> None:
    point = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    gradient = torch.tensor([[-3.0, 1.0], [3.0, 1.0], [-3.0, 1.0]])  # outward, inward, inside the ball
    wanted = torch.tensor([[0.0, 1.0], [3.0, 1.0], [-3.0, 1.0]])
    assert torch.allclose(along_ball(gradient, point, torch.full((3,), 2.0)), wanted)
