"""Traces as one page: inline SVG, no script, nothing fetched; it prints as it is seen."""

from __future__ import annotations

from html import escape

from memedit.numerics.effects import ROLES
from memedit.results.traces import Average, TracedFact, TracingResult
from memedit.show import svg
from memedit.show.heatmap import TITLES, labels

FACTS = 24  # drawn one by one; the tables of the others are in trace.safetensors
TRACE_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
p { max-width: 46rem; } .said { border-left: 4px solid #54278f; padding: .2rem .9rem; background: #f6f4fa; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 500; padding-right: 1.5rem; color: #555; }
figure { margin: .6rem 0; } figcaption { color: #444; font-size: .9rem; max-width: 46rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; }
svg { max-width: 100%; height: auto; font: 11px system-ui, sans-serif; break-inside: avoid; }
svg .head { font-weight: 600; font-size: 12px; } svg .tick { fill: #444; }
svg .token, svg .star { font-family: ui-monospace, monospace; } svg .star { font-weight: 700; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; }
.legend { margin: .2rem 0; font-size: .9rem; }
.legend span { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -1px; }
section.fact { break-inside: avoid; }
* { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; } }
"""


def trace_page(tracing: TracingResult) -> str:
    """The whole document."""
    average = tracing.average
    drawn = tracing.facts[:FACTS]
    left = len(tracing.facts) - len(drawn)
    note = f"<p>{left:,} more facts are in trace.jsonl and trace.safetensors.</p>" if left else ""
    body = [
        f"<h1>Where {escape(_name(average.model))} recalls {_facts(average)}</h1>",
        _summary(average),
        _averages(average),
        _severed(average),
        "<h2>Fact by fact</h2><p>Tokens down, those of the subject starred; layers across. Shades are the answer's "
        "probability with one thing put back, from the corrupted run's up to the highest of the three maps.</p>",
        *(_fact(traced) for traced in drawn),
        note,
    ]
    inside = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>memedit trace: {escape(_name(average.model))}</title>\n<style>{TRACE_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{inside}\n</main>\n</body>\n</html>\n"
    )


def _name(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]


def _facts(average: Average) -> str:
    return "1 fact" if average.facts == 1 else f"{average.facts:,} facts"


def _summary(average: Average) -> str:
    layers = f"Layers to edit: <b>{average.layers}</b>. " if average.layers else ""
    said = average.reason[0].upper() + average.reason[1:]
    rows = {
        "facts": f"{average.facts:,} traced, {average.unknown:,} not known to the model and skipped",
        "probability of the answer": f"{average.clean.mean:.3f} clean, {average.corrupted.mean:.3f} corrupted: "
        f"a total effect of {average.total.mean:.3f}",
        "noise": f"{average.noise:.4g} ({average.noise_rule}), {average.samples} samples, seed {average.seed}",
        "window of MLP and attention outputs": f"{average.window} of {average.n_layers} layers",
    }
    cells = "".join(f"<tr><th scope='row'>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return (
        f'<p class="said">{layers}{escape(said)}. That a fact is recalled there need not mean that it is best edited '
        f"there (Hase et al. 2023).</p><table>{cells}</table>"
    )


def _averages(average: Average) -> str:
    everything = [curve for roles in average.effects.values() for curve in roles.values()]
    low, top = svg.span(everything)
    inks = dict(zip(ROLES, svg.ROLE_INKS, strict=True))
    panels: list[str] = []
    for kind, roles in average.effects.items():
        best_role, best = max(roles.items(), key=lambda item: max(item[1].mean))
        layer = best.mean.index(max(best.mean))
        title = (
            f"{_titled(kind, average.window)}: mean effect on the answer's probability by role and layer; highest "
            f"{best.mean[layer]:.3f}, {best_role}, layer {layer}"
        )
        panels.append(svg.curves(title, roles, [inks[role] for role in roles], low=low, top=top))
    shown = {role: ink for role, ink in inks.items() if any(role in roles for roles in average.effects.values())}
    counts = next(iter(average.effects.values()))
    n = ", ".join(f"{role} {curve.n:,}" for role, curve in counts.items())
    return (
        f'<h2>On average, by the role of the token</h2><figure><div class="row">{"".join(panels)}</div>'
        f"{svg.legend(shown)}<figcaption>What comes back of the answer's probability when one thing is put back, mean "
        f"over facts; bands are 95 % intervals, clustered by subject. Facts with that token: {n}.</figcaption></figure>"
    )


def _severed(average: Average) -> str:
    gap = average.gap.mean
    title = (
        "At the last subject token: mean effect of the state put back, whole and with a path severed, by layer; the "
        f"gap of the MLP path is largest at layer {gap.index(max(gap))}, {max(gap):.3f}"
    )
    names = {svg.SEVERED_NAMES[kind]: ink for kind, ink in svg.SEVERED_INKS.items()}
    return (
        f"<h2>Through which path</h2><figure>{svg.bar_chart(title, average)}{svg.legend(names)}"
        "<figcaption>Where severing "
        "the MLP path takes the effect away, later MLPs at the subject still have their part of the recall to do."
        "</figcaption></figure>"
    )


def _fact(traced: TracedFact) -> str:
    fact = traced.fact
    low, clean = fact.corrupted or 0.0, fact.clean or 0.0
    top = max(clean, *(float(traced.scores[kind].max()) for kind in TITLES))
    maps = [
        svg.heat_map(
            kind,
            _fact_title(traced, kind),
            traced.scores[kind].tolist(),
            labels(fact),
            low=low,
            top=top,
            marks={"corrupted": low, "clean": clean},
        )
        for kind in TITLES
    ]
    return (
        f'<section class="fact"><h3>{escape(fact.prompt)} &rarr; {escape(fact.answer.strip())}</h3>'
        f"<p>Clean {clean:.3f}, corrupted {low:.3f}: a total effect of {clean - low:.3f}.</p>"
        f'<div class="row">{"".join(maps)}</div></section>'
    )


def _fact_title(traced: TracedFact, kind: str) -> str:
    fact, table = traced.fact, traced.scores[kind]
    token, layer = divmod(int(table.argmax()), table.shape[1])
    return (
        f"{_titled(kind, fact.window)}: probability of {fact.answer.strip()!r} after {fact.prompt!r} by token and "
        f"layer; highest {float(table.max()):.3f} at {labels(fact)[token]!r}, layer {layer}; corrupted "
        f"{fact.corrupted or 0.0:.3f}, clean {fact.clean or 0.0:.3f}"
    )


def _titled(kind: str, window: int) -> str:
    return TITLES[kind] if kind == "hidden" else f"{TITLES[kind]} (window {window})"
