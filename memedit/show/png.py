"""The figures of a trace as files: SVG as on the page, or PNG through matplotlib (the `plots` extra)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

from memedit.errors import UsageError
from memedit.results.traces import Curve, TracingResult
from memedit.results.units import printable
from memedit.show.svg import bar_chart, heat_map, line_chart, svg_file
from memedit.show.trace_figures import (
    FACTS,
    CurveChart,
    HeatMap,
    all_inks,
    axis_label,
    common_scale,
    fact_figures,
    path_figure,
    role_figures,
    suggested_layers,
)

COLOR_MAPS = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}


def check_plots(suffix: str = "png") -> None:
    """Raise UsageError if figures need matplotlib and it is not installed."""
    if suffix == "svg":
        return
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        hint = "pip install 'memedit[plots]', or write --plot svg, which needs nothing"
        raise UsageError("--plot png draws with matplotlib, which is not installed", hint) from error


def figures(tracing: TracingResult, suffix: Literal["png", "svg"]) -> dict[str, bytes]:
    """Draw files by name: the averages, the severed paths, and the three maps of each of the first facts."""
    check_plots(suffix)
    roles, paths = role_figures(tracing.average), path_figure(tracing.average)
    if suffix == "svg":
        average = svg_file("Mean effects by role and layer", [line_chart(one) for one in roles], all_inks(roles))
        severed = svg_file(paths.title, [bar_chart(paths)], paths.inks)
    else:
        average, severed = _lines(roles), _bars(paths)
    found = {f"figures/average.{suffix}": average, f"figures/severed.{suffix}": severed}
    scale = common_scale(tracing.facts[:FACTS])
    for number, traced in enumerate(tracing.facts[:FACTS], start=1):
        name = re.sub(r"[^\w.-]+", "-", traced.fact.id)[:80]
        title = printable(f"{traced.fact.prompt} \u2192 {traced.fact.answer.strip()}")
        maps = fact_figures(traced, scale, suggested_layers(tracing.average))
        drawn = svg_file(title, [heat_map(one) for one in maps], {}) if suffix == "svg" else _maps(title, maps)
        found[f"figures/{number:02d}-{name}.{suffix}"] = drawn
    return found


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _bytes(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _maps(title: str, maps: Sequence[HeatMap]) -> bytes:
    names, n_layers = maps[0].names, len(maps[0].rows[0])
    figure = _figure(3 * max(3.4, 1.6 + 0.09 * n_layers), 1.5 + 0.24 * len(names))
    # Text is data: a dollar sign in it begins no formula.
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axes, one in zip(figure.subplots(1, 3), maps, strict=True):
        drawn = axes.imshow(one.rows, cmap=COLOR_MAPS[one.kind], vmin=one.low, vmax=one.top, aspect="auto")
        axes.set_yticks(
            range(len(names)), list(map(printable, names)), fontsize=8, family="monospace", parse_math=False
        )
        _label_axes(axes, one.caption, one.layers)
        marks = [f"{name} {value:.3f}" for name, value in one.marks.items()]
        figure.colorbar(drawn, ax=axes).set_ticks(list(one.marks.values()), labels=marks, fontsize=7)
    return _bytes(figure)


def _lines(charts: Sequence[CurveChart]) -> bytes:
    figure = _figure(11, 3.6)
    all_axes = figure.subplots(1, len(charts), sharey=True)
    for axes, chart in zip(all_axes, charts, strict=True):
        for name, curve in chart.curves.items():
            ink, (low, high) = chart.inks[name], _interval(curve)
            axes.plot(curve.mean, color=ink, marker="o", markersize=3, label=name)
            axes.fill_between(range(len(curve.mean)), low, high, color=ink, alpha=0.15, linewidth=0)
        axes.axhline(0, color="#888", linewidth=0.8)
        _label_axes(axes, chart.caption, chart.layers)
    all_axes[0].set_ylabel("mean effect", fontsize=8)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return _bytes(figure)


def _bars(chart: CurveChart) -> bytes:
    n_layers = len(next(iter(chart.curves.values())).mean)
    figure = _figure(max(6.0, 0.22 * n_layers), 3.4)
    axes, width = figure.subplots(), 0.8 / len(chart.curves)
    for n, (name, curve) in enumerate(chart.curves.items()):
        low, high = _interval(curve)
        below = [m - a for m, a in zip(curve.mean, low, strict=True)]
        above = [b - m for m, b in zip(curve.mean, high, strict=True)]
        at, error = [layer + (n - 1) * width for layer in range(n_layers)], {"linewidth": 0.8, "ecolor": "#333"}
        axes.bar(at, curve.mean, width, yerr=[below, above], color=chart.inks[name], label=name, error_kw=error)
    axes.axhline(0, color="#888", linewidth=0.8)
    _label_axes(axes, chart.caption, chart.layers)
    axes.set_ylabel("mean effect", fontsize=8)
    axes.legend(fontsize=8)
    return _bytes(figure)


def _label_axes(axes: Any, caption: str, layers: Sequence[int]) -> None:
    axes.set_title(caption, fontsize=9)
    axes.set_xlabel(axis_label(layers), fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _interval(curve: Curve) -> tuple[list[float], list[float]]:
    """The ends of the interval; of one subject alone, the mean itself."""
    low = [m if a is None else a for m, a in zip(curve.mean, curve.low, strict=True)]
    high = [m if b is None else b for m, b in zip(curve.mean, curve.high, strict=True)]
    return low, high
