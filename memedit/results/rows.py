"""A report's metrics as rows of text: label, before, after, paired difference, count and meaning.

Terminal, page, model card and notebook show these rows. Labels, meanings and number formats come from
`memedit.results.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from memedit.results.metrics import METRICS, METRICS_BY_NAME, MOST_TELLING, MetricRow, metric_of, table_order
from memedit.results.report import Figure, ModelReport, Report, Scores
from memedit.results.units import name_of_path, printable

TOO_WIDE = 0.2
"""Width of an interval of a difference, of shares or of probabilities, from which one that holds 0 tells nothing."""
AGAINST = "against the first, 95 %"
TOO_FEW = "too few to tell"
BASE_OF = {"drift.perplexity": "drift.perplexity_base"}
"""Metrics whose value before is another metric of the same report."""


@dataclass(frozen=True)
class Line:
    """One metric of one model."""

    metric: MetricRow
    before: Figure | float | None
    after: Figure | float
    difference: Figure | None
    mark: str = ""
    """What it was measured on, where the list gives no probes for it."""

    @property
    def label(self) -> str:
        """The name of the metric for people, on one line."""
        return " ".join(printable(self.metric.label).split())

    @property
    def meaning(self) -> str:
        """What the metric measures."""
        return f"{self.metric.meaning} ({self.mark})" if self.mark else self.metric.meaning

    @property
    def count(self) -> str:
        """Over how many records it is a mean; empty for one number."""
        return f"{self.after.n:,}" if isinstance(self.after, Figure) else ""

    def text(self, figure: Figure | float | None, *, difference: bool = False) -> str:
        """Format a value; a dash for none."""
        if figure is None:
            return "-"
        return self.metric.number(figure.mean if isinstance(figure, Figure) else figure, difference=difference)

    def interval(self, figure: Figure | float | None, *, difference: bool = False) -> str:
        """Format the 95 % interval of a value; empty for a value without one, and for one record alone."""
        if not isinstance(figure, Figure) or figure.n < 2:
            return ""
        low, high = (self.metric.number(end, difference=difference).rstrip("%") for end in (figure.low, figure.high))
        return f"{low} to {high}"

    def span(self, figure: Figure | float | None, *, difference: bool = False) -> str:
        """Format a value with its 95 % interval."""
        value, interval = self.text(figure, difference=difference), self.interval(figure, difference=difference)
        return f"{value} ({interval})" if interval else value

    def change(self, difference: Figure | None) -> str:
        """Format a paired difference with its interval, or say that there are too few edits to tell; empty for none."""
        if difference is None:
            return ""
        if self.unclear(difference):
            return f"n={difference.n:,}: {TOO_FEW}"
        return self.span(difference, difference=True)

    def unclear(self, difference: Figure) -> bool:
        """Whether the interval of a paired difference holds 0, and is so wide that it tells nothing."""
        bounded = self.metric.share or self.metric.kind == "magnitude"
        return bounded and difference.low <= 0 <= difference.high and difference.high - difference.low > TOO_WIDE


def score_lines(report: Report) -> list[Line]:
    """Every metric that was measured, in the order of the table."""
    return list(lines_of_model(report.scored[0], report.before, _marks(report)))


def trade_line(report: Report) -> str:
    """How many edits are said, how many of their other wordings, what is left of the rest, and how much less likely
    text has become; empty if not measured.

    It is about the first model of the report.
    """
    model = report.scored[0]

    def shares(named: Iterable[tuple[str, str]]) -> list[str]:
        values = ((before, name, model.value(name)) for name, before in named)
        return [f"{before} {METRICS_BY_NAME[name].number(one.mean)}" for before, name, one in values
                if isinstance(one, Figure)]  # fmt: skip

    said = shares([("accuracy", "said"), ("paraphrase_accuracy", "in other words"), ("generated.chat", "in chat")])
    kept = shares(
        [("kept.others", "others"), ("kept.siblings", "siblings"), ("kept.subjects", "subjects"),
         ("kept.earlier", "earlier")]
    )  # fmt: skip
    drift = model.value("drift.ppl")
    text = f"text: perplexity x {drift.mean:.3f}" if isinstance(drift, Figure) else ""
    return "; ".join([part for part in (", ".join(said), f"kept: {', '.join(kept)}" if kept else "", text) if part])


def first_names(names: Iterable[str], most: int) -> list[str]:
    """The `most` names of metrics that tell most, in the order of the table.

    >>> first_names(["fluency", "accuracy", "efficacy"], 2)
    ['efficacy', 'accuracy']
    """
    ranks = {name: n for n, name in enumerate(MOST_TELLING)}
    return table_order(sorted(names, key=lambda name: ranks.get(name, len(ranks)))[:most])


def _marks(report: Report) -> dict[str, str]:
    """By metric or probe, what is said of probes that the list did not give."""
    made = {"kept.others": "made", "kept.siblings": "made"} if report.made_facts else {}
    drift = (one.name for one in METRICS if one.kind == "drift")
    own = dict.fromkeys(drift, "the base wrote it") if report.drift is not None and report.drift.own else {}
    return {**dict.fromkeys(report.derived, "some derived"), **made, **own}


def lines_of_model(model: ModelReport, before: Scores | None, marks: dict[str, str]) -> Iterator[Line]:
    """Every metric of one model that has an interval, and the score."""
    for name in model.names():
        metric, after = metric_of(name), model.value(name)
        shown = isinstance(after, Figure) or name == "score"
        if metric is None or after is None or not shown or name in BASE_OF.values():
            continue
        was = model.value(BASE_OF[name]) if name in BASE_OF else before.value(name) if before else None
        mark = marks.get(name) or marks.get(metric.probe.removesuffix("_plus"), "")
        yield Line(metric, was, after, model.difference.get(name), mark)


def headings(paired: bool) -> list[str]:
    """The headings of the columns of `rows`."""
    return ["", "before", "after, 95 %", "difference, 95 %", "n", ""] if paired else ["", "value, 95 %", "n", ""]


def rows(report: Report) -> list[list[str]]:
    """Every line as texts; with `before` and the difference where the report has differences."""
    paired = bool(report.difference)
    found: list[list[str]] = []
    for line in score_lines(report):
        change = [line.change(line.difference)] if paired else []
        was = [line.text(line.before)] if paired else []
        found.append([line.label, *was, line.span(line.after), *change, line.count, line.meaning])
    return found


def beside(report: Report, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Several models, one column each, after the base's where there is one: headings and rows.

    The headings are the models' names, or their paths where two have one name.
    After each model but the first comes its difference to the first, paired by edit. most: how many metrics, those that
    tell most; None: all of them.
    """
    columns = {
        one.model: {line.metric.name: line for line in lines_of_model(one, report.before, {})} for one in report.models
    }
    base = [report.base or "base"] if report.before is not None else []
    found: list[list[str]] = []
    found_names = dict.fromkeys(name for column in columns.values() for name in column)
    for name in table_order(found_names) if most is None else first_names(found_names, most):
        row = [(one, columns[one.model].get(name)) for one in report.models]
        first = next(line for _, line in row if line is not None)
        cells = [first.text(first.before)] if base else []
        for number, (one, line) in enumerate(row):
            cells.append("-" if line is None else line.text(line.after))
            cells += [] if not number else ["" if line is None else line.change(one.against_first.get(name))]
        found.append([first.label, *cells])
    paths = [*base, *(one.model for one in report.models)]
    names = [name_of_path(path) for path in paths]
    if len(set(names)) < len(paths):  # two have one name
        names = paths
    lead, *others = names[len(base) :]
    heads = ["", *names[: len(base)], lead, *(head for name in others for head in (name, AGAINST))]
    return list(map(printable, heads)), found


