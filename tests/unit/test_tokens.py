"""Subjects are located by characters and proved by decoding; objects are joined as ids."""

from __future__ import annotations

from typing import Any

import pytest
from memedit.edits.edit import EditRequest
from memedit.model.tokens import SubjectLost, encode, encode_prompt, encode_text, in_chat, object_ids
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
    prompt = encode(tokenizer, frame[0], subject, frame[1])
    assert (prompt.ids[0] == 0) == bos
    assert tokenizer.decode(list(prompt.head), skip_special_tokens=True) == frame[0] + subject
    assert not prompt.merged


def test_metaspace_offsets_are_found_too() -> None:
    tokenizer = metaspace_tokenizer()
    prompt = encode(tokenizer, "The capital of ", "France", " is")
    assert tokenizer.convert_ids_to_tokens(list(prompt.head))[-1] == "▁France"


def test_a_subject_without_tokens_is_lost() -> None:
    with pytest.raises(SubjectLost, match="lies in the subject"):
        encode(byte_tokenizer(), "The ", "", " is")


def test_a_merged_token_is_told() -> None:
    core = Tokenizer(models.WordLevel({"ab": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert encode(tokenizer, "", "a", "b").merged


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
    prompt = encode(tokenizer, "Where is ", "France", "?", chat=True)
    assert tokenizer.decode(list(prompt.head)) == "<user>Where is France"
