"""An evaluation as one HTML page that needs no other file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from html import escape

from markupsafe import Markup

from memedit.results.report import EditResult, Report
from memedit.results.rows import beside, headings, remarks, rows
from memedit.show.pages import render_page

WORST = 200  # edits listed at most: browsers cannot open a page of ten thousand
CURVES = (
    ("efficacy_magnitude", "Lead of the new object over the old, edits in order"),
    ("paraphrase_magnitude", "The same in other words"),
    ("neighborhood_magnitude", "Lead of the neighbors' own objects"),
)
"""A mean hides which edits fail; a curve of all edits in order shows it."""


def evaluation_page(report: Report) -> str:
    """Write the page: metrics, curves, worst edits first, provenance. It has no script and no link; text is escaped."""
    edits = worst_first([one for one in report.per_edit if one.status != "skipped"])
    return render_page(
        "evaluation.html.j2",
        title=f"{report.model}: {report.edits:,} edits",
        model=report.model,
        remarks=remarks(report),
        models=beside(report) if report.models else None,
        figures=(headings(bool(report.difference)), rows(report)),
        curves=list(_curves(report)),
        edits=[_edit(one) for one in edits[:WORST]],
        hidden=max(0, len(edits) - WORST),
        provenance=_provenance(report),
    )


def worst_first(edits: Sequence[EditResult]) -> list[EditResult]:
    """Edits that fail before edits that hold: by free answers where there are any, by exact match, by magnitude."""

    def key(one: EditResult) -> tuple[float, ...]:
        names = ("generated.efficacy", "accuracy", "efficacy", "paraphrase_accuracy", "efficacy_magnitude")
        return tuple(1.0 if (value := one.after.get(name)) is None else value for name in names)

    return sorted(edits, key=key)


def _curves(report: Report) -> Iterator[tuple[str, Markup]]:
    """A figure for each magnitude that was measured."""
    for name, title in CURVES:
        drawn = {
            label: sorted(value for one in report.per_edit if (value := getattr(one, label).get(name)) is not None)
            for label in ("before", "after")
        }
        if any(drawn.values()):
            yield title, Markup(_curve(title, drawn))


def _curve(title: str, drawn: dict[str, list[float]]) -> str:
    width, height = 640, 160
    colors = {"before": "#8b949e", "after": "#0969da"}
    marks: list[str] = []
    for level in (-1, 0, 1):
        y = round(height * (1 - level) / 2)
        marks.append(f'<line x1="0" x2="{width}" y1="{y}" y2="{y}" stroke="#8b949e" stroke-opacity=".35"/>')
        marks.append(f'<text x="{width + 6}" y="{y + 4}">{f"{level:+}" if level else "0"}</text>')
    for at, (label, values) in enumerate(drawn.items()):
        if values:
            step = width / max(1, len(values) - 1)
            points = " ".join(f"{n * step:.1f},{height * (1 - value) / 2:.1f}" for n, value in enumerate(values))
            marks.append(f'<polyline points="{points}" fill="none" stroke-width="2" stroke="{colors[label]}"/>')
            place = f'x="{8 + 60 * at}" y="{height // 2 + 16}"'  # under the middle: curves begin far from it
            marks.append(f'<text {place} style="fill:{colors[label]}">{label}</text>')
    box = f'viewBox="-2 -6 {width + 40} {height + 12}" width="{width + 40}" height="{height + 12}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{"".join(marks)}</svg>'


def _edit(one: EditResult) -> dict[str, object]:
    """One row of the table of edits: it holds if its forced answer is right, and its free one where there is one."""
    prompt = str(one.edit.get("prompt", "")).replace("{}", str(one.edit.get("subject", "")), 1)
    objects = [str(one.edit.get(name, "-")) for name in ("object_old", "object")]
    written = [one.said[when].strip() if when in one.said else "-" for when in ("before", "after")]
    holds = one.status == "ok" and one.after.get("generated.efficacy", 1.0) == 1.0
    return {"id": one.id, "cells": [prompt, *objects, *written], "holds": holds}


def _provenance(report: Report) -> list[tuple[str, str]]:
    """How the numbers were made: models, command, device, digests, settings, times and versions."""
    settings = {"chat": report.recipe.get("chat"), **report.recipe.get("eval", {})}
    return [
        ("model", report.model),
        ("base", report.base or "-"),
        ("command", shlex.join(["memedit", *report.arguments])),
        ("device", report.device),
        *((f"sha256 of {name}", str(value)) for name, value in report.digests.items()),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items())),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.timings.items())),
        *report.versions.items(),
    ]
