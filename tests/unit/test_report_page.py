"""The page of a report: it says whether it worked, what failed, and how it was done; and where it may be written."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from memedit.cli.report_files import check_report_files, write_report_files
from memedit.config.recipe import Recipe
from memedit.errors import MemeditError, UsageError
from memedit.results.report import Drift, Figure, ModelReport, Report, Scores
from memedit.results.rows import rows
from memedit.show.report_figures import POINTS, edits_chart, texts_chart
from memedit.show.report_page import FAILURES, LISTED, changed_settings, evaluation_page, in_one_sentence, worst_first
from tests.helpers.in_process import faults, run_main
from tests.helpers.reports import a_run, a_text, an_edit, share

VOID = ("meta", "input", "br", "path", "circle", "rect")


class Page(HTMLParser):
    """Headings, rows of tables, links, and for each table and figure the elements around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.around: list[tuple[str, set[str]]] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.title = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("table", "svg"):
            self.around.append((tag, {str(one.get("class")) for _, one in self.open}))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "td" in tags or "th" in tags:
            self.rows[-1][1][-1] += data
        elif tags and tags[-1] in ("h1", "h2"):
            self.headings[-1] += data
        elif tags and tags[-1] == "title" and "svg" not in tags:
            self.title += data


def test_sections_follow_what_a_reader_asks() -> None:
    text = evaluation_page(a_run())
    page = Page(text)
    assert page.headings == [
        "edited: 4 edits", "What failed", "Figures", "Edits, one by one", "What else moved", "How it was done",
    ]  # fmt: skip
    assert text.index(in_one_sentence(a_run())) < text.index("What failed")
    assert page.title == "edited: 4 edits"  # a name, not a path


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {},
            "edited says 2 of 3 edits, gives the new object in 62.5% of other wordings, keeps 90.0% "
            "(n=4: too few to tell) of known facts about other subjects, and keeps 80.0% (n=4: too few to tell) of "
            "other known facts about the edited subjects.",
        ),
        (
            {"kept": {}},
            "edited says 2 of 3 edits, gives the new object in 62.5% of other wordings, and answers 50.0% of "
            "neighbors' questions right, before 75.0%.",
        ),
        (
            {"kept": {}, "output": None, "after": Scores(generated={"efficacy": share(0.25)})},
            "base says 2 of 3 edits (25.0% when it writes freely). What is left of its other knowledge was not "
            "measured.",
        ),
    ],
)
def test_one_sentence_says_whether_it_worked_with_the_figures_of_the_report(
    more: dict[str, Any], expected: str
) -> None:
    assert in_one_sentence(a_run(**more)) == expected


def test_failures_come_first_with_what_the_model_says_instead() -> None:
    text = evaluation_page(a_run())
    told = text[text.index("What failed") : text.index("<h2>Figures")]
    assert "Subject-b is in" in told and "new-b" in told and "the model says \u201cOslo town\u201d" in told
    assert "skipped: it is there already" in told
    assert "new-a" not in told
    assert "the model says nothing" in evaluation_page(a_run(per_edit=(an_edit("s", "failed", said={"after": ""}),)))
    free = an_edit("free", said={"after": "Rome"})
    free = free.model_copy(update={"after": {**free.after, "generated.efficacy": 0.0}})
    assert "right when its tokens are forced, but the model says" in evaluation_page(a_run(per_edit=(free,)))
    assert "No edit failed" in evaluation_page(a_run(per_edit=(an_edit("a"),)))
    many = evaluation_page(a_run(per_edit=tuple(an_edit(f"f{n}", "failed") for n in range(FAILURES + 2))))
    assert many.count("<li>") == FAILURES and "2 more are in the table" in many


