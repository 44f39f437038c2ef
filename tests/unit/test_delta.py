"""A change is float32 factors, and it enters a weight in one way."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from memedit.numerics.delta import Delta, rounded, rounding_loss


def factors(edits: int, width: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals (E, D) and gains (E, F), float64."""
    draw = torch.Generator().manual_seed(edits)
    residuals = torch.randn(edits, width, dtype=torch.float64, generator=draw)
    return residuals, torch.randn(edits, inner, dtype=torch.float64, generator=draw)


def test_the_smaller_form_is_kept() -> None:
    # 6 x 12 values dense: three edits take 54 in factors, four take 72.
    few, many = Delta.of(*factors(3, 6, 12)), Delta.of(*factors(4, 6, 12))
    assert few.right is not None and few.left.shape == (6, 3) and few.right.shape == (3, 12)
    assert many.right is None and many.left.shape == (6, 12)
    assert few.shape == many.shape == (6, 12)
    assert few.left.dtype == few.right.dtype == many.left.dtype == torch.float32


def test_the_rank_is_at_most_that_of_the_form() -> None:
    assert Delta.of(*factors(3, 6, 12)).rank == 3
    assert Delta.of(*factors(4, 6, 12)).rank == 6
    assert Delta(torch.ones(6, 9), torch.ones(9, 12)).rank == 6


def test_the_product_is_float64_and_the_same_for_every_number_of_threads() -> None:
    # More rows than one block of the product holds.
    delta = Delta(*(part.float() for part in (factors(70, 700, 900)[0].T, factors(70, 700, 900)[1])))
    threads, products = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            products.append(delta.dense())
    finally:
        torch.set_num_threads(threads)
    assert products[0].dtype == torch.float64
    assert all(torch.equal(products[0], product) for product in products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_keeps_its_dtype_and_is_not_touched(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 12).to(dtype)
    before, delta = weight.clone(), Delta.of(*factors(3, 6, 12))
    stored = rounded(weight, delta)
    assert stored.dtype == dtype and stored.shape == weight.shape
    assert torch.equal(weight, before) and not torch.equal(stored, weight)


def test_the_sum_is_made_before_it_is_rounded() -> None:
    # 2^-11 is half a step of float16 at 1: one such change is lost to a tie, and two in one sum are a whole step.
    weight, half_step = torch.ones(1, 1, dtype=torch.float16), 2.0**-11
    assert rounded(weight, Delta(torch.tensor([[half_step]]))).item() == 1
    both = Delta(torch.tensor([[half_step, half_step]]), torch.ones(2, 1))
    assert rounded(weight, both).item() == 1 + 2 * half_step


def test_the_loss_tells_what_the_dtype_swallowed() -> None:
    weight, small = torch.ones(4, 4, dtype=torch.bfloat16), Delta(torch.full((4, 4), 2.0**-12))
    assert rounding_loss(weight, small, rounded(weight, small)) == 1
    whole = Delta(torch.full((4, 4), 0.5))
    assert rounding_loss(weight, whole, rounded(weight, whole)) == 0


def test_no_change_loses_nothing() -> None:
    weight, nothing = torch.randn(4, 4).half(), Delta(torch.zeros(4, 4))
    assert torch.equal(rounded(weight, nothing), weight)
    assert nothing.norm == 0 and rounding_loss(weight, nothing, weight) == 0


def test_a_change_is_frozen() -> None:
    delta = Delta(torch.zeros(2, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        delta.left = torch.ones(2, 2)  # type: ignore[misc]


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
def test_a_sum_just_off_a_tie_is_rounded_once(dtype: torch.dtype, step: float) -> None:
    # Through float32 both would become the tie, and the tie goes to the even 1.
    weight, over, under = torch.tensor([[1.0, -1.0]], dtype=dtype), step / 2 + 2.0**-40, step / 2 - 2.0**-40
    off = torch.tensor([[step / 2, 2.0**-40]]).T
    for change, wanted in ((off, 1 + step), (off * torch.tensor([[1.0], [-1.0]]), 1.0)):
        delta = Delta(torch.ones(1, 2), change @ torch.tensor([[1.0, -1.0]]))
        assert delta.dense()[0, 0] in (over, under)
        assert rounded(weight, delta).tolist() == [[wanted, -wanted]]
