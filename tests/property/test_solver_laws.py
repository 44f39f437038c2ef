"""Theorems of the one law, with their converses; float64 throughout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.numerics.moments import Moment
from memedit.numerics.normal import Sums, by_sums
from memedit.numerics.solvers import SHIFTS, SMALLEST_PIVOT, gains, leverage, prepare_memit
from torch import Tensor

SAME = 1e-9  # relative: float64 through a Cholesky factor of a well-conditioned metric


def problem(seed: int, edits: int, inner: int = 12, width: int = 7) -> tuple[Moment, Tensor, Tensor]:
    """A moment of 200 tokens, keys (E, F) and residuals (E, D)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Moment.of(draw(200, inner)), draw(edits, inner), draw(edits, width)


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))


sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 30), st.floats(0.01, 100))


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_gains_equal_the_published_formula(given: tuple[int, int, float]) -> None:
    seed, edits, ridge = given
    moment, keys, residuals = problem(seed, edits)
    found = residuals.T @ gains(prepare_memit(moment, ridge), keys)
    # (lambda C + K K^T)^-1 K with keys as columns: kmeng01/memit, memit_main.py
    published = torch.linalg.solve(ridge * moment.mean + keys.T @ keys, keys.T) @ residuals
    assert gap(found, published.T) < SAME


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_fit_is_exact_only_as_the_ridge_goes(seed: int) -> None:
    moment, keys, residuals = problem(seed, edits=4)
    exact = residuals.T @ gains(prepare_memit(moment, 1e-12), keys)
    assert gap(keys @ exact.T, residuals) < 1e-8
    held = residuals.T @ gains(prepare_memit(moment, 10.0), keys)
    assert gap(keys @ held.T, residuals) > 1e-2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 25))
def test_permuting_edits_permutes_gains(seed: int, edits: int) -> None:
    moment, keys, _ = problem(seed, edits)
    factor = prepare_memit(moment, 1.0)
    order = torch.randperm(edits, generator=torch.Generator().manual_seed(seed))
    assert gap(gains(factor, keys[order]), gains(factor, keys)[order]) < SAME


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_small_and_the_large_form_agree(seed: int) -> None:
    moment, keys, residuals = problem(seed, edits=12)
    factor = prepare_memit(moment, 2.0)
    # One edit more than the width switches the form; an edit of no key adds nothing.
    larger = gains(factor, torch.cat([keys, torch.zeros(1, keys.shape[1], dtype=keys.dtype)]))
    assert gap(residuals.T @ larger[:-1], residuals.T @ gains(factor, keys)) < SAME
    assert float(larger[-1].norm()) == 0.0


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 9))
def test_sums_of_edits_in_parts_give_the_same_change(given: tuple[int, int, float], part: int) -> None:
    seed, edits, ridge = given
    moment, keys, residuals = problem(seed, edits)
    factor = prepare_memit(moment, ridge)
    sums = Sums.empty(keys.shape[1], residuals.shape[1], torch.device("cpu"))
    for some in torch.randperm(edits).split(part):
        sums.add_(keys[some], residuals[some])
    found, wanted = sums.delta(factor), residuals.T @ gains(factor, keys)
    assert gap(found, wanted) < SAME
    fitted = 1 - float((residuals - keys @ wanted.T).norm() / residuals.norm())
    assert sums.fitted(found) == pytest.approx(fitted, abs=1e-6)


def test_the_smaller_system_is_solved() -> None:
    inner, width = 1536, 256
    switch = next(n for n in range(1, 5000) if by_sums(n, inner, width))
    assert 0.4 * inner < switch < inner
    assert all(by_sums(n, inner, width) for n in range(switch, 5000, 97))
    # The counts meet where it switches: neither form costs more than a hundredth over the other there.
    by_edits = 2 * switch**2 * inner + switch**3 / 6
    assert by_edits == pytest.approx(inner**3 / 2 + inner**2 * width, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_the_scale_of_keys_does_not_move_the_fit(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    _, keys, residuals = problem(seed, edits=5)
    fits: list[Tensor] = []
    for factor in (1.0, scale):
        total = (rows * factor).T @ (rows * factor)
        moment = Moment(total, len(rows))
        fits.append((keys * factor) @ (residuals.T @ gains(prepare_memit(moment, 3.0), keys * factor)).T)
    assert gap(fits[1], fits[0]) < 1e-7


def test_leverage_averages_the_width_over_the_corpus() -> None:
    rows = torch.randn(500, 12, dtype=torch.float64)
    factor = prepare_memit(Moment(rows.T @ rows, 500), 1.0)
    assert float(leverage(factor, rows).mean()) == pytest.approx(12, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 2), st.floats(1e-3, 1e3))
def test_a_singular_moment_is_shifted_and_a_sound_one_is_not(seed: int, dead: int, twins: int, scale: float) -> None:
    """Units that never fire and units that always fire alike; float32 products make the sum's halves differ."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, 12, generator=generator, dtype=torch.float64).relu() * scale
    rows[:, :dead] = 0
    rows[:, 12 - twins :] = rows[:, 4 : 4 + twins]
    total = rows.T @ rows
    total += total.triu(1) * 1e-9
    factor = prepare_memit(Moment(total, 300), 1.0)
    assert factor.dead == dead
    assert (factor.shift > 0) == (dead + twins > 0)
    assert factor.shift in SHIFTS and factor.shift <= 1e-4
    # Symmetrized, and tau of trace(C) / F on its diagonal: nothing else was done to it.
    mean = (total + total.T) / 600
    tau = factor.shift * float(mean.trace()) / 12
    assert gap(factor.lower @ factor.lower.T, mean + tau * torch.eye(12, dtype=torch.float64)) < SAME
    # Where a unit never fired in a key either, nothing of the weight that reads it changes.
    found = gains(factor, rows[:5])
    assert torch.isfinite(found).all() and float(found[:, :dead].abs().sum()) == 0
    below = SHIFTS[: SHIFTS.index(factor.shift)]
    for less in below:
        lower, info = torch.linalg.cholesky_ex(mean + less * mean.trace() / 12 * torch.eye(12, dtype=torch.float64))
        assert info or lower.diagonal().square().min() < SMALLEST_PIVOT * mean.trace() / 12


def test_a_moment_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite, or zero"):
        prepare_memit(Moment.empty(4), 1.0)
    bad = torch.eye(4, dtype=torch.float64)
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        prepare_memit(Moment(bad, 5), 1.0)
