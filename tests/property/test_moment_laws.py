"""Moments are a monoid: any way of taking the tokens together gives the same sum."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.numerics.moments import Moment

FP32 = 1e-6  # products and sums of a chunk in float32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_merging_moments_in_any_order_equals_one_pass(seed: int, parts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(parts), 9, generator=generator)
    whole = Moment.of(rows)
    merged = Moment.empty(9)
    for part in reversed(rows.split(parts)):
        merged = Moment.of(part) + merged
    assert merged.count == whole.count == sum(parts)
    assert float((merged.total - whole.total).norm() / whole.total.norm()) < FP32
    exact = rows.double().T @ rows.double()
    assert float((whole.total - exact).norm() / exact.norm()) < FP32


def test_nothing_is_neutral() -> None:
    some = Moment.of(torch.randn(20, 5))
    both = some + Moment.empty(5)
    assert torch.equal(both.total, some.total)
    assert both.count == some.count


def test_the_mean_is_symmetric_to_the_last_bit() -> None:
    mean = Moment.of(torch.randn(50, 7)).mean
    assert torch.equal(mean, mean.T)
