"""Traces in a terminal: tokens down, layers across. Shades are colors, and block characters where color is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text
from torch import Tensor

from memedit.results.traces import Average, FactTrace, TracedFact, TracingResult
from memedit.results.units import BROKEN, printable

TITLES = {
    "hidden": "state restored",
    "mlp": "MLP outputs restored",
    "attention": "attention outputs restored",
}
COLORS = {"hidden": (84, 39, 143), "mlp": (0, 109, 44), "attention": (165, 15, 21)}
"""The darkest shade of each kind: the published purples, greens and reds."""
SHADES = " ░▒▓█"
LABEL, LAYER, NUMBER = 28, "layer", 6
"""Cells of a label at most; the label of the row of layers; cells of a column of numbers."""


def shown_token(token: str) -> str:
    """A token on one line, its spaces and breaks kept visible."""
    token = printable(token.replace("\r", "\\r"))
    return token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "\u00b7") or "\u2205"


def labels(fact: FactTrace) -> list[str]:
    """The tokens of a prompt, those of the subject starred; a character of several tokens on each: `京 1/3`."""
    first, last = fact.subject_tokens or (0, -1)
    found: list[str] = []
    for n, (text, place, count) in enumerate(fact.parts or [(token, 1, 1) for token in fact.tokens]):
        shown = "bytes" if BROKEN in text else shown_token(text)
        part = f" {place}/{count}" if count > 1 or BROKEN in text else ""
        found.append(f"{shown}{part}{'*' if first <= n <= last else ''}")
    return found


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


def fact_maps(traced: TracedFact, width: int = 80) -> Group:
    """The three heat-maps of one fact, shaded from its corrupted probability up to the highest score of the three.

    width: columns of the terminal.
    """
    fact = traced.fact
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    top = max(float(traced.scores[kind].max()) for kind in TITLES)
    head = Text.assemble((printable(fact.prompt), "bold"), " -> ", (printable(fact.answer.strip()), "bold"))
    rank = "" if fact.corrupted_rank is None else f" (rank {fact.corrupted_rank:,})"
    details = f"p {clean:.3f}, corrupted {low:.3f}{rank}; subject *; shades {low:.3f}-{top:.3f}"
    names = labels(fact)
    maps = [
        _map(
            title if kind == "hidden" else f"{title}, window {fact.window}", kind, traced.scores[kind], names,
            (low, top), width,
        )
        for kind, title in TITLES.items()
    ]  # fmt: skip
    return Group(head, Text(details), *maps)


def average_maps(average: Average, width: int = 80) -> Group:
    """The three heat-maps of the averages: roles down, layers across; width: columns of the terminal."""
    top = max(max(curve.mean) for roles in average.effects.values() for curve in roles.values())
    maps: list[Text] = []
    for kind, roles in average.effects.items():
        title = TITLES[kind] if kind == "hidden" else f"{TITLES[kind]}, window {average.window}"
        rows = [list(curve.mean) for curve in roles.values()]
        title = f"{title}: mean effect 0-{top:.3f}"
        maps.append(_map(title, kind, rows, list(roles), (0.0, top), width, numbers=True))
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
    scale: tuple[float, float],
    room: int,
    *,
    numbers: bool = False,
) -> Text:
    """One map in `room` columns; `numbers`: with the values, where they fit.

    If there are more layers than columns, a column is the mean of neighboring layers.
    """
    rows: list[list[float]] = table.tolist() if isinstance(table, Tensor) else [list(row) for row in table]
    width = max(len(LAYER), min(LABEL, max(map(cell_len, names))))
    n_layers, room = len(rows[0]), max(room - width - 1, 1)
    together = -(-n_layers // room)
    rows = [[fmean(row[n : n + together]) for n in range(0, n_layers, together)] for row in rows]
    digits = len(str(n_layers - 1))
    numbers = numbers and len(rows[0]) * NUMBER <= room
    wide = NUMBER if numbers else max(1, min(max(2, digits + 1), room // len(rows[0])))
    text = Text(f"\n{title}{f', {together} layers a column' if together > 1 else ''}\n")
    text.append(f"{LAYER:>{width}} {_heads(range(0, n_layers, together), wide)}\n")
    for name, row in zip(names, rows, strict=True):
        text.append(" " * (width - cell_len(cut_label(name, width))) + f"{cut_label(name, width)} ")
        for value in row:
            text.append(*_cell(kind, value, scale, wide, numbers=numbers))
        text.append("\n")
    return text


def _cell(kind: str, value: float, scale: tuple[float, float], wide: int, *, numbers: bool) -> tuple[str, str]:
    """The text and the style of one value."""
    share = share_of(value, *scale)
    red, green, blue = tint(kind, share)
    # Block characters show the shade where color is off: in a pipe, or with NO_COLOR.
    block = SHADES[min(len(SHADES) - 1, round(share * (len(SHADES) - 1)))]
    text = f"{value:>{wide}.2f}" if numbers else block * wide
    ink = "white" if share > 0.5 else "black"
    return text, f"{ink if numbers else f'rgb({red},{green},{blue})'} on rgb({red},{green},{blue})"


def _heads(layers: Sequence[int], wide: int) -> str:
    """Numbers of layers above columns of this width, as many as fit: each ends where its column ends.

    >>> _heads(range(12), 1)
    '0    5    10 '
    """
    space = len(str(layers[-1])) + 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * wide >= space)
    line = ""
    for n in range(0, len(layers), step):
        line += f"{layers[n]:>{max((n + 1) * wide - len(line), 0)}}"
    return line.ljust(len(layers) * wide)


def cut_label(name: str, width: int) -> str:
    """The label of a token in at most `width` terminal cells; a cut is marked, and a star stays."""
    tail = "\u2026*" if name.endswith("*") else "\u2026"
    return name if cell_len(name) <= width else set_cell_size(name, width - len(tail)) + tail
