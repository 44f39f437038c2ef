"""Figures of traces as inline SVG: each a `role="img"` with a title that says what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from memedit.results.traces import Average, Curve
from memedit.show.heatmap import share_of, tint

ROLE_INKS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#000000")
"""Okabe and Ito's colors, told apart by every eye; one a role."""
SEVERED_NAMES = {
    "hidden": "state put back",
    "mlp severed": "MLP path severed",
    "attention severed": "attention path severed",
}
STEPS = tuple(digit * 10.0**power for power in range(-6, 2) for digit in (1, 2, 5))
"""Distances between lines of an axis, the smallest first."""
SEVERED_INKS = {"hidden": "#54278f", "mlp severed": "#7fbf7b", "attention severed": "#e08b84"}


def svg_figure(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """An SVG of its own size that shrinks with the page; `title` is its alternative text."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def text(x: float, y: float, said: str, *, anchor: str = "start", kind: str = "") -> str:
    """A line of text; `kind` is its class on the page."""
    cls = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{cls}>{escape(said)}</text>'


def rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    """Draw a rectangle; `more` are further attributes."""
    return f'<rect x="{x:.6g}" y="{y:.6g}" width="{width:.6g}" height="{height:.6g}" fill="{fill}"{more}/>'


def line(x1: float, y1: float, x2: float, y2: float, ink: str = "#444", more: str = "") -> str:
    """Draw a straight line; `more` are further attributes."""
    return f'<line x1="{x1:.6g}" y1="{y1:.6g}" x2="{x2:.6g}" y2="{y2:.6g}" stroke="{ink}"{more}/>'


def heat_map(
    kind: str,
    title: str,
    rows: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    low: float,
    top: float,
    marks: Mapping[str, float],
) -> str:
    """Names down, layers across; shaded from `low` to `top`. `marks` are named values on the color bar."""
    n_layers, cell_h = len(rows[0]), 19.0
    cell_w = max(5.0, min(26.0, 340.0 / n_layers))
    left, above = 10 + 6.6 * max(map(len, names)), 26.0
    width, height = cell_w * n_layers, cell_h * len(rows)
    parts = [text(left, 14, _caption(title), kind="head")]
    for n, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = above + n * cell_h
        parts.append(text(left - 6, y + 13.5, name, anchor="end", kind="star" if name.endswith("*") else "token"))
        for layer, value in enumerate(row):
            red, green, blue = tint(kind, share_of(value, low, top))
            parts.append(rect(left + layer * cell_w, y, cell_w, cell_h, f"#{red:02x}{green:02x}{blue:02x}"))
    parts.append(rect(left, above, width, height, "none", ' stroke="#888"'))
    parts += _layer_ticks(left, above + height, cell_w, n_layers)
    parts += _color_bar(kind, left + width + 14, above, height, low, top, marks)
    return svg_figure(left + width + 130, above + height + 34, title, parts)


def _caption(title: str) -> str:
    return title.split(":")[0]


def _layer_ticks(left: float, y: float, step: float, n_layers: int) -> list[str]:
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100) if n * step >= 18 or n == 100)
    ticks = [
        text(left + (layer + 0.5) * step, y + 14, str(layer), anchor="middle", kind="tick")
        for layer in range(0, n_layers, every)
    ]
    return [*ticks, text(left + step * n_layers / 2, y + 28, "layer", anchor="middle", kind="tick")]


def _color_bar(
    kind: str, x: float, y: float, height: float, low: float, top: float, marks: Mapping[str, float]
) -> list[str]:
    """Sixteen steps from low to top, and the marks where they lie, spread so that none hides another."""
    steps = 16
    parts: list[str] = []
    for n in range(steps):
        red, green, blue = tint(kind, (n + 0.5) / steps)
        step = height / steps
        parts.append(rect(x, y + height - (n + 1) * step, 10, step + 0.3, f"#{red:02x}{green:02x}{blue:02x}"))
    parts.append(rect(x, y, 10, height, "none", ' stroke="#888"'))
    free = y + height + 12.0
    for name, value in sorted(marks.items(), key=lambda mark: mark[1]):
        at = y + height * (1 - share_of(value, low, top))
        label = min(at + 4, free)
        free = label - 12
        parts += [line(x, at, x + 13, at), text(x + 16, label, f"{name} {value:.3f}", kind="tick")]
    return parts


def curves(title: str, roles: Mapping[str, Curve], inks: Sequence[str], *, low: float, top: float) -> str:
    """One line a role, layers across, with its 95 % band."""
    left, above, width, height = 44.0, 26.0, 300.0, 170.0
    n_layers = len(next(iter(roles.values())).mean)
    step = width / max(1, n_layers - 1)

    def place(layer: int, value: float) -> str:
        return f"{left + layer * step:.6g},{above + height * (1 - share_of(value, low, top)):.6g}"

    parts = [text(left, 14, _caption(title), kind="head"), *_value_axis(left, above, width, height, low, top)]
    for (_, curve), ink in zip(roles.items(), inks, strict=False):
        band = [
            (n, a, b)
            for n, (a, b) in enumerate(zip(curve.low, curve.high, strict=True))
            if a is not None and b is not None
        ]
        if len(band) > 1:
            edge = [place(n, b) for n, _, b in band] + [place(n, a) for n, a, _ in reversed(band)]
            parts.append(f'<polygon points="{" ".join(edge)}" fill="{ink}" opacity="0.15"/>')
        points = " ".join(place(n, value) for n, value in enumerate(curve.mean))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="1.8"/>')
        dots = (place(n, value).split(",") for n, value in enumerate(curve.mean) if n_layers <= 16)
        parts += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{ink}"/>' for x, y in dots]
    parts += _layer_ticks(left - step / 2, above + height, step, n_layers)
    return svg_figure(left + width + 14, above + height + 34, title, parts)


def _value_axis(left: float, above: float, width: float, height: float, low: float, top: float) -> list[str]:
    parts: list[str] = []
    step = next(step for step in STEPS if (top - low) / step <= 6)
    for n in range(math.ceil(low / step - 1e-9), math.floor(top / step + 1e-9) + 1):
        value = n * step
        y = above + height * (1 - share_of(value, low, top))
        parts += [
            line(left, y, left + width, y, "#ddd"),
            text(left - 5, y + 4, f"{value:g}", anchor="end", kind="tick"),
        ]
    zero = above + height * (1 - share_of(0.0, low, top))
    return [*parts, line(left, zero, left + width, zero, "#888")]


def bar_chart(title: str, average: Average) -> str:
    """The severed experiment: three bars a layer with their intervals."""
    left, above, height, n_layers = 44.0, 26.0, 190.0, average.n_layers
    step = max(12.0, min(70.0, 620.0 / n_layers))
    width, values = step * n_layers, [*average.severed.values()]
    low, top = span(values)
    parts = [text(left, 14, _caption(title), kind="head"), *_value_axis(left, above, width, height, low, top)]
    zero = above + height * (1 - share_of(0.0, low, top))
    bar = step * 0.8 / len(values)
    for n, (kind, curve) in enumerate(average.severed.items()):
        for layer, value in enumerate(curve.mean):
            x = left + layer * step + step * 0.1 + n * bar
            y = above + height * (1 - share_of(value, low, top))
            parts.append(rect(x, min(y, zero), bar, abs(zero - y), SEVERED_INKS[kind]))
            a, b = curve.low[layer], curve.high[layer]
            if a is not None and b is not None:
                ends = [above + height * (1 - share_of(end, low, top)) for end in (a, b)]
                parts.append(line(x + bar / 2, ends[0], x + bar / 2, ends[1], "#333"))
    parts += _layer_ticks(left, above + height, step, n_layers)
    return svg_figure(left + width + 14, above + height + 34, title, parts)


def span(curves: Sequence[Curve]) -> tuple[float, float]:
    """An axis that holds all curves with their intervals, and zero."""
    ends = [
        value for curve in curves for part in (curve.mean, curve.low, curve.high) for value in part if value is not None
    ]
    low, top = min(0.0, *ends), max(0.0, *ends)
    return (low, top) if top > low else (0.0, 1.0)


def legend(names: Mapping[str, str]) -> str:
    """Names beside the ink they are drawn in, as HTML."""
    items = (f'<li><span style="background:{ink}"></span>{escape(name)}</li>' for name, ink in names.items())
    return f'<ul class="legend">{"".join(items)}</ul>'
