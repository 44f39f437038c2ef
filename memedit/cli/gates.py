"""Limits that a report must keep: exit code 3 where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from memedit.errors import GateError, UsageError, nearest_hint

if TYPE_CHECKING:
    from memedit.results.report import ModelReport, Report

KEPT = "kept"
"""Stands for every figure of what is kept."""


def gate(report: Report, fail_under: Mapping[str, float], fail_over: Mapping[str, float] | None = None) -> None:
    """Check a report against limits by metric. Raises GateError that names every metric beyond its limit."""
    from memedit.results.report import Figure

    missed: list[str] = []
    for model in report.scored:
        of = f"{model.model}: " if report.models else ""
        for bars_of, word in ((fail_under, "under"), (fail_over or {}, "over")):
            for name, bar in ((one, bar) for named, bar in bars_of.items() for one in _measured(model, named)):
                figure = model.value(name)
                value = figure.mean if isinstance(figure, Figure) else figure
                # Written so that NaN, which compares false with every number, does not pass.
                holds = value is not None and (value >= bar if word == "under" else value <= bar)
                if not holds:
                    said = "not measured" if value is None else f"{value:.4f}, {word} {bar:g}"
                    missed.append(f"{of}{name} is {said}")
    if missed:
        raise GateError("; ".join(missed), "look at --per-edit for the edits that failed")


def _measured(model: ModelReport, name: str) -> list[str]:
    """The metrics that a name stands for: `kept` for each kept.NAME that was measured, if any was."""
    kept = [one for one in model.names() if one.startswith(f"{KEPT}.")]
    return kept if name == KEPT and kept else [name]


def gate_bars(text: str | None, option: str = "--fail-under") -> dict[str, float]:
    """Read `efficacy=0.95,drift.ppl=1.02` as a mapping. Raises UsageError for anything else."""
    from memedit.results.metrics import gate_names, metric_of

    found: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = part.partition("=")
        name = {"specificity": "neighborhood"}.get(name.strip(), name.strip())
        if name != KEPT and metric_of(name) is None:
            known = [*gate_names(), KEPT]
            hint = nearest_hint(name, known, f"metrics are {', '.join(known)}")
            raise UsageError(f"{option}: there is no metric {name!r}", hint)
        try:
            bar = float(value)
        except ValueError:
            bar = math.nan
        if not math.isfinite(bar):
            raise UsageError(f"{option}: {part!r} has no number", f"write {name or 'efficacy'}=0.95")
        found[name] = bar
    return found
