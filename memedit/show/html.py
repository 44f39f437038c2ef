"""Traces as one HTML page: inline SVG, no script, no other file; it prints as it is seen."""

from __future__ import annotations

from markupsafe import Markup

from memedit.results.traces import Average, TracedFact, TracingResult
from memedit.show.pages import render_page
from memedit.show.svg import bar_chart, heat_map, legend, line_chart
from memedit.show.trace_figures import FACTS, all_inks, fact_figures, path_figure, role_figures


def trace_page(tracing: TracingResult) -> str:
    """Write the whole page; at most FACTS facts are drawn one by one."""
    average = tracing.average
    model = average.model.rstrip("/").rsplit("/", 1)[-1]
    roles, paths = role_figures(average), path_figure(average)
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
        roles_legend=Markup(legend(all_inks(roles))),
        role_counts=", ".join(f"{role} {curve.n:,}" for role, curve in counts.items()),
        paths=Markup(bar_chart(paths)),
        paths_legend=Markup(legend(paths.inks)),
        facts=[_fact(traced) for traced in tracing.facts[:FACTS]],
        hidden=max(0, len(tracing.facts) - FACTS),
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


def _fact(traced: TracedFact) -> dict[str, object]:
    fact = traced.fact
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    return {
        "prompt": fact.prompt,
        "answer": fact.answer.strip(),
        "clean": f"{clean:.3f}",
        "corrupted": f"{low:.3f}",
        "total": f"{clean - low:.3f}",
        "maps": [Markup(heat_map(figure)) for figure in fact_figures(traced)],
    }
