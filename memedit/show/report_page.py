"""An evaluation as one page that needs nothing beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from html import escape

from memedit.results.report import EditResult, Report
from memedit.show.tables import beside, headings, remarks, rows

WORST = 200  # edits listed at most: a page of ten thousand opens in no browser
EVALUATION_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; text-align: right; white-space: nowrap }
td.t, td:last-child { white-space: normal }
td:first-child, th:first-child, td:last-child, th:last-child, td.t, th.t { text-align: left }
tr { border-bottom: 1px solid #d8dee4 } .bad { color: #b42318 } .quiet { color: #656d76 } code { font-size: .9em }
svg text { font-size: 11px; fill: #656d76 }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #d8dee4 } tr { border-color: #30363d }
  .bad { color: #ff7b72 } .quiet, svg text { color: #8b949e; fill: #8b949e } }
"""


def evaluation_page(report: Report) -> str:
    """HTML without a script or a link: figures, curves, worst edits first, provenance. Text of a list is escaped."""
    title = f"{report.model}: {report.edits:,} edits"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="quiet">{escape(line)}</p>' for line in remarks(report)),
        "<h2>Figures</h2>",
        *([_escaped(*beside(report)), f"<h2>{escape(report.model)}</h2>"] if report.models else []),
        _escaped(headings(bool(report.difference)), rows(report)),
        *_curves(report),
        "<h2>Edits, worst first</h2>",
        _edits(report),
        "<h2>Provenance</h2>",
        _provenance(report),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{EVALUATION_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def worst_first(edits: Sequence[EditResult]) -> list[EditResult]:
    """Edits that fail before edits that hold: by free answers where there are any, by exact match, by magnitude."""

    def key(one: EditResult) -> tuple[float, ...]:
        names = ("generated.efficacy", "accuracy", "efficacy", "paraphrase_accuracy", "efficacy_magnitude")
        return tuple(1.0 if (value := one.after.get(name)) is None else value for name in names)

    return sorted(edits, key=key)


def _escaped(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return _table([escape(head) for head in heads], [[escape(cell) for cell in row] for row in cells])


def _curves(report: Report) -> Iterator[str]:
    """How far the new object leads the old, edit by edit in order: a mean hides who pays for it."""
    for name, title in (
        ("efficacy_magnitude", "Lead of the new object over the old, edits in order"),
        ("paraphrase_magnitude", "The same under other wordings"),
        ("neighborhood_magnitude", "Lead of the neighbors' own objects"),
    ):
        drawn = {
            label: sorted(value for one in report.per_edit if (value := getattr(one, label).get(name)) is not None)
            for label in ("before", "after")
        }
        if any(drawn.values()):
            yield f"<h2>{escape(title)}</h2>{_curve(drawn)}"


def _curve(drawn: dict[str, list[float]]) -> str:
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
    return f'<svg {box} role="img">{"".join(marks)}</svg>'


def _edits(report: Report) -> str:
    found: list[list[str]] = []
    shown = worst_first([one for one in report.per_edit if one.status != "skipped"])
    for one in shown[:WORST]:
        fine = one.status == "ok" and one.after.get("generated.efficacy", 1.0) == 1.0
        state = "holds" if fine else '<span class="bad">fails</span>'  # forced, or when it writes
        prompt = str(one.edit.get("prompt", "")).replace("{}", str(one.edit.get("subject", "")), 1)
        words = [escape(one.said[when].strip()) if when in one.said else "-" for when in ("before", "after")]
        objects = [escape(str(one.edit.get(name, "-"))) for name in ("object_old", "object")]
        found.append([f"<code>{escape(one.id)}</code>", escape(prompt), *objects, *words, state])
    heads = ["edit", "prompt", "old object", "new object", "written before", "written after", ""]
    more = f'<p class="quiet">{len(shown) - WORST:,} more are in --per-edit.</p>' if len(shown) > WORST else ""
    return _table(heads, found, text=True) + more


def _provenance(report: Report) -> str:
    asked = {"chat": report.recipe.get("chat"), **report.recipe.get("eval", {})}
    facts = {
        "model": report.model,
        "base": report.base or "-",
        "command": shlex.join(["memedit", *report.arguments]),
        "device": report.device,
        **{f"sha256 of {name}": str(value) for name, value in report.digests.items()},
        "asked with": ", ".join(f"{name} {value}" for name, value in asked.items()),
        "seconds": ", ".join(f"{name} {value:.1f}" for name, value in report.timings.items()),
        **report.versions,
    }
    return _escaped(["", ""], [[name, value] for name, value in facts.items()])


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], *, text: bool = False) -> str:
    """Cells are HTML already."""
    kind = ' class="t"' if text else ""
    head = "".join(f"<th{kind}>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f"<table><tr>{head}</tr>{body}</table>"
