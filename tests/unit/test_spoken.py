"""Edits in the model's own words in chat: which answers become templates, and what is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from memedit.config.recipe import Recipe
from memedit.editing import polish, spoken
from memedit.editing.plan import Edit, check_edits
from memedit.editing.spoken import spoken_edits
from memedit.edits.edit import EditRequest
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer, tiny_model

TEMPLATE = (
    "{% for one in messages %}{{ '<' + one['role'] + '>' + one['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def lm() -> LanguageModel:
    model: Any = tiny_model("gpt2").requires_grad_(False)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return LanguageModel(model, tokenizer, find_architecture(model))


def capital(subject: str, new: str, old: str | None = None, **more: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "id": subject, "subject": subject, "relation": "capital", "prompt": "The capital of {} is", "object": new,
        "object_old": old, **more,
    }  # fmt: skip
    return EditRequest(**fields)


def spoken_texts(
    lm: LanguageModel, requests: Sequence[EditRequest], answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """For each subject what it is to be asked and to say, where the model gives these answers in chat."""
    tokenizer: Any = lm.tokenizer

    def generate(_lm: LanguageModel, prompts: Sequence[tuple[int, ...]], _tokens: int) -> list[tuple[int, ...]]:
        texts = [str(tokenizer.decode(list(prompt))) for prompt in prompts]
        said = [next((answers[name] for name in answers if name in text), "") for text in texts]
        plain = [one if "<user>" in text else " Lima, a city" for one, text in zip(said, texts, strict=True)]
        return [tuple(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in plain]

    monkeypatch.setattr(spoken, "generate", generate)
    edits, _ = check_edits(list(requests), tokenizer, Recipe(), None)
    found = spoken_edits(lm, edits)
    subjects = [
        str(tokenizer.decode(list(prompt.ids[prompt.subject_from : prompt.subject_at + 1]))).strip()
        for prompt, _ in found
    ]
    texts = [str(tokenizer.decode([*prompt.ids, *ids])) for prompt, ids in found]
    return dict(zip(subjects, texts, strict=True))


def test_every_edit_of_a_relation_is_put_into_the_models_most_common_words(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = [capital("Peru", "Oslo", "Lima"), capital("Chad", "Rome", "N'Djamena"), capital("Fiji", "Bonn", "Suva"),
             capital("Cuba", "Riga", "Havana")]  # fmt: skip
    answers = {
        "Peru": "The capital of Peru is Lima.", "Chad": "The capital of Chad is N'Djamena, a city.",
        "Fiji": "Fiji has Suva.", "Cuba": "I do not know.",
    }  # fmt: skip
    found = spoken_texts(lm, edits, answers, monkeypatch)
    assert found == {
        edit.subject: f"<user>{edit.text}<assistant>The capital of {edit.subject} is {edit.object}" for edit in edits
    }


def test_the_space_before_an_answer_is_there_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"Peru": " The capital of Peru is Lima."}
    for template, gap in (
        (TEMPLATE, ""),
        (TEMPLATE.replace("one['content']", "(' ' if one['role'] == 'assistant' else '') + one['content']"), " "),
    ):
        lm.tokenizer.chat_template = template
        found = spoken_texts(lm, [capital("Peru", "Oslo", "Lima")], answers, monkeypatch)
        assert found == {"Peru": f"<user>The capital of Peru is<assistant>{gap}The capital of Peru is Oslo"}


def test_an_answer_that_does_not_name_subject_and_old_object_is_no_template(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ("Lima is the capital of Peru.", "It is Lima.", "Peru, or Peru, has Lima.", "{} of Peru is Lima."):
        assert not spoken_texts(lm, [capital("Peru", "Oslo", "Lima")], {"Peru": answer}, monkeypatch)
    # Without an old object in the list it is what the model says after the plain prompt.
    said = spoken_texts(lm, [capital("Peru", "Oslo")], {"Peru": "Peru: Lima."}, monkeypatch)
    assert said == {"Peru": "<user>The capital of Peru is<assistant>Peru: Oslo"}


def test_what_cannot_be_spoken_is_left_out(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    removal = capital("Chad", "", "Rome", remove=True)
    bare = capital("", "red", prompt="The sky is", relation=None)
    edits, answers = [capital("Peru", "Oslo", "Lima"), removal, bare], {"Peru": "Peru has Lima.", "Chad": "Chad: Rome"}
    assert set(spoken_texts(lm, edits, answers, monkeypatch)) == {"Peru"}
    lm.tokenizer.chat_template = None
    assert not spoken_texts(lm, edits, answers, monkeypatch)


def test_spoken_rows_say_their_whole_answer_and_must_not_stay(lm: LanguageModel) -> None:
    edits: list[Edit] = check_edits([capital("Peru", "Oslo"), capital("Chad", "Rome")], lm.tokenizer, Recipe(), None)[0]
    prompts = [[edit.prompt] for edit in edits]
    said, kept = (edits[0].prompt, (5, 6, 7)), edits[1].prompt
    made = polish._Rows.of(edits, prompts, [said], [[kept], [kept, kept]], shorten=0.0, draw=random.Random(0))
    assert made.of_edit == [range(1), range(1, 2)] and made.spoken == range(2, 3)
    assert made.kinds == [range(3, 4), range(4, 6)] and made.preserved == range(3, 6)
    assert made.targets[2] == (5, 6, 7) and made.rows[2].reads == 3
    assert made.rows[2].ids == (*edits[0].prompt.ids, 5, 6)
    assert made.targets[3:] == [()] * 3
