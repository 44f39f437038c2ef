"""The table of what edits take and leave on a real model: its draws, its columns, its drawing."""

from __future__ import annotations

import pytest
from examples.real.facts import as_facts, load_relations
from examples.real.trade import COUNTRIES, cell, chat_scores, draw_lists, plot, settings_of
from memedit.edits.edit import EditRequest

RELATIONS = {relation.name: relation for relation in load_relations()}


@pytest.mark.parametrize("among", [COUNTRIES, tuple(RELATIONS), ("capital",)])
def test_every_fact_is_edited_or_stands_beside_the_edits_once(among: tuple[str, ...]) -> None:
    known = as_facts(list(RELATIONS.values()))
    lists = draw_lists(known, RELATIONS, 40, 3, wordings=True, among=among)
    assert len({edit.subject for edit in lists.edits}) == len(lists.edits) == 40
    assert {edit.relation for edit in lists.edits} <= set(among)
    parts = [*lists.edits, *lists.siblings, *lists.others, *lists.far]
    assert sorted(one.id for one in parts) == sorted(one.id for one in known)
    edited = {edit.subject for edit in lists.edits}
    assert all((one.subject in edited) == (part is lists.siblings)
               for part in (lists.siblings, lists.others) for one in part)  # fmt: skip
    assert all(edit.object != edit.object_old and edit.wordings for edit in lists.edits)
    again = draw_lists(known, RELATIONS, 40, 4, wordings=False, among=among)
    assert again.edits != lists.edits and not again.edits[0].wordings


def test_beside_one_relation_every_fact_of_the_edited_subjects_is_a_sibling() -> None:
    known = as_facts(list(RELATIONS.values()))
    lists = draw_lists(known, RELATIONS, 40, 3, wordings=True, among=("capital",))
    assert {one.relation for one in lists.siblings} >= {"continent", "language", "currency"}
    assert {one.relation for one in lists.others} == {"capital"}


def test_settings_are_words_and_values() -> None:
    assert settings_of("polish.steps=0 contexts.openings=[The,I]") == {
        "polish.steps": "0", "contexts.openings": ["The", "I"],
    }  # fmt: skip
    assert settings_of("keep", ["{} speaks"]) == {"polish.keep": ("{} speaks",)} and settings_of("") == {}


def test_chat_counts_the_questions_that_were_answered_with_the_old_object() -> None:
    def fact(subject: str, new: str, old: str) -> EditRequest:
        return EditRequest(id=subject, subject=subject, relation="capital", prompt="{} is", object=new, object_old=old)

    edits = [fact("Peru", "Oslo", "Lima"), fact("Chad", "Rome", "N'Djamena"), fact("Fiji", "Cairo", "Suva")]
    known = [*edits, fact("Norway", "x", "Oslo"), fact("Italy", "x", "Rome")]
    before = ["It is Lima.", "I do not know.", "Suva is the capital of Fiji."]
    after = ["Oslo, the capital of Norway.", "Rome", "The capital of Fiji is Cairo."]
    assert chat_scores(edits, before, after, known) == {"chat": [1, 1], "itself": [0, 1], "both": [0, 1]}
    after[2] = "The capital of Fiji is Suva."
    assert chat_scores(edits, before, after, known) == {"chat": [1, 0], "itself": [0, 1], "both": [0, 0]}
    assert chat_scores([], [], [], known) == {"chat": [], "itself": [], "both": []}


def test_the_drawing_has_a_letter_for_each_row_at_its_place() -> None:
    lines = plot([(1.0, 1.0), (0.5, 0.9), (0.75, 0.95)]).splitlines()
    places = {
        letter: (n, line.index(letter)) for n, line in enumerate(lines[1:-2]) for letter in "abc" if letter in line
    }
    (top, right), (bottom, left), (middle, between) = places["a"], places["b"], places["c"]
    assert (top, bottom, middle) == (0, 20, 10)
    assert right - left == 60 and between - left == 30
    assert lines[1].startswith(" 100 |") and lines[-3].startswith("  90 |") and lines[-1].startswith("      50")


def test_a_cell_has_an_interval_if_asked() -> None:
    assert cell([1.0, 0.0], interval=False) == "50.0"
    assert cell([1.0] * 10, interval=True) == "100.0 (72 to 100)"
    assert cell([], interval=True) == "-"
