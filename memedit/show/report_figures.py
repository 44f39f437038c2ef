"""Figures of a report's page as inline SVG: they take the colors of the page, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from memedit.results.report import EditResult, Figure
from memedit.results.rows import Line
from memedit.results.units import printable
from memedit.show.svg import hover

AXIS = 168
"""Pixels from the lowest to the highest value of a figure."""
POINTS = 1_000
"""The most edits that a chart draws; of more it draws every second, every third, and so on."""
CHART_WIDTH, CHART_HEIGHT = 760.0, 150.0
"""Pixels of a chart with one place for each edit."""


def dots(line: Line) -> Markup:
    """The value before as a ring, after as a dot on its 95 % interval; empty for a metric that has no common axis."""
    signed = line.metric.kind == "magnitude"
    if not (signed or line.metric.share):
        return Markup()

    def at(value: float) -> str:
        share = (value + 1) / 2 if signed else value
        return f"{6 + AXIS * min(max(share, 0.0), 1.0):.1f}"

    was = "" if line.before is None else f"before {line.text(line.before)}, "
    parts = [f'<path class="rule" d="M6 8H{6 + AXIS}{"".join(f"M{x} 4V12" for x in _ends(signed))}"/>']
    if isinstance(line.after, Figure):
        parts.append(f'<path class="span" d="M{at(line.after.low)} 8H{at(line.after.high)}"/>')
    for kind, one in (("ring", line.before), ("dot", line.after)):
        if one is not None:
            value = one.mean if isinstance(one, Figure) else one
            parts.append(f'<circle class="{kind}" cx="{at(value)}" cy="8" r="4"/>')
    return _drawn(AXIS + 12, 16, f"{line.label}: {was}{line.span(line.after)}", parts)


def edits_chart(edits: Sequence[EditResult]) -> Markup:
    """The lead of the new object over the old, edit by edit, before and after; empty for fewer than two edits.

    The edits go from left to right by their lead after. The lead is the difference of two probabilities, from -1 to 1.
    """
    every = sorted(
        (after, one.before.get("efficacy_magnitude"), one.id)
        for one in edits
        if (after := one.after.get("efficacy_magnitude")) is not None
    )
    shown = every[:: -(-len(every) // POINTS) or 1]
    if len(shown) < 2:
        return Markup()
    step = min(CHART_WIDTH / len(shown), 24.0)
    radius = min(max(step / 3, 1.0), 4.0)
    left, wide = 34.0, step * len(shown)

    def at(value: float) -> float:
        return 8 + CHART_HEIGHT * (1 - value) / 2

    parts: list[str] = []
    for value in (1, 0, -1):
        parts.append(f'<path class="rule" d="M{left:g} {at(value):g}h{wide:g}"/>')
        parts.append(
            f'<text x="{left - 6:g}" y="{at(value) + 4:g}" text-anchor="end">{f"{value:+d}" if value else 0}</text>'
        )
    for n, (after, was, name) in enumerate(shown):
        x = f"{left + (n + 0.5) * step:.1f}"
        marks = f'<circle class="dot" cx="{x}" cy="{at(after):.1f}" r="{radius:.2g}"/>'
        if was is not None:
            line = f'<path class="span thin" d="M{x} {at(was):.1f}V{at(after):.1f}"/>' if radius > 1 else ""
            marks = f'{line}<circle class="ring" cx="{x}" cy="{at(was):.1f}" r="{radius:.2g}"/>{marks}'
        before = "" if was is None else f"before {was:+.3f}, "
        parts.append(hover(marks, f"{name}: {before}after {after:+.3f}"))
    said = (
        f"The lead of the new object over the old of {len(shown):,} of {len(every):,} edits, before and after; after "
        f"the edit it is above 0 for {sum(after > 0 for after, *_ in every):,}"
    )
    return _drawn(left + wide + 8, CHART_HEIGHT + 16, said, parts)


def _ends(signed: bool) -> list[int]:
    return [6, *([6 + AXIS // 2] if signed else []), 6 + AXIS]


def _drawn(width: float, height: float, words: str, parts: Sequence[str]) -> Markup:
    said = escape(printable(words))
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return Markup(
        f'<svg class="dots" role="img" aria-label="{said}" {size}><title>{said}</title>{"".join(parts)}</svg>'
    )
