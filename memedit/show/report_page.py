"""A report of apply or eval as one HTML page that needs no other file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from markupsafe import Markup, escape

from memedit.config.recipe import Recipe
from memedit.config.resolve import flatten
from memedit.results.metrics import METRICS_BY_NAME, MetricRow
from memedit.results.report import EditResult, Figure, Report, TextDrift
from memedit.results.rows import beside, headings, lines_of_model, remarks, rows, score_lines
from memedit.results.units import name_of_path, printable
from memedit.show.pages import LISTED, render_page
from memedit.show.report_figures import dots, edits_chart, perplexity_text, texts_chart
from memedit.show.terminal import layers_line

FAILURES = 20  # failures that are told one by one; the table has them all
MOVED_MOST = 10  # rows of text that are told one by one
FEW = 10
"""Records below which a figure in the sentence is followed by its count, and by that being few."""


def evaluation_page(report: Report) -> str:
    """Write the page: did it work, failures, figures, edits, what else moved, how it was done.

    It has no script and no link; text of lists and models is escaped.
    """
    edits = worst_first(report.per_edit)
    failures = [one for one in edits if outcome(one) != "holds"]
    heads, cells = _edits_table(edits[:LISTED])
    texts = report.drift.texts if report.drift else ()
    name = ", ".join(name_of_path(one.model) for one in report.models) or _name(report)
    return render_page(
        "evaluation.html.j2",
        title=f"{name}: 1 edit" if report.edits == 1 else f"{name}: {report.edits:,} edits",
        sentence=in_one_sentence(report),
        failures=[_failure(one) for one in failures[:FAILURES]],
        more_failures=max(0, len(failures) - FAILURES),
        models=beside(report) if report.models else None,
        against_first=_against_first(report),
        model=_name(report),
        figures=_figures(report, elsewhere=False),
        moved=_figures(report, elsewhere=True),
        texts_chart=texts_chart(texts),
        texts=_texts(texts),
        remarks=remarks(report),
        chart=edits_chart(edits),
        heads=["", *heads],
        edits=cells,
        outcomes={name: sum(outcome(one) == name for one in edits) for name in ("fails", "holds", "skipped")},
        hidden=max(0, len(edits) - LISTED),
        provenance=_provenance(report),
    )


def in_one_sentence(report: Report) -> str:
    """Say whether it worked: how many edits the model says, in how many other wordings, how much of the rest is left.

    The sentence is about the first model of the report.
    """
    model, tried = report.scored[0], [one for one in report.per_edit if one.status != "skipped"]
    removed = [one for one in tried if one.edit.get("remove")]
    tried = [one for one in tried if not one.edit.get("remove")]
    says = sum(one.status == "ok" for one in tried)

    def share(name: str, *, count: bool = False) -> str | None:
        value = model.value(name)
        if not isinstance(value, Figure):
            return None
        few = ": too few to tell" if value.n < FEW else ""
        return METRICS_BY_NAME[name].number(value.mean) + (f" (n={value.n:,}{few})" if count else "")

    free, other = share("generated.efficacy"), share("paraphrase_accuracy")
    parts = [f"says {says:,} of {len(tried):,} edits" if tried else "was asked about no edit"]
    parts[0] += f" ({free} when it writes freely)" if free else ""
    if removed:
        parts = parts if tried else []
        still, freely = sum(one.status == "failed" for one in removed), share("generated.still_named")
        parts.append(f"still says the old object of {still:,} of {len(removed):,} removed facts")
        parts[-1] += f" ({freely} when it writes freely)" if freely else ""
    parts += [f"gives the new object in {other} of other wordings"] if other else []
    # With their counts: few facts may be behind them.
    others, siblings = share("kept.others", count=True), share("kept.siblings", count=True)
    near = share("neighborhood_accuracy")
    parts += [f"keeps {others} of known facts about other subjects"] if others else []
    parts += [f"keeps {siblings} of other known facts about the edited subjects"] if siblings else []
    left = bool(others or siblings or near)
    if near and not (others or siblings):
        was = report.before.neighborhood_accuracy if report.before else None
        parts.append(f"answers {near} of neighbors' questions right" + (f", before {was.mean:.1%}" if was else ""))
    said = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return f"{_name(report)} {said}." + ("" if left else " What is left of its other knowledge was not measured.")


def _name(report: Report) -> str:
    return name_of_path(report.output or report.scored[0].model) or "The model"


def outcome(one: EditResult) -> str:
    """`skipped`; `holds` if the forced answer is right, and the free one where there is one; else `fails`."""
    if one.status == "skipped":
        return "skipped"
    free = "generated.contains" in one.after or one.after.get("generated.efficacy", 1.0) == 1.0
    free = free and one.after.get("generated.still_named", 0.0) == 0.0
    return "holds" if one.status == "ok" and free else "fails"


def worst_first(edits: Sequence[EditResult]) -> list[EditResult]:
    """Edits that fail before edits that were skipped, before edits that hold.

    Those that fail are ordered by free answers where there are any, by exact match, by magnitude.
    """

    def key(one: EditResult) -> tuple[float, ...]:
        names = ("generated.efficacy", "accuracy", "efficacy", "paraphrase_accuracy", "efficacy_magnitude")
        values = (1.0 if (value := one.after.get(name)) is None else value for name in names)
        return (("fails", "skipped", "holds").index(outcome(one)), *values)

    return sorted(edits, key=key)


def wanted_of(one: EditResult) -> str:
    """What the model should say: the object, or not the old one."""
    if one.edit.get("remove"):
        return f"not {one.edit.get('object_old', '-')}"
    return str(one.edit.get("object", "-"))


def prompt_of(one: EditResult) -> str:
    """The prompt of an edit, with its subject in it."""
    return str(one.edit.get("prompt", "")).replace("{}", str(one.edit.get("subject", "")), 1)


def says_of(one: EditResult) -> str:
    """What the model says after the prompt of an edit; empty where it was not asked."""
    said = " ".join(one.said.get("after", "").split())
    return f"says \u201c{said}\u201d" if said else "says nothing" if "after" in one.said else ""


def _failure(one: EditResult) -> dict[str, str]:
    """One failure: the prompt, what was wanted, and what the model says, or why it was skipped."""
    said = f"the model {says_of(one)}" if "after" in one.said else ""
    tells = f"skipped: {one.reason or 'no reason was given'}" if one.status == "skipped" else said
    if one.status == "ok":
        tells = f"right when its tokens are forced, but {said or 'the model says nothing'}"
    return {"id": one.id, "prompt": prompt_of(one), "wanted": wanted_of(one), "tells": tells}


def _edits_table(edits: Sequence[EditResult]) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Headings, and each edit's outcome, mark and cells; a column that would be empty is left out."""
    every: list[tuple[str, dict[str, str]]] = []
    for one in edits:
        cells = {
            "edit": one.id, "prompt": prompt_of(one), "old object": str(one.edit.get("object_old", "")),
            "new object": "(removed)" if one.edit.get("remove") else str(one.edit.get("object", "")),
            "says before": one.said.get("before", "").strip(),
            "says after": one.said.get("after", "").strip(), "why": one.reason or "",
            "lead before": _number(one.before.get("efficacy_magnitude"), "+.3f"),
            "lead after": _number(one.after.get("efficacy_magnitude"), "+.3f"),
            "other wordings": _number(one.after.get("paraphrase_accuracy"), ".0%"),
            "neighbors": _number(one.after.get("neighborhood_accuracy"), ".0%"),
        }  # fmt: skip
        every.append((outcome(one), cells))
    heads = [head for head in (every[0][1] if every else ()) if any(cells[head] for _, cells in every)]
    return heads, [(result, "", [result, *(cells[head] for head in heads)]) for result, cells in every]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _against_first(report: Report) -> list[str]:
    """For each model but the first, the figures in which it differs from the first: 0 lies outside their interval."""
    found: list[str] = []
    for model in report.models[1:]:
        clear = [
            f"{line.label} {line.span(gap, difference=True)}"
            for line in lines_of_model(model, None, {})
            if (gap := model.against_first.get(line.metric.name)) is not None and not gap.low <= 0 <= gap.high
        ]
        said = ", ".join(clear) or "no figure differs clearly"
        found.append(f"{name_of_path(model.model)} against {name_of_path(report.models[0].model)}: {said}.")
    return found