def test_every_edit_is_a_row_that_can_be_filtered_by_its_outcome() -> None:
    edits = [an_edit(f"e{n}", "failed" if n % 3 else "ok") for n in range(300)]
    text = evaluation_page(a_run(per_edit=tuple(edits), edits=300))
    page = Page(text)
    found = [(kind, cells) for kind, cells in page.rows if kind]
    assert [cells[1] for _, cells in found] == [one.id for one in worst_first(edits)]
    assert len(found) == 300 <= LISTED
    assert [kind for kind, _ in found] == ["fails"] * 200 + ["holds"] * 100
    style = text[: text.index("</style>")]
    for kind in ("fails", "holds"):
        assert f'id="show-{kind}"' in text and f".edits:has(#show-{kind}:checked) tbody tr:not(.{kind})" in style
    assert 'id="show-skipped"' not in text  # there are none
    heads = next(cells for _, cells in page.rows if "edit" in cells)
    assert "lead after" in heads and "lead before" not in heads  # nothing was measured before
    assert '<th class="n">lead after</th>' in text and '<td class="n" data-head="lead after" dir="auto">+0.250' in text
    alike = evaluation_page(a_run(per_edit=(an_edit("a"), an_edit("b"))))
    assert 'type="radio"' not in alike  # all have one outcome


def test_figures_are_drawn_where_they_lie_with_their_numbers_beside() -> None:
    text = evaluation_page(a_run(kept={}, drift=None))
    svg = next(one for one in text.split("<svg") if "accuracy: before 0.0%, 66.7% (46.7 to 86.7)" in one)
    at = dict(re.findall(r'class="(ring|dot)" cx="([\d.]+)"', svg))
    assert (float(at["ring"]), float(at["dot"])) == (6.0, pytest.approx(6 + 168 * 2 / 3, abs=0.1))
    page = Page(text)
    row = next(cells for _, cells in page.rows if cells[0] == "accuracyevery token of the new object is on top")
    assert row[2:5] == ["0.0%", "66.7% (46.7 to 86.7)", "+66.0% (+50.0 to +80.0)"]
    alone = evaluation_page(a_run(before=None, difference={}, drift=None))
    assert 'class="dot"' in alone and 'class="ring"' not in alone
    moved = text[text.index("What else moved") :]
    assert "neighborhood accuracy" in moved and "paraphrase accuracy" not in moved


