"""Traces as one HTML page: inline SVG, no script, no other file."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from memedit.results.traces import Average, TracedFact, TracingResult
from memedit.results.units import name_of_path, printable
from memedit.show.heatmap import TITLES, labels
from memedit.show.pages import render_page
from memedit.show.svg import bar_chart, heat_map, line_chart
from memedit.show.trace_figures import (
    FACTS,
    all_inks,
    common_scale,
    fact_figures,
    path_figure,
    role_figures,
    suggested_layers,
)


def trace_page(tracing: TracingResult) -> str:
    """Write the whole page: the layers, averages, an index of all facts, and the maps of the first FACTS facts."""
    average = tracing.average
    model, layers = name_of_path(average.model), suggested_layers(average)
    roles, paths, drawn = role_figures(average), path_figure(average), tracing.facts[:FACTS]
    scale = common_scale(drawn)
    counts = next(iter(average.effects.values()))
    return render_page(
        "trace.html.j2",
        title=f"memedit trace: {model}",
        model=model,
        count="1 fact" if average.facts == 1 else f"{average.facts:,} facts",
        layers=average.layers,
        reason=average.reason[:1].upper() + average.reason[1:],
        summary=_summary(average),
        roles=[Markup(line_chart(chart)) for chart in roles],
        roles_inks=all_inks(roles),
        role_counts=", ".join(f"{role} {curve.n:,}" for role, curve in counts.items()),
        paths=Markup(bar_chart(paths)),
        paths_inks=paths.inks,
        index=[_index(number, traced) for number, traced in enumerate(tracing.facts, start=1)],
        facts=[_fact(traced, scale, layers) for traced in drawn],
        top=f"{scale[1]:.3f}",
        hidden=len(tracing.facts) - len(drawn),
    )


def _summary(average: Average) -> list[tuple[str, str]]:
    return [
        ("facts", f"{average.facts:,} traced, {average.unknown:,} skipped because the model does not know them"),
        (
            "probability of the answer",
            f"{average.clean.mean:.3f} clean, {average.corrupted.mean:.3f} corrupted: a total effect of "
            f"{average.total.mean:.3f}",
        ),
        ("noise", f"{average.noise:.4g} ({average.noise_rule}), {average.samples} samples, seed {average.seed}"),
        ("window of MLP and attention outputs", f"{average.window} of {average.n_layers} layers"),
    ]


def _index(number: int, traced: TracedFact) -> list[str]:
    """A fact's cells in the index: its prompt, which leads to its maps if they are drawn; its answer; its scores."""
    fact, names, cells = traced.fact, labels(traced.fact), list[str]()
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    for kind in TITLES:
        table = traced.scores[kind]
        token, layer = divmod(int(table.argmax()), table.shape[1])
        cells.append(f"layer {layer}, {names[token]}")
    rank = "" if fact.corrupted_rank is None else f"{fact.corrupted_rank:,}"
    prompt = (
        Markup('<a href="#fact-{}">{}</a>').format(number, printable(fact.prompt)) if number <= FACTS else fact.prompt
    )
    return [prompt, fact.answer.strip(), f"{clean:.3f}", f"{low:.3f}", rank, f"{clean - low:.3f}", *cells]


def _fact(traced: TracedFact, scale: tuple[float, float], layers: Sequence[int]) -> dict[str, object]:
    fact = traced.fact
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    return {
        "prompt": fact.prompt,
        "answer": fact.answer.strip(),
        "clean": f"{clean:.3f}",
        "corrupted": f"{low:.3f}",
        "total": f"{clean - low:.3f}",
        "rank": fact.corrupted_rank,
        "maps": [Markup(heat_map(figure)) for figure in fact_figures(traced, scale, layers)],
    }
