"""Subjects are located by characters and proved by decoding; objects are joined as ids."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.model import chat_template
from memedit.model.tokens import (
    SubjectLost,
    encode_objects,
    encode_prompt,
    encode_text,
    in_chat,
    locate_subject,
    locate_subjects,
    object_ids,
    token_parts,
)
from memedit.results.units import BROKEN
from tests.conftest import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def metaspace_tokenizer() -> Any:
    """A word-piece-like tokenizer with metaspace, as sentencepiece models have it; unknown letters as <unk>."""
    words = ["▁The", "▁capital", "▁of", "▁France", "▁is", "▁Paris", "▁", "."]
    letters = [chr(n) for n in range(33, 127)]
    vocabulary = [("<unk>", -20.0), *((word, -1.0) for word in words), *((letter, -5.0) for letter in letters)]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a京é", [("a", 1, 1), ("京", 1, 3), ("京", 2, 3), ("京", 3, 3), ("é", 1, 2), ("é", 2, 2)]),
        ("東京", [(one, n, 3) for one in "東京" for n in (1, 2, 3)]),
        (f"a{BROKEN}b", [("a", 1, 1), *((BROKEN, n, 3) for n in (1, 2, 3)), ("b", 1, 1)]),
    ],
)
def test_tokens_that_are_parts_of_a_character_have_its_text(text: str, expected: list[tuple[str, int, int]]) -> None:
    tokenizer = byte_tokenizer()
    assert token_parts(tokenizer, tokenizer.encode(text)) == expected


def test_bytes_that_make_up_no_character_are_a_text_of_their_own() -> None:
    tokenizer = byte_tokenizer()
    start = tokenizer.encode("京")[0]
    found = token_parts(tokenizer, [start, *tokenizer.encode("b"), start])
    assert [(place, count) for _, place, count in found] == [(1, 1)] * 3
    assert [BROKEN in text for text, *_ in found] == [True, False, True]


SUBJECTS = [
    "France",
    "a {b} c",
    '"quoted"',
    "two words",
    "東京都",
    "القاهرة",
    "👩‍👩‍👧 family",
    "line\nbreak",
    "x" * 40,
    "Ō",
]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("frame", [("The capital of ", " is"), ("", " lives in"), ("It was ", "")])
def test_the_subject_ends_where_its_last_character_does(bos: bool, subject: str, frame: tuple[str, str]) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    prompt = locate_subject(tokenizer, frame[0], subject, frame[1])
    assert (prompt.ids[0] == 0) == bos
    assert tokenizer.decode(list(prompt.head), skip_special_tokens=True) == frame[0] + subject
    assert not prompt.merged


def test_metaspace_offsets_are_found_too() -> None:
    tokenizer = metaspace_tokenizer()
    prompt = locate_subject(tokenizer, "The capital of ", "France", " is")
    assert tokenizer.convert_ids_to_tokens(list(prompt.head))[-1] == "▁France"


def test_a_subject_without_tokens_is_lost() -> None:
    with pytest.raises(SubjectLost, match="lies in the subject"):
        locate_subject(byte_tokenizer(), "The ", "", " is")


@pytest.mark.parametrize("most", [1, 3, 1024])
@pytest.mark.parametrize("chat", [False, True])
def test_many_prompts_are_located_as_one_by_one(monkeypatch: pytest.MonkeyPatch, chat: bool, most: int) -> None:
    monkeypatch.setattr("memedit.model.tokens.TEXTS_IN_A_BATCH", most)
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.chat_template = "<user>{{ messages[0]['content'] }}</user>" if chat else None
    frames = [("The capital of ", subject, " is") for subject in (*SUBJECTS, "", "Rome")]
    found = locate_subjects(tokenizer, frames, chat=chat)
    assert [str(one) for one in found if isinstance(one, SubjectLost)] and isinstance(found[-2], SubjectLost)
    for frame, one in zip(frames, found, strict=True):
        if isinstance(one, SubjectLost):
            with pytest.raises(SubjectLost) as caught:
                locate_subject(tokenizer, *frame, chat=chat)
            assert str(caught.value) == str(one)
        else:
            assert locate_subject(tokenizer, *frame, chat=chat) == one
    asked = [
        ("".join(frame), one.ids, "Paris", None)
        for frame, one in zip(frames, found, strict=True)
        if not isinstance(one, SubjectLost)
    ]
    assert encode_objects(tokenizer, asked, chat=chat) == [object_ids(tokenizer, *one[:3], chat=chat) for one in asked]


def test_a_merged_token_is_told() -> None:
    core = Tokenizer(models.WordLevel({"ab": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert locate_subject(tokenizer, "", "a", "b").merged


@pytest.mark.parametrize("bos", [False, True])
def test_objects_are_what_follows_the_prompt_in_the_whole(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    ids = encode_text(tokenizer, "The capital of France is")
    found = object_ids(tokenizer, "The capital of France is", ids, "Paris")
    assert tokenizer.decode(list(ids + found), skip_special_tokens=True) == "The capital of France is Paris"
    assert 0 not in found


@pytest.mark.parametrize(
    ("text", "answer", "joined"),
    [
        ("The capital is", "Rome", "The capital is Rome"),
        ("The capital is ", "Rome", "The capital is Rome"),
        ("首都は", "東京", "首都は東京"),
        ("العاصمة هي", "القاهرة", "العاصمة هي القاهرة"),
        ("He said “", "yes", "He said “yes"),
    ],
)
def test_a_space_joins_where_the_script_has_one(text: str, answer: str, joined: str) -> None:
    tokenizer = byte_tokenizer()
    ids = encode_text(tokenizer, text)
    assert tokenizer.decode(list(ids + object_ids(tokenizer, text, ids, answer))) == joined


def test_braces_of_a_context_are_data() -> None:
    request = EditRequest(id="x", subject="a{}b", prompt="see {} as", object="o")
    tokenizer = byte_tokenizer()
    prompt = encode_prompt(tokenizer, request, context="The {} {x}. ")
    assert tokenizer.decode(list(prompt.head)) == "The {} {x}. see a{}b"


def test_a_chat_template_wraps_the_prompt_and_offsets_follow() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<user>{{ messages[0]['content'] }}</user>"
    rendered, at = in_chat(tokenizer, "Where is France?")
    assert rendered[at:].startswith("Where")
    prompt = locate_subject(tokenizer, "Where is ", "France", "?", chat=True)
    assert tokenizer.decode(list(prompt.head)) == "<user>Where is France"


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(n=2) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "says"),
    [
        (LOOPS, "does not end"),
        ("{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}", "does not end"),
        (DOUBLED, "does not end"),
        ("{{ 9 ** 9 ** 9 }}", "power"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 9000, "recursion"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[9].content.x }}", "element 9"),
        ("{% if %}", "Expected"),
        ("{% set a = 'a' * 200 %}{{ a * 100000 }}", "20,000,000 characters"),
        ("x" * 2_000_000, "2,000,000 characters"),
        ("{{ messages[0]['content'].__class__.__mro__ }}", "unsafe"),
        (5, "is a int"),
    ],
)
def test_a_chat_template_is_a_program_that_is_kept_within_limits(
    template: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says == "does not end":  # the others are refused for what they do, however slow the machine is
        monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.5)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    begun, tracing = time.process_time(), sys.gettrace()
    with pytest.raises(UsageError, match=says) as caught:
        in_chat(tokenizer, "Where is France?")
    assert time.process_time() - begun < 10
    assert caught.value.hint and "\n" not in caught.value.message
    assert sys.gettrace() is tracing


def test_a_long_template_that_ends_is_rendered() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{# 2 ** 3 #}{% for i in range(9000) %}.{% endfor %}{{ messages[0]['content'] }} **"
    rendered, at = in_chat(tokenizer, "Where is France?")
    assert rendered == "." * 9000 + "Where is France? **" and at == 9000
