"""Edit lists one after the other on a real model: what stands beside them, and the cells of the table."""

from __future__ import annotations

from examples.real.facts import as_facts, draw_edits, load_relations
from examples.real.sequence import beside, percent


def test_a_fact_is_edited_or_beside_the_edits_by_its_subject() -> None:
    relations = load_relations()
    known = as_facts(relations)
    edits = draw_edits(known, relations, 60, seed=1)
    others, siblings = beside(edits, known)
    assert sorted(one.id for one in [*edits, *others, *siblings]) == sorted(one.id for one in known)
    subjects = {edit.subject for edit in edits}
    assert siblings and all(one.subject in subjects for one in siblings)
    assert others and not any(one.subject in subjects for one in others)


def test_a_share_is_told_with_its_number() -> None:
    assert percent([True, False, True, True]) == " 75.0 of 4"
    assert percent([]) == "-"
