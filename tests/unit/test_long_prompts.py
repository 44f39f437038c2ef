"""Prompts that memedit makes itself are left out where the model cannot read them; those of a list are an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from memedit.config.recipe import EvalKnobs, Recipe
from memedit.editing import spoken
from memedit.editing.plan import check_edits
from memedit.editing.spoken import spoken_edits
from memedit.edits.edit import EditRequest, Neighbor
from memedit.errors import UsageError
from memedit.evaluation.forced import score_edits
from memedit.evaluation.generated import written
from memedit.evaluation.made_facts import make_facts
from memedit.evaluation.subject_kept import owners_of, subject_answers, subject_questions
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer, tiny_model

TEMPLATE = "{% for one in messages %}<user>{{ one['content'] }}{% endfor %}<assistant>"
ROOM = 256
LONG = "L" * 80
"""A subject that fills the prompt of another edit beyond the model's limit."""


@pytest.fixture
def lm() -> LanguageModel:
    model: Any = tiny_model("gpt2").requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def edits() -> list[EditRequest]:
    """The first prompt leaves room for its own subject, and not for that of the second."""
    head = "x" * (ROOM - 80)
    return [
        EditRequest(id="a", subject="Ada", prompt=head + " {} is", object="Rome", object_old="Oslo", relation="city"),
        EditRequest(id="b", subject=LONG, prompt="{} is", object="Lima", object_old="Bonn", relation="city"),
    ]


def test_derived_probes_that_do_not_fit_are_left_out_and_probes_of_the_list_are_refused(lm: LanguageModel) -> None:
    first, second = score_edits(lm, edits(), derive=True)
    assert first.neighborhood is None and first.paraphrase is not None
    assert second.neighborhood is not None and second.paraphrase is None
    mine = edits()[0].model_copy(update={"neighborhood": (Neighbor(prompt="y" * ROOM, answer="x"),)})
    with pytest.raises(UsageError, match="this model takes 256"):
        score_edits(lm, [mine])


def test_free_answers_are_asked_where_there_is_room(lm: LanguageModel) -> None:
    knobs = EvalKnobs(tokens=2, prefixes=(0,), fluency_tokens=2)
    first, second = written(lm, edits(), knobs)[0]
    assert "paraphrase" in first.measures and "paraphrase" not in second.measures


def test_others_are_asked_where_there_is_room(lm: LanguageModel) -> None:
    names = {"city": [LONG, "Bo"]}
    assert owners_of(lm, edits(), edits(), names, chat=False) is not None
    made = make_facts(lm, edits(), names)
    assert LONG not in {one.subject for one in made if one.prompt == edits()[0].prompt}


def test_questions_in_chat_are_asked_where_there_is_room(lm: LanguageModel) -> None:
    tokenizer: Any = lm.tokenizer
    tokenizer.chat_template = "z" * 70 + TEMPLATE
    questions = subject_questions(lm, edits(), {})
    assert [one.subject for one in questions] == [LONG]
    assert len(subject_answers(lm, questions)) == 1


def test_edits_are_spoken_where_there_is_room(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = lm.tokenizer
    tokenizer.chat_template = "z" * 40 + TEMPLATE

    def generate(_lm: LanguageModel, prompts: Sequence[tuple[int, ...]], _tokens: int) -> list[tuple[int, ...]]:
        texts = [str(tokenizer.decode(list(prompt))) for prompt in prompts]
        said = [f"{LONG} is Bonn" if LONG in text else "Ada is Oslo" for text in texts]
        return [tuple(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in said]

    monkeypatch.setattr(spoken, "generate", generate)
    prompts = [prompt.ids for prompt, _ in spoken_edits(lm, check_edits(edits(), tokenizer, Recipe(), None)[0])]
    assert len(prompts) == 1 and LONG in tokenizer.decode(list(prompts[0]))


@pytest.mark.parametrize(("length", "codes"), [(20, []), (43, ["E121"])])
def test_a_removal_leaves_room_for_made_up_subjects(length: int, codes: list[str]) -> None:
    # Made-up names of one word have up to a dozen letters, and contexts take 10 tokens more.
    removal = EditRequest(
        id="r", subject="Al", prompt="x" * length + " {} is", object="", object_old="Rome", remove=True
    )
    plain = removal.model_copy(update={"remove": False, "object": "Rome", "object_old": None})
    recipe = Recipe.model_validate({"contexts": {"tokens": 10}})
    found = {n: check_edits([one], byte_tokenizer(), recipe, 72)[1] for n, one in enumerate((removal, plain))}
    assert [one.code for one in found[0]] == codes
    assert not found[1]
