"""Bars that a report must hold: exit code 3 where it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from memedit.errors import GateError, UsageError
from memedit.results.report import Drift, ModelReport, Report, Scores


def gate(report: Report, fail_under: Mapping[str, float], fail_over: Mapping[str, float] | None = None) -> None:
    """Raises GateError naming every figure under its bar, or over it."""
    missed: list[str] = []
    for model in report.judged:
        of = f"{model.model}: " if report.models else ""
        for bars_of, word in ((fail_under, "under"), (fail_over or {}, "over")):
            for name, bar in bars_of.items():
                value = _value(model, name)
                # Asked so that NaN, which compares with nothing, does not pass.
                holds = value is not None and (value >= bar if word == "under" else value <= bar)
                if not holds:
                    said = "not measured" if value is None else f"{value:.4f}, {word} {bar:g}"
                    missed.append(f"{of}{name} is {said}")
    if missed:
        raise GateError("; ".join(missed), "look at --per-edit for the edits that failed")


def gate_bars(text: str | None, option: str = "--fail-under") -> dict[str, float]:
    """`efficacy=0.95,drift.ppl=1.02` as a mapping. Raises UsageError for anything else."""
    plain = [name for name in Scores.model_fields if name not in ("generated", "groups")]
    known = [*plain, *(f"drift.{name}" for name in Drift.model_fields), "kept.others", "kept.siblings"]
    known += ["kept.earlier", "retention"]
    found: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = part.partition("=")
        name = {"specificity": "neighborhood"}.get(name.strip(), name.strip())
        if name not in known and not name.startswith("generated."):
            raise UsageError(f"{option} knows no score {name!r}", f"it knows {', '.join(known)} and generated.NAME")
        try:
            bar = float(value)
        except ValueError:
            bar = math.nan
        if not math.isfinite(bar):
            raise UsageError(f"{option} {part!r} has no number", f"write {name or 'efficacy'}=0.95")
        found[name] = bar
    return found


def _value(model: ModelReport, name: str) -> float | None:
    head, _, tail = name.partition(".")
    found: Any = {
        "drift": lambda: getattr(model.drift, tail, None),
        "kept": lambda: model.kept.get(tail),
        "retention": lambda: model.retention,
        "generated": lambda: model.scores.generated.get(tail),
    }.get(head, lambda: getattr(model.scores, name, None))()
    return float(found) if isinstance(found, int | float) else getattr(found, "mean", None)
