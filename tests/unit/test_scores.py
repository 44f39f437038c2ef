"""Intervals that are right at the ends, and mean what they say."""

from __future__ import annotations

import pytest
import torch
from memedit.numerics.scores import harmonic, mean_interval, share_interval


def test_wilsons_interval_has_its_published_values() -> None:
    found = share_interval(8, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)
    none, all_ = share_interval(0, 10), share_interval(10, 10)
    assert none.low == 0.0 and round(none.high, 4) == 0.2775
    assert all_.high == 1.0 and round(all_.low, 4) == 0.7225


def test_intervals_hold_their_mean_and_shrink_with_n() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(400, generator=generator, dtype=torch.float64)
    few, many = mean_interval(values[:40]), mean_interval(values)
    for found in (few, many):
        assert found.low < found.mean < found.high
    assert many.high - many.low < few.high - few.low


def test_a_mean_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    generator = torch.Generator().manual_seed(4)
    hits = 0
    for _ in range(200):
        found = mean_interval(torch.rand(50, generator=generator, dtype=torch.float64))
        hits += found.low <= 0.5 <= found.high
    assert 180 <= hits <= 199


def test_the_same_values_give_the_same_interval() -> None:
    values = torch.rand(30, dtype=torch.float64)
    assert mean_interval(values) == mean_interval(values.clone())


def test_the_harmonic_mean_falls_with_its_weakest_part() -> None:
    assert harmonic([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic([1.0, 0.0, 1.0]) == 0.0
