"""A report's figures as rows of text: each with its meaning, before, after and the paired difference.

Terminal, page and model card show the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memedit.results.report import Drift, Figure, ModelReport, Report, Scores

METRIC_MEANINGS = {
    "efficacy": "the new object is likelier than the old",
    "paraphrase": "likelier under other wordings",
    "neighborhood": "neighbors keep their own object likelier",
    "neighborhood_plus": "even behind the edited fact",
    "efficacy_magnitude": "probability per token of the new, less the old",
    "paraphrase_magnitude": "the same under other wordings",
    "neighborhood_magnitude": "a neighbor's own, less the edit's",
    "accuracy": "every token of the object is the likeliest",
    "paraphrase_accuracy": "the same under other wordings",
    "neighborhood_accuracy": "neighbors still say their own object",
    "token_accuracy": "tokens of the object that are the likeliest",
    "paraphrase_token_accuracy": "the same under other wordings",
    "neighborhood_token_accuracy": "the same of neighbors' objects",
    "locality": "neighbors' tokens as the base has them",
    "portability": "tokens right of what follows from the edit",
    "portability_accuracy": "every token right of what follows",
    "reversal": "tokens right from the other end",
    "reversal_accuracy": "every token right from the other end",
    "fluency": "bits of n-gram entropy, opening included",
    "fluency_written": "the same without the opening",
    "consistency": "words shared with the references (tf-idf)",
}
GENERATED = {
    "efficacy": "written freely, names the new object first",
    "paraphrase": "the same under other wordings",
    "old": "written freely, names the old object",
    "paraphrase_old": "the same under other wordings",
    "portability": "written freely, says what follows from the edit",
    "reversal": "written freely, names the subject",
}
DRIFT = {
    "perplexity": "of the text",
    "ppl": "over the base's",
    "kl": "nats per token from the base",
    "top1": "tokens at which base and model agree",
}
PLAIN_LABELS = ("magnitude", "fluency", "consistency", "perplexity", "drift ppl", "drift kl")
"""Names whose values are no shares."""


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    name: str
    was: Figure | None
    now: Figure
    change: Figure | None
    meaning: str

    def text(self, figure: Figure | None, *, signed: bool = False) -> str:
        """A value as people read it: a share in percent, else a number."""
        return "-" if figure is None else self.number(figure.mean, signed=signed)

    def span(self, figure: Figure | None, *, signed: bool = False) -> str:
        """The value with its interval."""
        if figure is None:
            return "-"
        low, high = (self.number(end, signed=signed).rstrip("%") for end in (figure.low, figure.high))
        return f"{self.number(figure.mean, signed=signed)} ({low} to {high})"

    def number(self, value: float, *, signed: bool = False) -> str:
        """The same of one end of an interval."""
        sign = "+" if signed else ""
        if any(part in self.name for part in PLAIN_LABELS):
            return f"{value:{sign}.3f}"
        return f"{value:{sign}.1%}"


def score_lines(report: Report) -> Iterator[Line]:
    """Every figure that was measured, in order."""
    yield from of_model(report.judged[0], report.before, report.derived)


def of_model(model: ModelReport, before: Scores | None, derived: dict[str, int]) -> Iterator[Line]:
    """One model's figures."""
    for name, meaning in METRIC_MEANINGS.items():
        now: Figure | None = getattr(model.scores, name)
        if now is not None:
            marked = f"{meaning} (some derived)" if _kind(name) in derived else meaning
            yield Line(_title(name), getattr(before, name, None), now, model.difference.get(name), marked)
    for name, now in model.scores.groups.items():
        was = (before.groups if before else {}).get(name)
        yield Line(name, was, now, model.difference.get(name), "of this kind")
    for name, now in model.scores.generated.items():
        kind, _, count = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
        meaning = f"behind {count} unrelated tokens" if count else GENERATED.get(kind, "")
        meaning += " (some derived)" if _kind(name) in derived else ""
        was = (before.generated if before else {}).get(name)
        yield Line(f"generated {_title(name)}", was, now, model.difference.get(f"generated.{name}"), meaning)
    yield from _drift(model.drift)
    for name, now in model.kept.items():
        if now is not None:
            meaning = "known facts right before, right after" if before else "known facts right"
            yield Line(f"kept, {name}", None, now, None, meaning)
    if model.retention is not None:
        yield Line("retention", None, model.retention, None, "edits that held right after, and still do")


def _drift(drift: Drift | None) -> Iterator[Line]:
    for name, meaning in DRIFT.items():
        now: Figure | None = getattr(drift, name, None)
        if now is not None:
            was = drift.perplexity_base if drift and name == "perplexity" else None
            yield Line(f"drift {name}", was, now, None, meaning)


def headings(paired: bool) -> list[str]:
    """Of the columns of `rows`."""
    return ["", "before", "after, 95 %", "difference, 95 %", "n", ""] if paired else ["", "value, 95 %", "n", ""]


def rows(report: Report) -> list[list[str]]:
    """Every line as texts, and the score that joins three of them."""
    paired = bool(report.difference)
    found: list[list[str]] = []
    for line in score_lines(report):
        change = [line.span(line.change, signed=True)] if paired else []
        was = [line.text(line.was)] if paired else []
        found.append([line.name, *was, line.span(line.now), *change, f"{line.now.n:,}", line.meaning])
    if report.after is not None and report.after.score is not None:
        was = [f"{report.before.score:.1%}" if report.before and report.before.score is not None else "-"]
        now = [f"{report.after.score:.1%}", *([""] if paired else []), ""]
        found.append(["score", *(was if paired else []), *now, "harmonic mean of the three successes"])
    return found


def beside(report: Report) -> tuple[list[str], list[list[str]]]:
    """Several models, one column each, after the base's where there is one: headings and rows."""
    columns = {one.model: {line.name: line for line in of_model(one, report.before, {})} for one in report.models}
    base = [report.base or "base"] if report.before is not None else []
    found: list[list[str]] = []
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        row = [column.get(name) for column in columns.values()]
        was = [next(line.text(line.was) for line in row if line is not None)] if base else []
        found.append([name, *was, *("-" if line is None else line.text(line.now) for line in row)])
    scores = [*([report.before.score] if report.before else []), *(one.scores.score for one in report.models)]
    if any(score is not None for score in scores):
        found.append(["score", *("-" if score is None else f"{score:.1%}" for score in scores)])
    return ["", *base, *columns], found


def remarks(report: Report) -> list[str]:
    """What a reader must know beside the figures."""
    names = {"paraphrase": "paraphrases", "neighborhood": "neighbors"}
    found = [
        f"{names[kind]} of {count:,} of {report.edits:,} edits were derived from the list, which gives none"
        for kind, count in report.derived.items()
    ]
    return [*found, *report.notes]


def markdown(report: Report) -> str:
    """The figures as tables for a model card, and the remarks."""
    parts = [_markdown(*beside(report))] if report.models else []
    parts.append(_markdown(headings(bool(report.difference)), rows(report)))
    parts.append("".join(f"- {line}\n" for line in remarks(report)))
    return "\n".join(part for part in parts if part)


def _markdown(heads: list[str], cells: list[list[str]]) -> str:
    plain = heads[-1] == ""
    lines_of = [heads, ["---", *["---:"] * (len(heads) - 1 - plain), *["---"] * plain], *cells]
    return "".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |\n" for row in lines_of
    )


def _title(name: str) -> str:
    return name.replace("_", " ")


def _kind(name: str) -> str:
    """The probes that a figure is of."""
    return "neighborhood" if name == "locality" else name.split("_")[0]
