"""Intervals that are right at the ends, and mean what they say."""

from __future__ import annotations

import pytest
import torch
from memedit.numerics.scores import (
    Interval,
    harmonic,
    mean_interval,
    paired_interval,
    ratio_interval,
    share_interval,
)


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


def covered(intervals: list[Interval], truth: float) -> float:
    return sum(found.low <= truth <= found.high for found in intervals) / len(intervals)


def test_wilsons_interval_holds_the_truth_in_95_of_100_draws() -> None:
    generator = torch.Generator().manual_seed(6)
    draws = (torch.rand(2000, 200, generator=generator) < 0.9).sum(1).tolist()
    assert 0.93 <= covered([share_interval(int(count), 200) for count in draws], 0.9) <= 0.97


@pytest.mark.slow
def test_a_bootstrap_interval_over_records_holds_the_truth_in_95_of_100_draws() -> None:
    """Records of ten probes each that move together: a record's own share is drawn first, its probes then."""
    generator = torch.Generator().manual_seed(7)
    own = 1 - 0.5 * torch.rand(1000, 100, generator=generator, dtype=torch.float64) ** 2
    truth = 1 - 0.5 / 3
    draws = (torch.rand(1000, 100, 10, generator=generator, dtype=torch.float64) < own[:, :, None]).double().mean(2)
    assert 0.93 <= covered([mean_interval(values) for values in draws], truth) <= 0.97
    # Converse: probes taken for independent records promise more than they hold.
    pooled = [share_interval(round(float(values.sum()) * 10), 1000) for values in draws]
    assert covered(pooled, truth) < 0.93


@pytest.mark.slow
def test_a_ratio_interval_holds_the_truth_in_95_of_100_draws() -> None:
    generator = torch.Generator().manual_seed(8)
    wholes = 20 + (100 * torch.rand(1000, 80, generator=generator, dtype=torch.float64)).round()
    parts = wholes * (2 + 0.5 * torch.randn(1000, 80, generator=generator, dtype=torch.float64))
    found = [ratio_interval(a, b) for a, b in zip(parts, wholes, strict=True)]
    assert 0.93 <= covered(found, 2.0) <= 0.97


@pytest.mark.slow
def test_a_paired_interval_holds_the_truth_in_95_of_100_draws() -> None:
    """Of 150 edits some get right and a few wrong; paraphrases' shares move by fifths."""
    generator = torch.Generator().manual_seed(10)
    moved = torch.rand(1000, 150, generator=generator, dtype=torch.float64)
    outcomes = (moved < 0.25).double() - (moved > 0.92).double()
    assert 0.93 <= covered([paired_interval(values) for values in outcomes], 0.25 - 0.08) <= 0.97
    fifths = (torch.rand(1000, 150, 5, generator=generator) < moved[:, :, None]).double().mean(2) - 0.3
    assert 0.93 <= covered([paired_interval(values) for values in fifths], 0.2) <= 0.97


def test_drawing_how_often_each_value_comes_is_drawing_records() -> None:
    generator = torch.Generator().manual_seed(11)
    values = (torch.rand(400, generator=generator, dtype=torch.float64) * 3).round() / 3
    few = mean_interval(values)  # four values: their counts are drawn
    many = mean_interval(values + 1e-9 * torch.rand(400, generator=generator, dtype=torch.float64))  # records are
    width = many.high - many.low
    assert abs(few.low - many.low) < 0.06 * width
    assert abs(few.high - many.high) < 0.06 * width


def test_paired_differences_are_narrower_than_those_of_strangers_and_none_is_a_bound() -> None:
    generator = torch.Generator().manual_seed(9)
    before = torch.rand(200, generator=generator, dtype=torch.float64)
    after = before + 0.05 + 0.01 * torch.randn(200, generator=generator, dtype=torch.float64)
    together = paired_interval(after - before)
    assert together.low > 0.04
    assert together.high - together.low < 0.1 * (mean_interval(after).high - mean_interval(after).low)
    still = paired_interval(torch.zeros(12, dtype=torch.float64))
    assert (still.mean, round(still.high, 3), round(still.low, 3)) == (0.0, 0.242, -0.242)
    all_ = paired_interval(torch.ones(12, dtype=torch.float64))
    assert (all_.mean, all_.high, round(all_.low, 3)) == (1.0, 1.0, 0.758)
    moved = mean_interval(torch.zeros(12, dtype=torch.float64), share=False)
    assert (moved.low, moved.high) == (0.0, 0.0)


def test_the_same_values_give_the_same_interval() -> None:
    values = torch.rand(30, dtype=torch.float64)
    assert mean_interval(values) == mean_interval(values.clone())


def test_the_harmonic_mean_falls_with_its_weakest_part() -> None:
    assert harmonic([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic([1.0, 0.0, 1.0]) == 0.0
