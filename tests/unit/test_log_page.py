"""The page of a sequence of edits: what was edited in which order, replaced by what, held or lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from memedit.results.history import EditLog
from memedit.show.history_page import COLUMNS, INKS, edit_chains, log_page
from tests.helpers.in_process import faults, run_main
from tests.helpers.reports import a_log, a_past_edit


def a_sequence() -> EditLog:
    """Edit 1 is replaced by 3, which is replaced by 5; 2 by 6; the others are alone."""
    return a_log(
        a_past_edit(1, by=3, prompt="France", object="Lyon", object_old="Paris"),
        a_past_edit(2, by=6, prompt="Spain"),
        a_past_edit(3, by=5, prompt="France", object="<b>Rome"),
        a_past_edit(4, "lost"),
        a_past_edit(5, prompt="France", object="Oslo"),
        a_past_edit(6, "failed", prompt="Spain", object="", remove=True),
    )


def test_edits_of_one_fact_are_a_chain_from_the_first_to_the_one_that_is_left() -> None:
    assert [[edit.line for edit in chain] for chain in edit_chains(a_sequence())] == [[1, 3, 5], [2, 6]]
    assert edit_chains(a_log(a_past_edit(1), a_past_edit(2))) == []
    text = log_page(a_sequence())
    told = re.sub(r"<[^>]*>", "", text[text.index("more than once") : text.index("Edits, one by one")])
    assert "France: Paris &rarr; Lyon (edit 1) &rarr; &lt;b&gt;Rome (edit 3) &rarr; Oslo (edit 5, holds)" in told
    assert "(removed) (edit 6, failed)" in told
    assert "more than once" not in log_page(a_log(a_past_edit(1)))


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (a_sequence(), "Of 6 edits of base, 1 holds, 1 was lost after it had held, 1 never held, 3 were replaced by "
                       "later edits."),
        (a_log(a_past_edit(1, "not measured")), "Of the only edit of base, 1 was not measured."),
    ],
)  # fmt: skip
def test_one_sentence_says_how_the_edits_fared(log: EditLog, expected: str) -> None:
    assert expected in log_page(log)


def test_every_edit_is_a_row_that_links_lead_to() -> None:
    text = log_page(a_sequence())
    places = set(re.findall(r'<tr class="[\w-]+" id="([\w-]+)"', text))
    links = set(re.findall(r'href="#([\w-]+)"', text))
    assert places == {f"edit-{n}" for n in range(1, 7)} >= links >= {"edit-3", "edit-5", "edit-6"}
    assert "<script" not in text and "<b>Rome" not in text


@pytest.mark.parametrize(("count", "together"), [(1, 1), (COLUMNS, 1), (COLUMNS + 1, 2), (1000, 17)])
def test_a_timeline_of_many_edits_has_the_shares_of_each_state(count: int, together: int) -> None:
    half = count // 2
    edits = [a_past_edit(n + 1, "lost" if n < half else "holds") for n in range(count)]
    text = log_page(a_log(*edits))
    timeline = text[text.index("<svg") : text.index("</svg>")]
    columns = {}
    for x, height, ink in re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)" fill="(#\w+)"', timeline
    ):
        columns.setdefault(float(x), {})[ink] = float(height)
    assert len(columns) == -(-count // together) <= COLUMNS
    assert {round(sum(column.values())) for column in columns.values()} == {60}
    first, last = columns[min(columns)], columns[max(columns)]
    assert set(last) == {INKS["holds"]} and (count == 1 or set(first) == {INKS["lost"]})


def test_a_page_takes_the_place_of_a_page_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    words = ["log", str(tmp_path / "no-model"), "--html", str(notes)]
    ended = run_main(words)
    assert faults(ended) == [] and ended.code == 2 and "holds something else" in ended.err
    assert "holds something else" not in run_main([*words, "--overwrite"]).err
    assert notes.read_text() == "mine"
