"""Edits on top of others: rows that ask for nothing are the Gram matrix of their keys in the metric, no less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from examples.reference.editing import gap
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.numerics.solvers import Factor, gains, leverage
from torch import Tensor

SAME = 1e-8  # relative: float64 through two Cholesky factors
INNER, WIDTH = 12, 5


def problem(seed: int, edits: int, history: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A metric M (F, F), keys (E, F), past keys (P, F), residuals (E, D)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rows = draw(10 * INNER, INNER)
    return rows.T @ rows / len(rows), draw(edits, INNER), draw(history, INNER), draw(edits, WIDTH)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 20), st.floats(0.05, 20))
def test_rows_that_ask_for_nothing_add_their_gram_matrix_to_the_metric(
    seed: int, edits: int, history: int, ridge: float
) -> None:
    metric, keys, old, residuals = problem(seed, edits, history)
    factor = Factor(torch.linalg.cholesky(metric), ridge)
    both = gains(factor, torch.cat([keys, old]))
    found = torch.cat([residuals, torch.zeros(history, WIDTH, dtype=torch.float64)]).T @ both
    published = replace(factor, lower=torch.linalg.cholesky(metric + old.T @ old / ridge))
    assert gap(found, residuals.T @ gains(published, keys)) < SAME


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_they_are_moved_less_than_without_them(seed: int) -> None:
    metric, keys, old, residuals = problem(seed, 3, 3)
    factor = Factor(torch.linalg.cholesky(metric), 0.1)
    free = residuals.T @ gains(factor, keys)
    held = residuals.T @ gains(factor, torch.cat([keys, old]))[: len(keys)]
    assert float((old @ held.T).norm()) < float((old @ free.T).norm())


def test_of_one_key_the_old_and_the_new_each_get_half() -> None:
    """Why edits of one subject are asked for again, and not held, where a new one about it comes on top."""
    metric, keys, _, residuals = problem(0, 1, 1)
    factor = Factor(torch.linalg.cholesky(metric), 0.5)
    strength = float(leverage(factor, keys))
    held = residuals.T @ gains(factor, torch.cat([keys, keys]))[:1]
    got = (keys @ held.T / residuals).flatten().tolist()
    assert got == pytest.approx([strength / (2 * strength + 0.5)] * WIDTH)
    alone = (keys @ (residuals.T @ gains(factor, keys)).T / residuals).flatten().tolist()
    assert alone == pytest.approx([strength / (strength + 0.5)] * WIDTH)
