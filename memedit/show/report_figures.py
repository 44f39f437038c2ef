"""Figures of a report's page as inline SVG: they take the colors of the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from memedit.results.report import EditResult, Figure, TextDrift
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

    def told(name: str, was: float | None, after: float) -> str:
        return f"{name}: {'' if was is None else f'before {was:+.3f}, '}after {after:+.3f}"

    shown = [_Place(was, after, told(name, was, after)) for after, was, name in every[:: _stride(len(every))]]
    said = (
        f"The lead of the new object over the old of {len(shown):,} of {len(every):,} edits, before and after; after "
        f"the edit it is above 0 for {sum(after > 0 for after, *_ in every):,}"
    )
    marks = {value: f"{value:+g}" if value else "0" for value in (1.0, 0.0, -1.0)}
    return _pairs(shown, lambda value: (value + 1) / 2, marks, said)


def texts_chart(texts: Sequence[TextDrift]) -> Markup:
    """The perplexity of each row of text, before and after; empty for fewer than two rows with both.

    The rows go from left to right by how much larger it is after. The scale is logarithmic.
    """
    every = sorted(
        (one.perplexity / was, was, one.perplexity, one.kl, one.begins)
        for one in texts
        if (was := one.perplexity_base) is not None and math.isfinite(one.perplexity + was)
    )
    shown: list[_Place] = []
    for _, was, after, kl, begins in every[:: _stride(len(every))]:
        divergence = "" if kl is None else f", KL {kl:.4f}"
        told = f"{begins}: before {perplexity_text(was)}, after {perplexity_text(after)}{divergence}"
        shown.append(_Place(was, after, told))
    if not shown:
        return Markup()
    ends = [value for place in shown for value in (place.was or place.after, place.after)]
    low, high = min(ends), max(max(ends), min(ends) * 1.01)

    def share(value: float) -> float:
        return math.log(value / low) / math.log(high / low)

    said = (
        f"The perplexity of {len(shown):,} of {len(every):,} rows of text, before and after; it is larger after for "
        f"{sum(ratio > 1 for ratio, *_ in every):,}"
    )
    return _pairs(shown, share, {value: perplexity_text(value) for value in (high, math.sqrt(low * high), low)}, said)


def perplexity_text(value: float) -> str:
    """Format a perplexity: three digits, and all of a whole number.

    >>> perplexity_text(7.1234), perplexity_text(123.4), perplexity_text(54321.9)
    ('7.12', '123', '54,322')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class _Place(NamedTuple):
    """One place of a chart: a value before, one after, and the words that are shown on hover."""

    was: float | None
    after: float
    words: str


def _stride(count: int) -> int:
    """1, or for more than POINTS places the step from one that is drawn to the next."""
    return -(-count // POINTS) or 1


def _pairs(shown: Sequence[_Place], share: Callable[[float], float], marks: Mapping[float, str], said: str) -> Markup:
    """Draw places from left to right, with a ring for the value before and a dot for the one after.

    share: where a value lies from the bottom (0) to the top (1); marks: values with a line and a label.
    """
    if len(shown) < 2:
        return Markup()
    step = min(CHART_WIDTH / len(shown), 24.0)
    radius = min(max(step / 3, 1.0), 4.0)
    left, wide = 18.0 + 8 * max(map(len, marks.values())), step * len(shown)

    def at(value: float) -> float:
        return 8 + CHART_HEIGHT * (1 - share(value))

    parts: list[str] = []
    for value, label in marks.items():
        parts.append(f'<path class="rule" d="M{left:g} {at(value):g}h{wide:g}"/>')
        parts.append(f'<text x="{left - 6:g}" y="{at(value) + 4:g}" text-anchor="end">{label}</text>')
    for n, (was, after, words) in enumerate(shown):
        x = f"{left + (n + 0.5) * step:.1f}"
        drawn = f'<circle class="dot" cx="{x}" cy="{at(after):.1f}" r="{radius:.2g}"/>'
        if was is not None:
            line = f'<path class="span thin" d="M{x} {at(was):.1f}V{at(after):.1f}"/>' if radius > 1 else ""
            drawn = f'{line}<circle class="ring" cx="{x}" cy="{at(was):.1f}" r="{radius:.2g}"/>{drawn}'
        parts.append(hover(drawn, words))
    return _drawn(left + wide + 8, CHART_HEIGHT + 16, said, parts)


def _ends(signed: bool) -> list[int]:
    return [6, *([6 + AXIS // 2] if signed else []), 6 + AXIS]


def _drawn(width: float, height: float, words: str, parts: Sequence[str]) -> Markup:
    said = escape(printable(words))
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return Markup(
        f'<svg class="dots" role="img" aria-label="{said}" {size}><title>{said}</title>{"".join(parts)}</svg>'
    )
