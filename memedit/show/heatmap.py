"""Traces in a terminal: tokens down, layers across. Shades are colors, and block characters where color is off."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group
from rich.text import Text
from torch import Tensor

from memedit.results.traces import Average, FactTrace, TracedFact, TracingResult
from memedit.results.units import printable

TITLES = {
    "hidden": "state restored",
    "mlp": "MLP outputs restored",
    "attention": "attention outputs restored",
}
COLORS = {"hidden": (84, 39, 143), "mlp": (0, 109, 44), "attention": (165, 15, 21)}
"""The darkest shade of each kind: the published purples, greens and reds."""
SHADES = " ░▒▓█"
LABEL = 28


def shown_token(token: str) -> str:
    """A token on one line, its spaces and breaks kept visible."""
    token = printable(token.replace("\r", "\\r"))
    return token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "\u00b7") or "\u2205"


def labels(fact: FactTrace) -> list[str]:
    """The tokens of a prompt, those of the subject starred."""
    first, last = fact.subject_tokens or (0, -1)
    return [f"{shown_token(token)}{'*' if first <= n <= last else ''}" for n, token in enumerate(fact.tokens)]


def tint(kind: str, share: float) -> tuple[int, int, int]:
    """A kind's color at a share from 0 (white) to 1 (its darkest)."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(255 + (dark - 255) * share) for dark in COLORS[kind])
    return red, green, blue


def share_of(value: float, low: float, high: float) -> float:
    """Where a value lies between the low score and the highest, from 0 to 1; 0 for no value."""
    if math.isnan(value) or high <= low:
        return 0.0
    return min(max((value - low) / (high - low), 0.0), 1.0)


def fact_maps(traced: TracedFact) -> Group:
    """The three heat-maps of one fact, shaded from its corrupted probability up to the highest score of the three."""
    fact = traced.fact
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    top = max(float(traced.scores[kind].max()) for kind in TITLES)
    head = Text.assemble((printable(fact.prompt), "bold"), " -> ", (printable(fact.answer.strip()), "bold"))
    details = (
        f"p = {clean:.3f}, corrupted {low:.3f}, total effect {clean - low:.3f}; subject *; shades {low:.3f}-{top:.3f}"
    )
    maps = [
        _map(
            title if kind == "hidden" else f"{title}, window {fact.window}",
            kind,
            traced.scores[kind],
            labels(fact),
            low,
            top,
        )
        for kind, title in TITLES.items()
    ]
    return Group(head, Text(details), *maps)


def average_maps(average: Average) -> Group:
    """The three heat-maps of the averages: roles down, layers across."""
    top = max(max(curve.mean) for roles in average.effects.values() for curve in roles.values())
    maps: list[Text] = []
    for kind, roles in average.effects.items():
        title = TITLES[kind] if kind == "hidden" else f"{TITLES[kind]}, window {average.window}"
        rows = [list(curve.mean) for curve in roles.values()]
        maps.append(_map(f"{title}: mean effect", kind, rows, list(roles), 0.0, top, numbers=True))
    return Group(*maps)


def summary(tracing: TracingResult) -> str:
    """Summarize a tracing in three lines."""
    average = tracing.average
    facts = "1 fact" if average.facts == 1 else f"{average.facts:,} facts"
    unknown = f" ({average.unknown:,} not known, skipped)" if average.unknown else ""
    lines = [
        f"traced    {facts}{unknown}, {average.samples} samples of noise {average.noise:.3g} ({average.noise_rule})",
        f"answer    p = {average.clean.mean:.3f}, corrupted {average.corrupted.mean:.3f}, "
        f"total effect {average.total.mean:.3f}",
        f"layers    {average.layers or 'none'}: {average.reason}",
    ]
    return "\n".join(lines)


def _map(
    title: str,
    kind: str,
    table: Tensor | Sequence[Sequence[float]],
    names: Sequence[str],
    low: float,
    top: float,
    *,
    numbers: bool = False,
) -> Text:
    rows: list[list[float]] = table.tolist() if isinstance(table, Tensor) else [list(row) for row in table]
    width = min(LABEL, max(len(name) for name in names))
    wide = 6 if numbers else max(2, len(str(len(rows[0]) - 1)) + 1)
    text = Text(f"\n{title}\n")
    text.append(" " * width + " " + "".join(f"{n:>{wide}}" for n in range(len(rows[0]))) + "  layer\n")
    for name, row in zip(names, rows, strict=True):
        text.append(f"{_cut(name, width):>{width}} ")
        for value in row:
            share = share_of(value, low, top)
            red, green, blue = tint(kind, share)
            # Block characters show the shade where color is off: in a pipe, or with NO_COLOR.
            block = SHADES[min(len(SHADES) - 1, round(share * (len(SHADES) - 1)))]
            cell = f"{value:>{wide}.2f}" if numbers else block * wide
            ink = "white" if share > 0.5 else "black"
            text.append(cell, style=f"{ink if numbers else f'rgb({red},{green},{blue})'} on rgb({red},{green},{blue})")
        text.append("\n")
    return text


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "\u2026"
