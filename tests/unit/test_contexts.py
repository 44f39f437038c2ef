"""The contexts of a model with a chat template: a turn of the user's begun, and one of the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from memedit.config.recipe import ContextKnobs, ModelKnobs, Recipe
from memedit.editing.contexts import chat_contexts, context_shape, sample_contexts
from memedit.editing.plan import check_edits, encode_contexts
from memedit.edits.edit import EditRequest
from memedit.model.chat_template import rendered_chat
from memedit.model.load import load
from tests.conftest import byte_tokenizer

TEMPLATE = "{{ bos_token }}<user>{{ messages[0]['content'] }}</user>{% if add_generation_prompt %}<model>{% endif %}"
TURNS = ("<user>", "<user>Answer in one sentence.</user><model>")


@pytest.mark.parametrize("bos", [False, True])
def test_turns_begin_as_the_template_begins_them_with_one_first_token(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    tokenizer.chat_template = TEMPLATE
    found = chat_contexts(tokenizer, ContextKnobs(), chat=False)
    assert found == (TURNS if bos else tuple(f"<s>{turn}" for turn in TURNS))
    edits, _ = check_edits([EditRequest(id="1", subject="Ada", prompt="{} is", object="x")], tokenizer, Recipe(), None)
    for prompt, turn in zip(
        encode_contexts(edits, ["", *found], tokenizer, chat=False).prompts[0][1:], TURNS, strict=True
    ):
        assert prompt.ids.count(0) == 1
        assert tokenizer.decode(list(prompt.head)) == f"<s>{turn}Ada"


@pytest.mark.parametrize("template", [None, "{{ 1 / 0 }}", "{{ messages[0]['content'] | upper }}"])
def test_without_a_template_that_can_be_used_there_are_none(template: str | None) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert chat_contexts(tokenizer, ContextKnobs(), chat=False) == ()


def test_they_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    found = chat_contexts(tokenizer, ContextKnobs(), chat=False)
    assert len(found) == 2
    monkeypatch.setattr("memedit.model.tokens.in_chat", None)  # a second rendering would fail
    assert chat_contexts(tokenizer, ContextKnobs(), chat=False) == found


DATED = [
    ("{{ strftime_now('%d %b %Y') }} ", "26 Jul 2024 "),
    ("{%- if strftime_now is defined %}{%- set day = strftime_now('%-d %B, %A') %}{%- endif %}{{ day }}: ",
     "26 July, Friday: "),
    ("{% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}[{{ day() }}]", "[2024-07-26]"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "written"), DATED)
@pytest.mark.parametrize("named", [False, True])
def test_a_template_that_prints_the_date_prints_the_same_one_on_every_day(
    named: bool, before: str, written: str
) -> None:
    tokenizer = byte_tokenizer()
    template: Any = {"default": before + TEMPLATE, "tool_use": ""} if named else before + TEMPLATE
    tokenizer.chat_template = template
    assert rendered_chat(tokenizer, [{"role": "user", "content": "Hi"}]) == f"{written}<s><user>Hi</user><model>"
    assert chat_contexts(tokenizer, ContextKnobs(), chat=False)[0] == f"{written}<s><user>"
    assert tokenizer.chat_template == template  # what the caller holds is as it was


def test_a_space_before_the_models_answer_is_part_of_its_turn() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for one in messages %}{{ '[I]' + one['content'] + '[/I]' if one['role'] == 'user' else ' ' + one['content'] }}{% endfor %}"  # noqa: E501
    assert chat_contexts(tokenizer, ContextKnobs(), chat=False) == ("[I]", "[I]Answer in one sentence.[/I] ")


def test_they_are_left_out_where_prompts_are_asked_in_chat_and_where_nobody_wants_them() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert chat_contexts(tokenizer, ContextKnobs(), chat=True) == ()
    assert chat_contexts(tokenizer, ContextKnobs(chat=False), chat=False) == ()


def test_they_follow_the_sampled_ones_and_count_in_the_shape(tiny_folder: Path) -> None:
    lm, knobs = load(tiny_folder, ModelKnobs(device="cpu")), ContextKnobs(openings=("The", "I", "You"), tokens=4)
    plain = sample_contexts(lm, knobs, 0)
    assert context_shape(lm.tokenizer, knobs, chat=False) == (len(plain), 6) == (4, 6)
    lm.tokenizer.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    assert sample_contexts(lm, knobs, 0) == (*plain[:2], *TURNS)
    assert sample_contexts(lm, knobs, 0, chat=True) == plain
    assert context_shape(lm.tokenizer, knobs, chat=False) == (4, len(TURNS[1]))
    assert len(sample_contexts(lm, ContextKnobs(openings=("The",), tokens=3), 0)) == 4  # the bare one, one, two turns


def test_a_prompt_must_leave_room_for_them() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "x" * 14 + TEMPLATE
    request = EditRequest(id="1", subject="Ada", prompt="{} is", object="x")
    assert [one.code for one in check_edits([request], tokenizer, Recipe(), 64)[1]] == ["E121"]
    tokenizer.chat_template = None
    assert check_edits([request], tokenizer, Recipe(), 64)[1] == []