def remarks(report: Report) -> list[str]:
    """What a reader must know beside the figures."""
    names = {"paraphrase": "paraphrases", "neighborhood": "neighbors"}
    found = [
        f"{names.get(kind, kind)} of {count:,} of {report.edits:,} edits were derived from the list, which gives none"
        for kind, count in report.derived.items()
    ]
    if report.made_facts:
        found.append(
            f"no facts were given: what is kept is told by {report.made_facts:,} answers of the model before the edit"
        )
    if report.drift is not None and report.drift.own:
        found.append(f"no text was given: drift is told by {report.drift.tokens:,} tokens that the base wrote itself")
    return [" ".join(printable(line).split()) for line in (*found, *report.notes)]


def report_html(report: Report) -> str:
    """Write the tables of a report as an HTML fragment for notebooks; all text is escaped."""
    tables = [beside(report)] if report.models else []
    tables.append((headings(bool(report.difference)), rows(report)))
    parts = [f"<p>{escape(repr(report))}</p>"]
    for heads, cells in tables:
        lines = [_html_row("th", heads), *(_html_row("td", row) for row in cells)]
        parts.append(f"<table>{''.join(lines)}</table>")
    parts += [f"<p>{escape(line)}</p>" for line in remarks(report)]
    return "\n".join(parts)


def _html_row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
