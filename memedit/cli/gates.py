"""Limits that a report must keep: exit code 3 where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def gate_bars(texts: str | Sequence[str] | None, option: str = "--fail-under") -> dict[str, float]:
    """Read `efficacy=0.95,drift.ppl=1.02`, or several such texts, as one mapping.

    Raises UsageError for anything else. A text without a bar is refused too: it is often an empty variable of a script.
    """
    from memedit.results.metrics import gate_names, metric_of

    found: dict[str, float] = {}
    given = [texts] if isinstance(texts, str) else texts or ()
    for text in given:
        if not text.replace(",", "").strip():
            raise UsageError(f"{option}: {text!r} has no threshold", f"write NAME=X, or leave {option} out")
    for part in ",".join(given).split(","):
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
        if name in found:
            raise UsageError(f"{option}: {name} has two thresholds, {found[name]:g} and {bar:g}", "keep one of them")
        found[name] = bar
    return found
