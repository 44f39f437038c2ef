"""The facts that real models are edited with, and the edits drawn from them; no model is needed."""

from __future__ import annotations

import pytest
from examples.real.facts import as_facts, beside, draw_edits, load_relations
from memedit.api import load_edits

RELATIONS = load_relations()


def test_there_are_enough_facts_and_wordings() -> None:
    assert len(RELATIONS) >= 8 and sum(len(relation.facts) for relation in RELATIONS) >= 600
    for relation in RELATIONS:
        assert len(set(relation.wordings)) >= 4 and all(wording.count("{}") == 1 for wording in relation.wordings)
        assert relation.question.count("{}") == 1


def test_edits_are_drawn_one_to_a_subject_and_never_of_what_must_stay() -> None:
    known = as_facts(RELATIONS)
    edits = draw_edits(known, RELATIONS, 50, seed=3)
    subjects = {edit.subject for edit in edits}
    assert len(subjects) == 50
    truth = {(fact.subject, fact.relation): {fact.object, *fact.aliases} for fact in known}
    for edit in edits:
        own = truth[edit.subject, edit.relation]
        assert edit.object_old in own and not own & {edit.object, *edit.aliases}
        assert not set(edit.paraphrases) & {edit.text}
        near = [neighbor.prompt for neighbor in edit.neighborhood]
        assert near and not [prompt for prompt in near if any(prompt == other.text for other in edits)]
    assert edits == draw_edits(known, RELATIONS, 50, seed=3) != draw_edits(known, RELATIONS, 50, seed=4)


def test_a_fact_is_edited_or_beside_the_edits_by_its_subject() -> None:
    known = as_facts(RELATIONS)
    edits = draw_edits(known, RELATIONS, 60, seed=1)
    others, siblings = beside(edits, known)
    assert sorted(one.id for one in [*edits, *others, *siblings]) == sorted(one.id for one in known)
    subjects = {edit.subject for edit in edits}
    assert siblings and all(one.subject in subjects for one in siblings)
    assert others and not any(one.subject in subjects for one in others)


def test_too_few_known_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="too few for 10 edits"):
        draw_edits(as_facts(RELATIONS)[:5], RELATIONS, 10)


def test_the_lists_that_ship_are_sound_and_fit_each_other() -> None:
    edits, facts = load_edits("requests/real.jsonl"), load_edits("requests/real-facts.jsonl")
    assert len(edits) >= 100 and len({edit.subject for edit in edits}) == len(edits)
    assert not {edit.fact for edit in edits} & {fact.fact for fact in facts}
    subjects = {edit.subject for edit in edits}
    siblings = [fact for fact in facts if fact.subject in subjects]
    assert siblings and len(facts) - len(siblings) >= 100
