"""One table of metrics: every score is a row, and gates, terminal, page and card read the same row."""

from __future__ import annotations

import doctest
import io
import re
from dataclasses import fields
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from memedit.cli.gates import gate, gate_bars
from memedit.errors import GateError
from memedit.evaluation.figures import differences, share_figure
from memedit.evaluation.forced import EditScores
from memedit.results import metrics, units
from memedit.results.metrics import FORCED_METRICS, METRICS, METRICS_BY_NAME, metric_of, table_order
from memedit.results.report import Drift, EditResult, Figure, ModelReport, Report, Scores
from memedit.results.rows import remarks, score_lines, trade_line
from memedit.results.units import printable
from memedit.show import tables
from memedit.show.evaluation import (
    FIRST_EDITS,
    evaluation_table,
    models_table,
    more_figures,
    unsuccessful_lines,
)
from memedit.show.report_page import evaluation_page
from memedit.show.tables import markdown, markdown_text
from rich.cells import cell_len
from rich.console import Console

SECTIONS = {"groups", "generated"}
"""Fields of Scores that hold figures by name."""
FIGURES_OF_DRIFT = [name for name in Drift.model_fields if name not in ("tokens", "own", "texts")]
HOSTILE = (
    "<script>alert(1)</script>",
    "[a](javascript:alert(1))",
    "![i](http://x.invalid/i.png)",
    "<img src=x onerror=alert(1)>",
    "a|b `c` *d* _e_",
    "\x1b[31mred\x1b]0;title\x07 \x9b2J\u0085",
    "[link=http://x.invalid]rich[/link]",
)