def _figures(report: Report, *, elsewhere: bool) -> tuple[list[str], list[list[str]]] | None:
    """The rows of figures about the edits, or about everything else, each with its dots; None if there are none.

    What a figure measures is below its name: as a column it would make the table wider than the page.
    """
    drawn: list[list[str]] = []
    for line, row in zip(score_lines(report), rows(report), strict=True):
        if _elsewhere(line.metric) == elsewhere:
            named = Markup("{}<br><small>{}</small>").format(escape(row[0]), escape(printable(row[-1])))
            drawn.append([named, dots(line), *row[1:-1]])
    first, *others = headings(bool(report.difference))[:-1]
    return ([first, "", *others], drawn) if drawn else None


def _texts(texts: Sequence[TextDrift]) -> tuple[list[str], list[list[str]]]:
    """The rows of text on which the model moved most, the farthest first; each with its numbers."""
    moved = sorted((one for one in texts if one.kl is not None), key=lambda one: -(one.kl or 0.0))
    cells = [
        [
            one.begins, f"{one.tokens:,}", "-" if one.perplexity_base is None else perplexity_text(one.perplexity_base),
            perplexity_text(one.perplexity), f"{one.kl:.4f}",
        ]
        for one in moved[:MOVED_MOST]
    ]  # fmt: skip
    return ["row begins", "tokens", "perplexity before", "after", "KL per token"], cells


def _elsewhere(metric: MetricRow) -> bool:
    """Whether a metric is about what was not to change."""
    return metric.kind in ("agreement", "text", "drift", "kept", "retention") or metric.probe.startswith("neighbor")


def _provenance(report: Report) -> list[tuple[str, str]]:
    """How the numbers were made: models, command, device, changed settings, digests, times and versions."""
    made: list[tuple[str, str]] = [("output", report.output)] if report.output else []
    if report.layers:
        made.append(("change", layers_line(report)))
    told = (("search", report.search), ("polish", report.polish), ("ledger", report.ledger))
    made += [(name, one.line) for name, one in told if one]
    settings = ", ".join(f"{name} = {value}" for name, value in changed_settings(report).items())
    return [
        ("model", report.model),
        *([("base", report.base)] if report.base else []),
        *made,
        ("command", shlex.join(["memedit", *report.arguments])),
        ("settings that differ from the defaults", settings or "none"),
        ("device", report.device),
        *([("target search", report.engine)] if report.engine else []),
        *((f"sha256 of {name}", str(value)) for name, value in report.digests.items()),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.timings.items())),
        *report.versions.items(),
    ]


def changed_settings(report: Report) -> dict[str, str]:
    """The settings of a run that are not the defaults of its method, as JSON; the model and the output are left out."""
    method = report.recipe.get("method", {}).get("name", "memit")
    defaults = flatten(Recipe.model_validate({"method": {"name": method}}).model_dump(mode="json"))
    defaults["method.name"] = Recipe().method.name
    return {
        name: json.dumps(value, ensure_ascii=False)
        for name, value in flatten(report.recipe).items()
        if name not in ("model.path", "output.dir") and value != defaults.get(name)
    }
