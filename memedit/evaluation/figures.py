"""Compute figures from the values of single edits: the mean, its 95 % interval, and the number of edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from memedit.numerics.scores import harmonic, mean_interval, paired_interval, share_interval
from memedit.results.metrics import SCORE_PARTS, metric_of
from memedit.results.report import Figure, Scores


def share_figure(values: Sequence[float], *, signed: bool = False) -> Figure | None:
    """The mean of one value per edit, with Wilson's interval if all are 0 or 1, else the interval of a mean.

    `signed`: the values are no shares, so the interval is not limited to 0 to 1.
    """
    if not values:
        return None
    if all(value in (0, 1) for value in values) and not signed:
        found = share_interval(round(sum(values)), len(values))
    else:
        found = mean_interval(torch.tensor(values, dtype=torch.float64), share=not signed)
    return Figure(mean=found.mean, low=found.low, high=found.high, n=found.n)


def paired(values: Sequence[float], *, share: bool) -> Figure | None:
    """The mean of one difference per edit, with its interval.

    `share`: a difference of shares; then n differences of zero still have an interval, as a share of 0 of n has.
    """
    if not values:
        return None
    column = torch.tensor(values, dtype=torch.float64)
    found = paired_interval(column) if share else mean_interval(column, share=False)
    return Figure(mean=found.mean, low=found.low, high=found.high, n=found.n)


def differences(
    before: Sequence[Mapping[str, float | None]], after: Sequence[Mapping[str, float | None]]
) -> dict[str, Figure]:
    """After minus before by metric, paired by edit: an edit that is hard for both does not widen the interval."""
    found: dict[str, list[float]] = {}
    for was, now in zip(before, after, strict=True):
        for name, value in now.items():
            if value is not None and (old := was.get(name)) is not None:
                found.setdefault(name, []).append(value - old)
    figures = {name: paired(each, share=is_share(name)) for name, each in found.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def is_share(name: str) -> bool:
    """Whether a metric is a share from 0 to 1."""
    metric = metric_of(name)
    return metric is None or metric.share


def score_of(columns: Mapping[str, Sequence[float]], *, groups: Mapping[str, Sequence[float]], **more: Any) -> Scores:
    """Compute the scores from columns of values, one value per edit.

    The score is the harmonic mean of efficacy, paraphrase and neighborhood, unrounded: the published code rounds the
    three to hundredths of a percent first, which can move it by as much.
    """
    figures = {name: share_figure(values, signed=not is_share(name)) for name, values in columns.items()}
    parts = [figures[name] for name in SCORE_PARTS]
    known = [part.mean for part in parts if part is not None]
    named = {name: found for name, values in sorted(groups.items()) if (found := share_figure(values)) is not None}
    joined = harmonic(known) if len(known) == len(parts) else None
    return Scores(**figures, groups=named, score=joined, **more)  # type: ignore[arg-type]
