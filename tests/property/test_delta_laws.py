"""What holds for every change, whatever its size, its form and the dtype it is written in."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.numerics.delta import Delta, rounded, rounding_loss

FLOAT32 = 2.0**-23  # one step of the factors
FLOAT64 = 1e-13  # sums of some dozen float64 products
DOUBLE_ROUNDING = 1 + 2.0**-10  # half a step of a narrow dtype, and the float32 that a conversion may pass through
STEPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
"""A dtype's step relative to a power of two, and its smallest number."""

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(list(STEPS))
scales = st.sampled_from([1e-4, 1e-2, 1.0, 30.0])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_a_change_is_residuals_times_gains(edits: int, width: int, inner: int, seed: int) -> None:
    residuals, gains = draw(seed, edits, width), draw(seed + 1, edits, inner)
    delta, bound = Delta.of(residuals, gains), residuals.abs().T @ gains.abs()
    assert delta.shape == (width, inner)
    assert ((delta.dense() - residuals.T @ gains).abs() <= 2 * FLOAT32 * bound + FLOAT64).all()


@settings(deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_no_form_is_larger_than_the_other_would_be(edits: int, width: int, inner: int, seed: int) -> None:
    delta = Delta.of(draw(seed, edits, width), draw(seed + 1, edits, inner))
    kept = delta.left.numel() + (0 if delta.right is None else delta.right.numel())
    assert kept == min(width * inner, edits * (width + inner))


@settings(deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_no_change_has_more_rank_or_norm_than_it_says(edits: int, width: int, inner: int, seed: int) -> None:
    delta = Delta.of(draw(seed, edits, width), draw(seed + 1, edits, inner))
    values = torch.linalg.svdvals(delta.dense())
    # In the dense form the float32 rounding of each entry adds directions, all of them tiny.
    assert (values > 1e-5 * values[0]).sum() <= min(edits, delta.rank)
    assert abs(delta.norm - float(values.square().sum().sqrt())) <= 1e-12 * delta.norm


@settings(deadline=None)
@given(sizes, sizes, seeds, dtypes, scales)
def test_no_stored_number_is_further_off_than_half_a_step(
    width: int, inner: int, seed: int, dtype: torch.dtype, scale: float
) -> None:
    weight, delta = draw(seed, width, inner).to(dtype), Delta((scale * draw(seed + 1, width, inner)).float())
    exact, stored = weight.double() + delta.dense(), rounded(weight, delta)
    step = (exact.abs().log2().floor().exp2() * STEPS[dtype]).clamp(min=SMALLEST[dtype])
    assert ((stored.double() - exact).abs() <= DOUBLE_ROUNDING * step / 2).all()


@settings(deadline=None)
@given(sizes, sizes, seeds, dtypes, scales)
def test_a_change_and_its_negative_are_rounded_alike(
    width: int, inner: int, seed: int, dtype: torch.dtype, scale: float
) -> None:
    weight, change = draw(seed, width, inner).to(dtype), (scale * draw(seed + 1, width, inner)).float()
    assert torch.equal(rounded(-weight, Delta(-change)), -rounded(weight, Delta(change)))


@settings(deadline=None)
@given(sizes, sizes, seeds, dtypes)
def test_what_fits_the_dtype_is_stored_without_loss(width: int, inner: int, seed: int, dtype: torch.dtype) -> None:
    # Small whole numbers and their sums are in every dtype.
    weight = (8 * draw(seed, width, inner)).round().clamp(-50, 50).to(dtype)
    delta = Delta((8 * draw(seed + 1, width, inner)).round().clamp(-50, 50).float())
    stored = rounded(weight, delta)
    assert torch.equal(stored.double(), weight.double() + delta.dense())
    assert rounding_loss(weight, delta, stored) == 0


@settings(deadline=None)
@given(sizes, sizes, seeds, dtypes)
def test_a_change_far_under_the_step_is_lost_whole(width: int, inner: int, seed: int, dtype: torch.dtype) -> None:
    weight = (1 + draw(seed, width, inner).abs()).to(dtype)
    delta = Delta(torch.full((width, inner), STEPS[dtype] / 8))
    stored = rounded(weight, delta)
    assert torch.equal(stored, weight)
    assert rounding_loss(weight, delta, stored) == 1
