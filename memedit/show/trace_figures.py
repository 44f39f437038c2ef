"""The figures of a trace as descriptions. The page, the SVG files and the PNG files draw these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memedit.config.layers import layer_range, layers_text
from memedit.numerics.effects import ROLES
from memedit.results.traces import Average, Curve, TracedFact
from memedit.show.heatmap import TITLES, labels

FACTS = 24  # facts drawn one by one; the tables of all others are in trace.safetensors
ROLE_INKS = dict(zip(ROLES, ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#000000"), strict=True))
"""Okabe and Ito's colors, which color-blind readers can tell from each other; one per role."""
PATHS = {
    "hidden": ("state restored", "#54278f"),
    "mlp severed": ("MLP path severed", "#7fbf7b"),
    "attention severed": ("attention path severed", "#e08b84"),
}
"""Name and color of each bar of the severed experiment."""


@dataclass(frozen=True)
class HeatMap:
    """Tokens down, layers across, shaded from `low` to `top`."""

    kind: str
    caption: str
    title: str
    """In words what it shows: the alternative text."""
    rows: Sequence[Sequence[float]]
    """(T, L)."""
    names: Sequence[str]
    low: float
    top: float
    marks: Mapping[str, float]
    """Named values on the color bar."""
    common: tuple[float, float]
    """The ends of the scale that all facts share; a page offers it as a choice."""
    layers: Sequence[int] = ()
    """The suggested layers, marked on the axis."""


@dataclass(frozen=True)
class CurveChart:
    """Named curves over layers with their 95 % intervals; drawn as lines or as bars."""

    caption: str
    title: str
    curves: Mapping[str, Curve]
    inks: Mapping[str, str]
    low: float
    top: float
    layers: Sequence[int] = ()
    """The suggested layers, marked on the axis."""


def suggested_layers(average: Average) -> list[int]:
    """The layers that a trace suggests to edit, ascending; none where no site was found."""
    return layer_range(average.layers, average.n_layers) if average.layers else []


def axis_label(layers: Sequence[int]) -> str:
    """The name of the axis of layers, with those that are marked on it."""
    return f"layer (to edit: {layers_text(layers)})" if layers else "layer"


def common_scale(facts: Sequence[TracedFact]) -> tuple[float, float]:
    """The scale of all maps that are drawn: from 0 to the highest probability of any of these facts."""
    return 0.0, max(map(_highest, facts), default=1.0)


def _highest(traced: TracedFact) -> float:
    return max(traced.fact.clean or 0.0, *(float(traced.scores[kind].max()) for kind in TITLES))


def fact_figures(traced: TracedFact, common: tuple[float, float], layers: Sequence[int] = ()) -> list[HeatMap]:
    """Three heat-maps of one fact: states, MLP outputs and attention outputs restored; `layers` are marked."""
    fact = traced.fact
    low, clean, top = fact.corrupted or 0.0, fact.clean or 0.0, _highest(traced)
    names, found = labels(fact), list[HeatMap]()
    for kind in TITLES:
        table, caption = traced.scores[kind], captioned(kind, fact.window)
        token, layer = divmod(int(table.argmax()), table.shape[1])
        title = (
            f"{caption}: probability of {fact.answer.strip()!r} after {fact.prompt!r} by token and layer; highest "
            f"{float(table.max()):.3f} at {names[token]!r}, layer {layer}; corrupted {low:.3f}, clean {clean:.3f}"
        )
        marks = {"corrupted": low, "clean": clean}
        found.append(HeatMap(kind, caption, title, table.tolist(), names, low, top, marks, common, layers))
    return found


def role_figures(average: Average) -> list[CurveChart]:
    """Mean effects by role of the token: a chart for each kind, all on one axis."""
    low, top = _span([curve for roles in average.effects.values() for curve in roles.values()])
    layers = suggested_layers(average)
    found: list[CurveChart] = []
    for kind, roles in average.effects.items():
        best_role, best = max(roles.items(), key=lambda item: max(item[1].mean))
        layer, caption = best.mean.index(max(best.mean)), captioned(kind, average.window)
        title = (
            f"{caption}: mean effect on the answer's probability by role and layer; highest {best.mean[layer]:.3f}, "
            f"{best_role}, layer {layer}"
        )
        found.append(CurveChart(caption, title, roles, {role: ROLE_INKS[role] for role in roles}, low, top, layers))
    return found


def path_figure(average: Average) -> CurveChart:
    """The severed experiment at the last subject token."""
    gap, caption = average.gap.mean, "At the last subject token"
    title = (
        f"{caption}: mean effect of the restored state, whole and with a path severed, by layer; the gap of the MLP "
        f"path is largest at layer {gap.index(max(gap))}, {max(gap):.3f}"
    )
    curves = {PATHS[kind][0]: curve for kind, curve in average.severed.items()}
    inks = {PATHS[kind][0]: PATHS[kind][1] for kind in average.severed}
    low, top = _span(list(average.severed.values()))
    return CurveChart(caption, title, curves, inks, low, top, suggested_layers(average))


def captioned(kind: str, window: int) -> str:
    """The name of what is restored, with the window of layers for outputs."""
    return TITLES[kind] if kind == "hidden" else f"{TITLES[kind]} (window {window})"


def all_inks(charts: Sequence[CurveChart]) -> dict[str, str]:
    """The legend of several charts."""
    return {name: ink for chart in charts for name, ink in chart.inks.items()}


def _span(curves: Sequence[Curve]) -> tuple[float, float]:
    """An axis that holds all curves with their intervals, and zero."""
    ends = [
        value for curve in curves for part in (curve.mean, curve.low, curve.high) for value in part if value is not None
    ]
    low, top = min(0.0, *ends), max(0.0, *ends)
    return (low, top) if top > low else (0.0, 1.0)
