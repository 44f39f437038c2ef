"""Figures of traces as inline SVG: each a `role="img"` with a title that says what it shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

from rich.cells import cell_len

from memedit.results.units import printable
from memedit.show.heatmap import LABEL, cut_label, share_of, tint
from memedit.show.trace_figures import CurveChart, HeatMap, axis_label

STEPS = tuple(digit * 10.0**power for power in range(-6, 2) for digit in (1, 2, 5))
"""Distances between the lines of an axis, the smallest first."""
SIDES, LEGEND_HEIGHT = ("width", "height"), 22.0
CELL, HEAD_CELL = 6.8, 7.2
"""Pixels of one terminal cell in a label of a token, and in a caption: a CJK character takes two cells."""
FIGURE_STYLE = """\
svg text { fill: #1a1a1a; } svg .head { font-weight: 600; font-size: 12px; } svg .tick { fill: #444; }
svg .token, svg .star { font-family: ui-monospace, monospace; } svg .star { font-weight: 700; }
svg .common { display: none; }"""
"""The style of figures, on a page or in an SVG file. A page may show heat-maps on their common scale instead."""


def svg_figure(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """An SVG of its own size that shrinks with the page; `title` is its alternative text."""
    words = escape(printable(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{words}" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}"><title>{words}</title>{"".join(parts)}</svg>'
    )


def svg_file(title: str, panels: Sequence[str], inks: Mapping[str, str]) -> bytes:
    """Join figures from left to right, with a legend below, in one SVG file."""
    x, tallest, parts = 0.0, 0.0, [f"<style>svg {{ font: 11px system-ui, sans-serif; }} {FIGURE_STYLE}</style>"]
    for panel in panels:
        width, height = (
            float(found[1]) for found in (re.search(rf' {side}="([^"]+)"', panel) for side in SIDES) if found
        )
        parts.append(panel.replace("<svg ", f'<svg x="{x:g}" ', 1))
        x, tallest = x + width + 12, max(tallest, height)
    if inks:
        parts.append(legend(inks).replace("<svg ", f'<svg x="0" y="{tallest:g}" ', 1))
        tallest += LEGEND_HEIGHT
        x = max(x, _legend_width(inks))
    back = rect(0, 0, x, tallest, "#fff")
    return ('<?xml version="1.0" encoding="UTF-8"?>\n' + svg_figure(x, tallest, title, [back, *parts]) + "\n").encode()


def legend(inks: Mapping[str, str]) -> str:
    """Names beside their color, in one line."""
    parts, x = list[str](), 10.0
    for name, ink in inks.items():
        parts += [rect(x, 5, 10, 10, ink), text(x + 14, 14, name)]
        x += _item_width(name)
    return svg_figure(_legend_width(inks), LEGEND_HEIGHT, f"Legend: {', '.join(inks)}", parts)


def _legend_width(inks: Mapping[str, str]) -> float:
    return 10.0 + sum(map(_item_width, inks))


def _item_width(name: str) -> float:
    return 32.0 + 6.2 * len(name)


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """One line of text; `kind` is its class."""
    cls = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{cls}>{escape(printable(words))}</text>'


def rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    """Draw a rectangle; `more` are further attributes."""
    return f'<rect x="{x:.6g}" y="{y:.6g}" width="{width:.6g}" height="{height:.6g}" fill="{fill}"{more}/>'


def line(x1: float, y1: float, x2: float, y2: float, ink: str = "#444", more: str = "") -> str:
    """Draw a straight line; `more` are further attributes."""
    return f'<line x1="{x1:.6g}" y1="{y1:.6g}" x2="{x2:.6g}" y2="{y2:.6g}" stroke="{ink}"{more}/>'


def hover(shape: str, words: str) -> str:
    """The shape, with words that a browser shows while the pointer is on it."""
    return f"<g><title>{escape(printable(words))}</title>{shape}</g>"


def heat_map(figure: HeatMap) -> str:
    """Draw names down, layers across, and a color bar with its marks. A cell shows its value on hover."""
    kind, low, top, rows, names = figure.kind, figure.low, figure.top, figure.rows, figure.names
    n_layers, cell_h = len(rows[0]), 20.0
    cell_w = max(9.0, min(30.0, 560.0 / n_layers))
    shown = [cut_label(name, LABEL) for name in names]
    left, above = 12 + CELL * max(map(cell_len, shown)), 26.0
    width, height = cell_w * n_layers, cell_h * len(rows)
    parts = [text(left, 14, figure.caption, kind="head")]
    for n, (name, label, row) in enumerate(zip(names, shown, rows, strict=True)):
        y = above + n * cell_h
        drawn = text(left - 6, y + 14, label, anchor="end", kind="star" if name.endswith("*") else "token")
        parts.append(hover(drawn, name) if label != name else drawn)
        for layer, value in enumerate(row):
            shared = f' class="cell" style="--common:{_ink(kind, share_of(value, *figure.common))}"'
            cell = rect(left + layer * cell_w, y, cell_w, cell_h, _ink(kind, share_of(value, low, top)), shared)
            parts.append(hover(cell, f"{label}, layer {layer}: {value:.3f}"))
    parts.append(rect(left, above, width, height, "none", ' stroke="#888"'))
    parts += _layer_axis(left, above + height, cell_w, n_layers, figure.layers)
    for name, scale in (("own", (low, top)), ("common", figure.common)):
        bar = _color_bar(kind, left + width + 14, above, height, scale, figure.marks)
        parts.append(f'<g class="{name}">{"".join(bar)}</g>')
    whole = max(left + width + 130, left + HEAD_CELL * cell_len(figure.caption))
    return svg_figure(whole, above + height + 34, figure.title, parts)


def _layer_axis(left: float, y: float, step: float, n_layers: int, marked: Sequence[int]) -> list[str]:
    """Numbers of layers below `y`, the name of the axis, and a bar above the marked layers' numbers."""
    parts = _layer_ticks(left, y, step, n_layers)
    words = axis_label(marked)
    middle = max(left + step * n_layers / 2, CELL * cell_len(words) / 2)
    parts.append(text(middle, y + 28, words, anchor="middle", kind="tick"))
    wide = min(step, 26.0)  # the first and the last point of a line chart lie near its frame
    for layer in marked:
        bar = rect(left + (layer + 0.5) * step - wide / 2, y, wide, 4, "#111")
        parts.append(hover(bar, f"layer {layer}: suggested to edit"))
    return parts


def _layer_ticks(left: float, y: float, step: float, n_layers: int) -> list[str]:
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100) if n * step >= 20 or n == 100)
    return [
        text(left + (layer + 0.5) * step, y + 15, str(layer), anchor="middle", kind="tick")
        for layer in range(0, n_layers, every)
    ]


