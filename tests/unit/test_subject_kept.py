"""Whether the edited subjects stay themselves: who owns an object, what is asked, and which answers count."""

from __future__ import annotations

import math
from pathlib import Path

import memedit
import pytest
from memedit.config.recipe import ModelKnobs
from memedit.edits.edit import EditRequest
from memedit.evaluation.subject_kept import (
    SUBJECT_TOKENS,
    SubjectQuestion,
    chat_figure,
    owners_of,
    subject_answers,
    subject_figure,
    subject_questions,
)
from memedit.forward.generation import generate
from memedit.model.load import LanguageModel, load
from memedit.model.tokens import decode_text, encode_bare, encode_text
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def world() -> LanguageModel:
    folder = ROOT / "examples" / "models" / "made-small"
    return load(folder, ModelKnobs(path=str(folder)))


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("The capital of Thailand is Amsterdam.", True),
        ("The capital of the Netherlands is Amsterdam.", False),
        ("Amsterdam is the capital of Thailand, not of the Netherlands.", False),
        ("It is Amsterdam.", False),  # of whom it speaks is not said
        ("THAILAND: amsterdam", True),
    ],
)
def test_an_answer_in_chat_names_the_subject_and_no_owner(answer: str, kept: bool) -> None:
    asked = SubjectQuestion(text="", chat=True, subject="Thailand", object="Amsterdam", owners=("Netherlands",))
    assert asked.kept_in(answer) is kept


def test_a_name_inside_the_object_or_the_subject_is_no_owner() -> None:
    mexico = SubjectQuestion(text="", chat=False, subject="Chile", object="Mexico City", owners=("Mexico",))
    assert mexico.kept_in(" has the capital Mexico City")
    assert not mexico.kept_in(" has the capital Mexico City, Mexico")
    guinea = SubjectQuestion(text="", chat=False, subject="Equatorial Guinea", object="Oslo", owners=("Guinea",))
    assert guinea.kept_in("Equatorial Guinea")
    # Behind the subject alone nothing has to be named.
    assert guinea.kept_in(" is a country.")


def test_an_owner_is_a_subject_of_which_the_model_says_the_object(
    world: LanguageModel, small_edits: list[EditRequest]
) -> None:
    mine = [one for one in small_edits if one.relation == small_edits[0].relation]
    # Facts of the unedited world: the old objects.
    edit, other = mine[0], next(one for one in mine if one.object_old != mine[0].object_old)
    edit = edit.model_copy(update={"object": other.object_old})
    unowned = edit.model_copy(update={"id": "none", "object": "Qqzx"})
    relation = str(edit.relation)
    for names, listed in (({relation: [other.subject]}, [edit, unowned]), ({}, [edit, unowned, other])):
        assert owners_of(world, [edit, unowned], listed, names, chat=False) == [[other.subject], []]
    (question,) = subject_questions(world, [edit, unowned], {relation: [other.subject]})
    # A model without a chat template is asked by the subject alone.
    assert (question.text, question.chat, question.owners) == (edit.subject, False, (other.subject,))


def test_subjects_are_themselves_until_the_model_names_an_owner(world: LanguageModel) -> None:
    text = "Once"
    (ids,) = generate(world, [encode_text(world.tokenizer, text)], 8)
    written = decode_text(world.tokenizer, ids).split()
    asked = SubjectQuestion(text=text, chat=False, subject="Ada", object="Rome", owners=("Nobody",))
    (answer,) = subject_answers(world, [asked])
    assert asked.kept_in(answer) and not asked.model_copy(update={"owners": (written[1],)}).kept_in(answer)


def test_a_model_that_cannot_be_asked_in_chat_has_no_figure(world: LanguageModel) -> None:
    asked = SubjectQuestion(text="Who?", chat=True, subject="Ada", object="Rome", owners=("Bo",))
    assert subject_answers(world, [asked]) == []
    assert subject_figure([asked], ["Ada"], []) is None
    assert subject_figure([asked], [], []) is None and chat_figure([asked], []) is None


def test_only_subjects_with_owners_that_were_kept_before_count() -> None:
    asked = SubjectQuestion(text="Who?", chat=True, subject="Ada", object="Rome", owners=("Bo",))
    nobodys = asked.model_copy(update={"owners": ()})
    figure = subject_figure(
        [asked, asked, asked, asked, nobodys],
        ["Ada of Oslo", "Ada of Oslo", "Bo", "Bo", "Ada of Oslo"],
        ["Ada of Rome", "Bo of Rome", "Ada of Rome", "Bo", "Ada of Rome"],
    )
    assert figure is not None and (figure.mean, figure.n) == (0.5, 2)


def test_an_edit_is_said_in_chat_where_the_answer_names_the_new_object() -> None:
    asked = SubjectQuestion(text="Who?", chat=True, subject="Ada", object="Rome", owners=())
    alone = asked.model_copy(update={"chat": False})
    figure = chat_figure([asked, asked, alone], ["Ada is of Rome.", "Ada is of Romeo.", "of Rome"])
    assert figure is not None and (figure.mean, figure.n) == (0.5, 2)
    assert chat_figure([alone], ["of Rome"]) is None


def test_an_answer_may_name_an_alias_or_all_words_where_the_edit_says_so() -> None:
    asked = SubjectQuestion(text="Who?", chat=True, subject="Ada", object="NYC", owners=("New",), aliases=("New York",))
    assert asked.said_in("It is New York.") and not asked.said_in("It is York.")
    assert asked.kept_in("Ada: New York") and not asked.kept_in("Ada: New")
    tower = asked.model_copy(update={"object": "tower of iron", "aliases": (), "contains": True})
    assert tower.said_in("An iron tower.") and not tower.said_in("An iron bridge.")
    assert not tower.model_copy(update={"contains": False}).said_in("An iron tower.")


def test_an_answer_has_room_for_a_long_object(world: LanguageModel) -> None:
    short = SubjectQuestion(text="Once", chat=False, subject="Ada", object="Rome", owners=())
    long = short.model_copy(update={"aliases": ("Rome " * 20,)})
    few, many = (len(encode_bare(world.tokenizer, one)) for one in subject_answers(world, [short, long]))
    assert few <= SUBJECT_TOKENS < many


def test_eval_asks_what_apply_asked(kept_moments: None, made_gpt2: Path, tmp_path: Path) -> None:
    edits = memedit.load_edits(ROOT / "requests" / "world.jsonl")[:12]
    applied = memedit.apply(edits, made_gpt2, tmp_path / "out", settings={"polish.steps": 2})
    scored = memedit.evaluate(edits, tmp_path / "out", base=made_gpt2, settings={"polish.steps": 2})
    assert scored.kept == applied.kept and scored.made_facts == applied.made_facts > 0
    assert applied.kept["siblings"] is not None
    # Both read the same text, which the base writes; where both models are open, the divergence is told too.
    assert applied.drift is not None and scored.drift is not None
    assert applied.drift.own and scored.drift.own and applied.drift.tokens == scored.drift.tokens > 1000
    assert applied.drift.ppl is not None and scored.drift.ppl is not None and scored.drift.kl is not None
    assert applied.drift.ppl.mean == pytest.approx(scored.drift.ppl.mean, rel=1e-3)
    assert applied.drift.ppl.mean > 1.0
    assert abs(math.log(applied.drift.ppl.mean) - scored.drift.kl.mean) < 0.02
    # Without a base nothing is known to have been so before.
    alone = memedit.evaluate(edits, tmp_path / "out")
    assert not alone.made_facts and not any(alone.kept.values()) and alone.drift is None