class Names(HTMLParser):
    """The names of all elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(name for name, _ in attrs)}


def figure(mean: float, n: int = 4) -> Figure:
    return Figure(mean=mean, low=mean - 0.125, high=mean + 0.125, n=n)


def a_report(group: str = "Reasoning", note: str = "a note", model: str = "m") -> Report:
    """Every metric measured, before and after."""

    def scores(at: float) -> Scores:
        plain = {name: figure(at) for name in Scores.model_fields if name not in (*SECTIONS, "score")}
        removed = ("still_named", "paraphrase_still_named", "contains")
        written = (
            "efficacy", "paraphrase", "old", "paraphrase_old", "portability", "reversal", "efficacy_50", "chat",
            *removed,
        )  # fmt: skip
        return Scores(
            **plain, score=at, groups={f"portability/{group}": figure(at)},
            generated={name: figure(at) for name in written},
        )  # fmt: skip

    names = [*FORCED_METRICS, *(METRICS_BY_NAME[name] for name in ("fluency", "consistency"))]
    drift: dict[str, Any] = {name: figure(2.0) for name in FIGURES_OF_DRIFT}
    return Report(
        command="eval", model=model, base="the base", edits=2, before=scores(0.25), after=scores(0.5),
        difference={one.name: figure(0.25) for one in names}, notes=(note,), derived={"neighborhood": 2},
        drift=Drift(tokens=9, **drift),
        kept={name: figure(0.75) for name in ("others", "siblings", "subjects", "earlier")}, retention=figure(0.875),
    )  # fmt: skip


def shown(report: Report, *, everything: bool = True, width: int = 200) -> str:
    stream = io.StringIO()
    Console(width=width, file=stream).print(evaluation_table(report, width, everything=everything))
    return stream.getvalue()


def test_every_field_of_the_scores_is_a_row_and_every_row_a_field() -> None:
    rows = {one.name for one in METRICS}
    assert len(rows) == len(METRICS)
    plain = set(Scores.model_fields) - SECTIONS
    drift = {f"drift.{name}" for name in ("tokens", *FIGURES_OF_DRIFT)}
    others = {"kept.others", "kept.siblings", "kept.subjects", "kept.earlier", "retention"}
    assert rows == plain | drift | others | {name for name in rows if name.startswith("generated.")}
    assert not (plain & drift)
    assert all(one.meaning and one.label for one in METRICS)


def test_an_edits_scores_are_the_forced_rows_in_their_order() -> None:
    names = [one.name for one in fields(EditScores) if one.name not in ("groups", "around", "written", "said")]
    assert names == [one.name for one in FORCED_METRICS]
    assert list(EditScores().record()) == names


def test_every_gate_name_resolves_and_is_measured() -> None:
    report = a_report()
    for one in METRICS:
        name = one.name
        gate(report, gate_bars(f"{name}=-9"))
        with pytest.raises(GateError, match=re.escape(f"{name} is ")) as caught:
            gate(report, gate_bars(f"{name}=99"))
        assert "not measured" not in caught.value.message
    gate(report, gate_bars("generated.efficacy_50=0.5"))
    with pytest.raises(GateError, match="not measured"):
        gate(report, gate_bars("generated.efficacy_200=0"))


def test_terminal_page_and_card_show_one_label_value_and_meaning() -> None:
    report = a_report()
    terminal, page, card = shown(report), unescape(evaluation_page(report)), markdown(report)
    lines = list(score_lines(report))
    for line in lines:
        row = next(found for found in terminal.splitlines() if found.strip().startswith(f"{line.label}  "))
        assert line.meaning in row
        assert f"{line.text(line.after)}  {line.interval(line.after)}".rstrip() in re.sub("   +", "  ", row)
        cells = re.search(rf"<tr>\s*<td[^>]*>{re.escape(line.label)}<br>.*?</tr>", page, re.S)
        assert cells and line.meaning in cells[0] and line.span(line.after) in cells[0]
        assert f"| {line.label} |" in card and markdown_text(line.meaning) in card
    measured = {line.metric.name for line in lines}
    assert measured >= {one.name for one in METRICS} - {"drift.tokens", "drift.perplexity_base"}
    assert "paraphrase (some derived)" not in card and "than the new (some derived)" in card


def test_one_line_tells_what_was_taken_and_what_was_kept() -> None:
    report = a_report()
    model = report.scored[0]
    wanted = {"accuracy": "said", "paraphrase_accuracy": "in other words", "kept.others": "others",
              "kept.siblings": "siblings", "kept.subjects": "subjects", "kept.earlier": "earlier",
              "generated.chat": "in chat"}  # fmt: skip
    line = trade_line(report)
    for name, word in wanted.items():
        value = model.value(name)
        assert isinstance(value, Figure) and f"{word} {value.mean:.1%}" in line
    assert line.endswith("; text: perplexity x 2.000")
    none = report.model_copy(update={"kept": {}, "drift": None})
    assert trade_line(none) and "kept" not in trade_line(none) and "text" not in trade_line(none)
    assert trade_line(none.model_copy(update={"after": Scores()})) == ""


def test_figures_of_a_text_that_the_base_wrote_say_so() -> None:
    report = a_report()
    drift = report.drift
    assert drift is not None
    own = report.model_copy(update={"drift": drift.model_copy(update={"own": True})})
    for one, told in ((report, False), (own, True)):
        assert any("the base wrote it" in line.meaning for line in score_lines(one)) is told
        assert any("9 tokens that the base wrote itself" in line for line in remarks(one)) is told


def test_a_terminal_of_80_columns_shows_six_figures_uncut_and_the_rest_where_it_is_asked() -> None:
    report = a_report()
    few, every = (shown(report, everything=every, width=80).splitlines() for every in (False, True))
    labels = [
        {line.split("  ")[0].strip() for line in lines if re.search(r"\d", line)} - {""} for lines in (few, every)
    ]
    assert len(labels[0]) == 6 and labels[0] < labels[1]
    assert "kept, edited subjects" in labels[0] and "efficacy" in labels[0]
    assert len(few) <= 10 and max(map(cell_len, [*few, *every])) <= 80
    assert "\u2026" not in "".join(few + every)
    missing = len({line.metric.name for line in score_lines(report)}) - 6
    assert more_figures(report) == f"{missing:,} more figures: add --all"
    wide = shown(report, everything=False, width=160)
    assert "new object more likely than the old" in wide and "new object" not in "".join(few)


@pytest.mark.parametrize("width", [80, 99, 100, 120])
def test_too_few_to_tell_stands_where_a_difference_is_shown(width: int) -> None:
    unclear, clear = (Figure(mean=0.1, low=low, high=0.3, n=20) for low in (-0.1, 0.05))
    names = ("efficacy", "neighborhood", "accuracy", "paraphrase")
    report = a_report().model_copy(update={"difference": {**dict.fromkeys(names, clear), "neighborhood": unclear}})
    lines = shown(report, everything=False, width=width).splitlines()
    found = [line for line in lines if "too few to tell" in line]
    assert [line.split()[0] for line in found] == ["neighborhood"] and max(map(cell_len, lines)) <= width
    assert ("+10.0%" in found[0]) == (width >= 100)  # on one line: n has its own column
    row = next(line for line in lines if line.strip().startswith("efficacy "))
    assert "+10.0%" in row and (("+5.0 to +30.0" in row) == (width >= 100))  # a clear difference keeps its value


def test_a_figure_that_was_not_measured_before_has_no_number_there() -> None:
    kept = next(line for line in shown(a_report()).splitlines() if "kept, earlier edits" in line)
    assert re.search(r"edits +- ", kept)


def failed(n: int, **knobs: Any) -> EditResult:
    edit = {"subject": f"Person {n}", "prompt": "{} speaks", "object": "Catalan"}
    said = {"after": " Finnish.\nA"}
    return EditResult.model_validate({"id": f"e{n}", "status": "failed", "edit": edit, "said": said, **knobs})


def test_failed_and_skipped_edits_are_named_with_what_the_model_says_instead() -> None:
    results = (failed(0), failed(1, status="ok"), failed(2, status="skipped", reason="an exact duplicate"))
    report = a_report().model_copy(update={"per_edit": results})
    assert unsuccessful_lines(report) == [
        "1 of 3 edits failed:", '  e0: Person 0 speaks: wanted "Catalan", says "Finnish. A"',
        "1 of 3 edits was skipped:", "  e2: an exact duplicate",
    ]  # fmt: skip
    assert unsuccessful_lines(report.model_copy(update={"per_edit": results[1:2]})) == []


@pytest.mark.parametrize("width", [80, 140])
def test_only_five_are_named_and_the_rest_is_counted_on_lines_that_fit(width: int) -> None:
    long = {"subject": "東京" * 60, "prompt": "{} is", "object": "京" * 40}
    results = tuple(failed(n, id=f"{n}" * 60, edit=long, said={"after": "都" * 90}) for n in range(9))
    report = a_report().model_copy(update={"per_edit": results, "output": "out"})
    lines = unsuccessful_lines(report, width)
    assert len(lines) == 1 + FIRST_EDITS + 1
    assert lines[-1] == "  and 4 more: --per-edit lists them, as does out/memedit/results.jsonl"
    assert max(map(cell_len, lines)) <= width


def test_answers_are_added_to_the_report_and_to_no_other_edit() -> None:
    report = a_report().model_copy(update={"per_edit": (failed(0, said={}), failed(1, said={}))})
    told = report.with_answers({"e1": "Finnish"})
    assert [one.said for one in told.per_edit] == [{}, {"after": "Finnish"}]
    assert report.with_answers({}) is report


def test_formats_follow_the_row_and_not_a_part_of_the_name() -> None:
    group = metric_of("portability/fluency and magnitude")
    assert group is not None and group.share and group.number(0.5) == "50.0%"
    assert METRICS_BY_NAME["efficacy_magnitude"].number(0.5) == "+0.500"
    assert METRICS_BY_NAME["drift.ppl"].number(1.02) == "1.020"
    assert METRICS_BY_NAME["efficacy"].number(0.5, difference=True) == "+50.0%"
    assert metric_of("generated.beauty") is None and metric_of("drift") is None and metric_of("portability/") is None
    # The interval of a difference follows the row as well: a share's is one of outcomes from 0 to 1.
    before, after = [{"portability/magnitude": 0.0}] * 5, [{"portability/magnitude": 0.0}] * 5
    found = differences(before, after)["portability/magnitude"]
    assert found.high > 0  # a plain mean of five zeros would claim to know exactly


def test_cases_of_a_metric_follow_it() -> None:
    names = ["score", "fluency", "generated.efficacy_50", "portability/X", "generated.efficacy", "portability"]
    order = ["portability", "portability/X", "generated.efficacy", "generated.efficacy_50", "fluency", "score"]
    assert table_order(names) == order


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_list_stays_text_in_every_table(text: str) -> None:
    one = a_report(group=text, note=text, model=text)
    assert one.after is not None
    several = one.model_copy(
        update={"models": tuple(ModelReport(model=name, scores=one.after) for name in (text, "b"))}
    )
    stream = io.StringIO()
    Console(width=300, file=stream).print(
        evaluation_table(one, 300, everything=True), models_table(several, everything=True)
    )
    card, terminal = markdown(several), stream.getvalue()
    for control in ("\x1b", "\x07", "\x9b", "\x85"):
        assert control not in terminal + card
    assert "<" not in card
    assert not re.search(r"(?<!\\)[`*]", card)
    assert not re.search(r"(?<!\\)\]\(", card)
    assert "javascript:" not in card and "http:" not in card
    heads = [line.count("|") - line.count("\\|") for line in card.splitlines() if line.startswith("| ")]
    assert set(heads) <= {6, 7}  # every row has the cells of its heading
    if "rich" in text:
        assert text in terminal  # rich markup is shown, not followed


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_list_is_escaped_on_the_page_and_in_a_notebook(text: str) -> None:
    edit = EditResult(
        id=text, status="failed", edit=dict.fromkeys(("subject", "prompt", "object", "object_old"), text),
        before={"efficacy_magnitude": -0.5}, after={"efficacy_magnitude": 0.5}, said={"before": text, "after": text},
    )  # fmt: skip
    one = a_report(group=text, note=text, model=text)
    assert one.after is not None
    report = one.model_copy(
        update={
            "per_edit": (edit,), "arguments": [text], "device": text, "versions": {text: text}, "digests": {text: text},
            "models": tuple(ModelReport(model=name, scores=one.after) for name in (text, "b")),
        }
    )  # fmt: skip
    for page in (evaluation_page(report), report._repr_html_()):
        reader = Names()
        reader.feed(page)
        assert not reader.found & {"script", "img", "a", "link", "iframe", "b", "onerror", "href", "src"}
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
        assert printable(text) in unescape(page)


def test_a_report_is_one_line_and_in_a_notebook_its_tables() -> None:
    report = a_report()
    assert repr(report) == str(report) == "<Report eval: 2 edits, efficacy 50.0%>"
    assert repr(Report(command="apply")) == "<Report apply: 0 edits>"
    page = report._repr_html_()
    assert all(f"<td>{line.label}</td>" in page for line in score_lines(report))


def test_the_examples_in_docstrings_run() -> None:
    for module in (metrics, units, tables):
        tried = doctest.testmod(module)
        assert tried.attempted > 0 and tried.failed == 0


def test_the_page_follows_dark_mode_phones_and_print_without_a_script() -> None:
    page = evaluation_page(a_report())
    assert all(part in page for part in ("prefers-color-scheme: dark", 'name="viewport"', "@media print"))
    assert "<script" not in page and "://" not in page


def test_a_share_of_none_has_no_figure() -> None:
    assert share_figure([]) is None