def _color_bar(
    kind: str, x: float, y: float, height: float, scale: tuple[float, float], marks: Mapping[str, float]
) -> list[str]:
    """Sixteen steps from low to high, and the marks where they lie, spread so that none hides another."""
    steps = 16
    parts: list[str] = []
    for n in range(steps):
        step = height / steps
        parts.append(rect(x, y + height - (n + 1) * step, 10, step + 0.3, _ink(kind, (n + 0.5) / steps)))
    parts.append(rect(x, y, 10, height, "none", ' stroke="#888"'))
    free = y + height + 12.0
    for name, value in sorted(marks.items(), key=lambda mark: mark[1]):
        at = y + height * (1 - share_of(value, *scale))
        label = min(at + 4, free)
        free = label - 12
        parts += [line(x, at, x + 13, at), text(x + 16, label, f"{name} {value:.3f}", kind="tick")]
    return parts


def _ink(kind: str, share: float) -> str:
    red, green, blue = tint(kind, share)
    return f"#{red:02x}{green:02x}{blue:02x}"


def line_chart(chart: CurveChart) -> str:
    """Draw one line per curve, layers across, with its 95 % band."""
    left, above, width, height, low, top = 44.0, 26.0, 300.0, 170.0, chart.low, chart.top
    n_layers = len(next(iter(chart.curves.values())).mean)
    step = width / max(1, n_layers - 1)

    def place(layer: int, value: float) -> str:
        return f"{left + layer * step:.6g},{above + height * (1 - share_of(value, low, top)):.6g}"

    parts = [text(left, 14, chart.caption, kind="head"), *_value_axis(left, above, width, height, low, top)]
    for name, curve in chart.curves.items():
        ink = chart.inks[name]
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
        radius = min(2.4, max(1.2, step / 4))
        for n, value in enumerate(curve.mean):
            x, y = place(n, value).split(",")
            dot = f'<circle cx="{x}" cy="{y}" r="{radius:g}" fill="{ink}"/>'
            parts.append(hover(dot, f"{name}, layer {n}: {value:.3f}"))
    parts += _layer_axis(left - step / 2, above + height, step, n_layers, chart.layers)
    return svg_figure(left + width + 14, above + height + 34, chart.title, parts)


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


def bar_chart(chart: CurveChart) -> str:
    """Draw a group of bars per layer, one bar per curve, with its 95 % interval."""
    left, above, height, low, top = 44.0, 26.0, 190.0, chart.low, chart.top
    n_layers = len(next(iter(chart.curves.values())).mean)
    step = max(12.0, min(70.0, 620.0 / n_layers))
    width = step * n_layers
    parts = [text(left, 14, chart.caption, kind="head"), *_value_axis(left, above, width, height, low, top)]
    zero = above + height * (1 - share_of(0.0, low, top))
    bar = step * 0.8 / len(chart.curves)
    for n, (name, curve) in enumerate(chart.curves.items()):
        for layer, value in enumerate(curve.mean):
            x = left + layer * step + step * 0.1 + n * bar
            y = above + height * (1 - share_of(value, low, top))
            drawn = rect(x, min(y, zero), bar, abs(zero - y), chart.inks[name])
            parts.append(hover(drawn, f"{name}, layer {layer}: {value:.3f}"))
            a, b = curve.low[layer], curve.high[layer]
            if a is not None and b is not None:
                ends = [above + height * (1 - share_of(end, low, top)) for end in (a, b)]
                parts.append(line(x + bar / 2, ends[0], x + bar / 2, ends[1], "#333"))
    parts += _layer_axis(left, above + height, step, n_layers, chart.layers)
    return svg_figure(left + width + 14, above + height + 34, chart.title, parts)
