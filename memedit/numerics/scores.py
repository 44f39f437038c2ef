"""Means with 95 % intervals, and the harmonic mean of several scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memedit.numerics.effects import NORMAL_95

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean, the ends of its 95 % interval, and the number of values."""

    mean: float
    low: float
    high: float
    n: int


def share_interval(hits: int, n: int) -> Interval:
    """A share of independent records, with Wilson's interval (Wilson 1927), which holds at 0, at 1 and for small n."""
    share = hits / n
    center = (share + NORMAL_95**2 / (2 * n)) / (1 + NORMAL_95**2 / n)
    half = NORMAL_95 / (1 + NORMAL_95**2 / n) * (share * (1 - share) / n + NORMAL_95**2 / (4 * n**2)) ** 0.5
    # At the ends the exact bound is the share itself; rounding must not leave it outside.
    return Interval(share, min(max(0.0, center - half), share), max(min(1.0, center + half), share), n)


def mean_interval(values: Tensor, *, share: bool = True) -> Interval:
    """The mean of one value per edit (n,) float64, with a bootstrap interval over edits (Efron 1979), seeded.

    Paraphrases and neighbors of one edit are not independent, so edits are resampled, each with one value. Where all
    values agree resampling shows nothing: then the interval is Wilson's if they are shares and all 0 or 1, else the
    value itself.
    """
    n = len(values)
    mean = float(values.mean())
    if bool((values == values[0]).all()):
        return share_interval(round(mean * n), n) if share and mean in (0.0, 1.0) else Interval(mean, mean, mean, n)
    means = _resampled(values, torch.Generator().manual_seed(0))
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Interval(mean, low, high, n)


def _resampled(values: Tensor, generator: torch.Generator) -> Tensor:
    """The means of RESAMPLES resamples of values (n,).

    Where few different values occur, a mean depends only on how often each is drawn: one multinomial draw, value by
    value.
    """
    n = len(values)
    kinds, counts = values.unique(return_counts=True)
    if 10 * len(kinds) > n:
        drawn = [torch.randint(n, (100, n), generator=generator) for _ in range(RESAMPLES // 100)]
        return torch.cat([values[at].mean(1) for at in drawn])
    left, total, rest = torch.full((RESAMPLES,), float(n), dtype=values.dtype), torch.zeros(RESAMPLES).double(), n
    for kind, count in zip(kinds, counts.tolist(), strict=True):
        times = torch.binomial(left, torch.full_like(left, count / rest), generator=generator)
        total, left, rest = total + times * kind, left - times, rest - count
    return total / n


def paired_interval(values: Tensor) -> Interval:
    """The mean of one difference per edit (n,) float64, with a bootstrap interval over edits.

    Outcomes are shares, so differences lie from -1 to 1. Where all differences agree, the interval is as wide on either
    side as Wilson's of no event in n: that none of twelve edits changed does not mean that none would.
    """
    n, first = len(values), float(values[0])
    if bool((values == first).all()):
        wide = share_interval(0, n).high
        return Interval(first, max(-1.0, first - wide), min(1.0, first + wide), n)
    return mean_interval(values, share=False)


def ratio_interval(parts: Tensor, wholes: Tensor) -> Interval:
    """sum(parts) / sum(wholes), both (n,) float64, with a bootstrap interval that resamples rows, seeded."""
    n = len(parts)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(n, (100, n), generator=generator) for _ in range(RESAMPLES // 100)]
    ratios = torch.cat([parts[at].sum(1) / wholes[at].sum(1) for at in drawn])
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=parts.dtype)).tolist()
    return Interval(float(parts.sum() / wholes.sum()), low, high, n)


def harmonic(values: Sequence[float]) -> float:
    """The harmonic mean of shares; 0 where one of them is 0."""
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0