def test_a_chart_has_one_place_for_each_edit_from_the_smallest_lead_to_the_largest() -> None:
    leads = {"a": (-0.5, 0.75), "b": (0.0, -0.25), "c": (-0.5, 0.25)}
    edits = [
        an_edit(name).model_copy(
            update={"before": {"efficacy_magnitude": was}, "after": {"efficacy_magnitude": after, "accuracy": 1.0}}
        )
        for name, (was, after) in leads.items()
    ]
    chart = edits_chart([*edits, an_edit("d", "skipped")])
    places = re.findall(r'class="(ring|dot)" cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert [kind for kind, *_ in places] == ["ring", "dot"] * 3  # the skipped edit has no place
    assert [float(x) for _, x, _ in places] == sorted(float(x) for _, x, _ in places)
    heights = [float(y) for kind, _, y in places if kind == "dot"]
    assert heights == sorted(heights, reverse=True)  # a larger lead lies higher
    assert re.findall(r"<title>(\w): before", chart) == ["b", "c", "a"]
    assert "b: before +0.000, after -0.250" in chart and "above 0 for 2" in chart
    assert edits_chart(edits[:1]) == ""
    many = edits_chart([edits[n % 3].model_copy(update={"id": f"e{n}"}) for n in range(2 * POINTS + 1)])
    assert POINTS // 2 <= many.count('class="dot"') <= POINTS


def test_drift_is_drawn_row_by_row_from_the_easiest_after_to_the_hardest() -> None:
    texts = (a_text("harder", 10, 1000, 0.5), a_text("easier", 10, 5, 0.1), a_text("<b>same", 20, 20, 0.0))
    text = evaluation_page(a_run(drift=Drift(tokens=9, texts=texts)))
    chart = texts_chart(texts)
    assert chart in text[text.index("What else moved") : text.index("How it was done")]
    assert re.findall(r"<title>([^:<]+): before", chart) == ["easier", "&lt;b&gt;same", "harder"]
    assert "harder: before 10, after 1,000, KL 0.5000" in chart and "larger after for 1" in chart
    places = re.findall(r'class="(ring|dot)" cx="[\d.]+" cy="([\d.]+)"', chart)
    ring, dot = (float(y) for _, y in places[:2])  # 10 and then 5: half as much lies lower, by a logarithmic scale
    assert dot - ring == pytest.approx(150 * math.log(2) / math.log(200), abs=0.2)
    rows_of_texts = [cells for _, cells in Page(text).rows if cells[1] == "512"]
    assert [cells[0] for cells in rows_of_texts] == ["harder", "easier", "<b>same"]
    assert rows_of_texts[0][2:] == ["10", "1,000", "0.5000"]


def test_reports_without_rows_or_without_a_base_have_no_such_chart() -> None:
    alone = tuple(a_text(f"t{n}", None, 7.0 + n, None) for n in range(3))
    old = Report.model_validate_json(a_run().model_dump_json(exclude={"drift": {"texts"}}))  # of an earlier version
    for one in (old, a_run(drift=None), a_run(drift=Drift(tokens=9, texts=alone)), a_run(drift=Drift(tokens=9))):
        assert "row by row" not in evaluation_page(one)
    assert "row by row" in evaluation_page(a_run())
    assert texts_chart([a_text(f"t{n}", 5, 5) for n in range(2)])  # nothing moved: a flat line, and no division by 0
    assert texts_chart([a_text("t", 5, math.inf), a_text("u", 5, math.nan)]) == ""


def test_a_wide_difference_around_zero_reads_as_too_few_to_tell() -> None:
    def told(low: float, high: float, n: int = 20) -> str:
        gap = Figure(mean=(low + high) / 2, low=low, high=high, n=n)
        return next(cells[3] for cells in rows(a_run(difference={"accuracy": gap})) if cells[0] == "accuracy")

    assert told(-0.16, 0.16) == "n=20: too few to tell"
    assert told(-0.04, 0.04, 500) == "+0.0% (-4.0 to +4.0)"  # narrow: it tells that little changed
    assert told(0.1, 0.9) == "+50.0% (+10.0 to +90.0)"  # wide, and not around zero


def test_models_are_compared_with_the_first_edit_by_edit() -> None:
    def model(name: str, mean: float, **gaps: Figure) -> ModelReport:
        return ModelReport(model=f"/m/{name}", scores=Scores(accuracy=share(mean)), against_first=gaps)

    clear, none = Figure(mean=0.2, low=0.1, high=0.3, n=9), Figure(mean=0.0, low=-0.05, high=0.05, n=9)
    models = (model("one", 0.5), model("two", 0.7, accuracy=clear), model("three", 0.5, accuracy=none))
    text = evaluation_page(a_run(models=models, output=None))
    assert Page(text).headings[0] == "one, two, three: 4 edits"
    assert "two against one: accuracy +20.0% (+10.0 to +30.0)." in text
    assert "three against one: no figure differs clearly." in text
    row = next(cells for _, cells in Page(text).rows if cells[0] == "accuracy")
    assert row == ["accuracy", "0.0%", "50.0%", "70.0%", "+20.0% (+10.0 to +30.0)", "50.0%", "+0.0% (-5.0 to +5.0)"]


def test_nothing_runs_nothing_is_fetched_and_wide_things_scroll_in_their_own_box() -> None:
    text = evaluation_page(a_run())
    page = Page(text)
    assert not page.names & {"script", "link", "img", "iframe", "object", "embed", "a", "form"}
    assert not {name for name in page.attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "default-src 'none'" in text
    assert page.around and all("scroll" in around for _, around in page.around)
    assert 'name="viewport"' in text and "@media print" in text and "prefers-color-scheme: dark" in text


def test_how_it_was_done_names_changed_settings_alone() -> None:
    assert changed_settings(a_run()) == {"seed": "7"}
    rome = Recipe.model_validate({"method": {"name": "rome"}}).model_dump(mode="json")
    assert changed_settings(a_run(recipe=rome)) == {"method.name": '"rome"'}  # its ridge is its own default
    text = evaluation_page(a_run())
    done = text[text.index("How it was done") :]
    for word in ("seed = 7", "memedit apply &#39;x y.yaml&#39;", "abc123", "solve 1.5", "9.9", "/out/there/edited"):
        assert word in done, word


@pytest.mark.parametrize(
    ("held", "option", "overwrite", "refused"),
    [
        (None, "html", False, False), (b"", "html", False, False), (b"\n<!DOCTYPE html><p>", "html", False, False),
        (b'{"id": "a"}', "html", False, True), (b'{"id": "a"}', "html", True, False),
        (b"<svg/>", "html", False, True), (b"| a |", "markdown", False, False),
        (b"# notes", "markdown", False, True), (b"<!doctype html>", "markdown", False, True),
    ],
)  # fmt: skip
def test_a_report_replaces_its_own_kind_and_others_only_where_that_is_said(
    held: bytes | None, option: str, overwrite: bool, refused: bool, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    if held is not None:
        file.write_bytes(held)
    paths = {"html": None, "markdown": None, option: str(file)}
    if refused:
        with pytest.raises(UsageError, match="holds something else"):
            check_report_files(paths["html"], paths["markdown"], overwrite=overwrite)
    else:
        check_report_files(paths["html"], paths["markdown"], overwrite=overwrite)
    assert (file.read_bytes() if file.exists() else None) == held  # a check writes nothing


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "page.html", tmp_path / ("n" * 300), "/dev/null", ""):
        with pytest.raises(MemeditError) as told:
            check_report_files(str(path), overwrite=True)
        assert told.value.hint
    out = tmp_path / "new" / "out"
    for path in (out, out.parent):
        with pytest.raises(UsageError, match="takes this place"):
            check_report_files(str(path), overwrite=True, output=str(out))
    check_report_files(str(out / "page.html"), overwrite=False, output=str(out))
    with pytest.raises(UsageError, match="one file"):
        check_report_files(str(out), str(out), overwrite=False)


def test_a_link_stays_and_leads_to_the_new_page(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link, real = tmp_path / "page.html", tmp_path / "real" / "page.html"
    link.symlink_to(real)
    check_report_files(str(link), overwrite=False)
    write_report_files(a_run(), str(link))
    assert link.is_symlink() and real.read_text() == evaluation_page(a_run())
    check_report_files(str(link), overwrite=False)  # a page replaces a page


@pytest.mark.parametrize("command", ["apply", "eval"])
def test_commands_refuse_before_any_work(command: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    words = [command, str(tmp_path / "none.jsonl"), "-m", str(tmp_path / "no-model"), "--html", str(notes)]
    words += ["-o", str(tmp_path / "out")] if command == "apply" else []
    ended = run_main(words)
    assert faults(ended) == [] and ended.code == 2, ended.err
    assert "holds something else" in ended.err and notes.read_text() == "mine"
    assert "cannot read" in run_main([*words, "--overwrite"]).err  # then the list is read, which is not there


@pytest.mark.parametrize("more", [["--dry-run"], ["--delta", "x"]])
def test_a_page_needs_a_run(more: list[str]) -> None:
    edits = [] if "--delta" in more else ["edits.jsonl"]
    ended = run_main(["apply", *edits, "-m", "m", "-o", "o", "--html", "page.html", *more])
    assert ended.code == 2 and "error: --html" in ended.err, ended.err
