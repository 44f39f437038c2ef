"""Turn prompts into token ids, locate the subject's last token, and find an object's ids behind a prompt.

The subject is located by character offsets in the whole prompt, and checked by decoding. Where there is no subject, the
prompt's last token takes its place. Objects are joined to prompts as ids, never by decoding and encoding again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from memedit.edits.edit import EditRequest
from memedit.edits.glue import Glue, behind
from memedit.errors import UsageError
from memedit.model.chat_template import rendered_chat
from memedit.results.units import BROKEN

TEXTS_IN_A_BATCH = 1024
"""Texts tokenized in one call: enough that a call's own time vanishes, and few enough for little memory."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt: its ids, with BOS where the family adds one, and the subject's tokens."""

    ids: tuple[int, ...]
    subject_at: int
    """The subject's last token; without a subject, the last token of the prompt."""
    merged: bool = False
    """Whether the subject's last token also holds characters that follow the subject."""
    subject_from: int = 0
    """The subject's first token."""
    strangers: tuple[tuple[int, ...], ...] = ()
    """Of a removal, the ids of the same prompt about made-up subjects, whose answers it takes over."""

    @property
    def head(self) -> tuple[int, ...]:
        """The ids up to the subject's last token, which is included: a key depends on no others."""
        return self.ids[: self.subject_at + 1]


def token_parts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, int, int]]:
    """For each token a text, its place in that text, counted from 1, and of how many tokens the text is.

    A token of whole characters is alone: (its text, 1, 1). Tokens that are parts of a character, as in byte-level
    vocabularies, have the text of the fewest of them that make up whole characters; one with BROKEN where none do.
    """

    def text_of(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some)))

    found: list[tuple[str, int, int]] = []
    while len(found) < len(ids):
        start = len(found)
        end = start + 1
        text = text_of(ids[start:end])
        while BROKEN in text and end < len(ids) and BROKEN in text_of(ids[end : end + 1]):
            end += 1
            text = text_of(ids[start:end])
        found += [(text, place, end - start) for place in range(1, end - start + 1)]
    return found


class SubjectLost(ValueError):  # noqa: N818 - the plan turns it into a finding
    """The subject was not located by the tokenizer's offsets."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, *, context: str = "", chat: bool = False
) -> Prompt:
    """Tokenize the request's prompt after `context`. Raises SubjectLost where its subject is not located."""
    head, tail = request.frame
    return locate_subject(tokenizer, context + head, request.subject, tail, chat=chat)


def locate_subject(
    tokenizer: PreTrainedTokenizerBase, head: str, subject: str, tail: str, *, chat: bool = False
) -> Prompt:
    """Tokenize `head + subject + tail`, and locate the subject's last token.

    If subject and tail are empty, it is the last token of the text, in a chat that of the user's turn.
    Raises SubjectLost where the offsets, or decoding, do not lead to the subject.
    """
    (found,) = locate_subjects(tokenizer, [(head, subject, tail)], chat=chat)
    if isinstance(found, SubjectLost):
        raise found
    return found


def locate_subjects(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str, str]], *, chat: bool = False
) -> list[Prompt | SubjectLost]:
    """`locate_subject` of many (head, subject, tail), tokenized in batches.

    Where a subject is not located, the error stands in its place.
    """
    placed: list[tuple[str, int] | SubjectLost] = []
    for head, subject, tail in texts:
        whole = head + subject + tail
        # Some chat templates strip the user's text, so its end is that of its last word.
        before = head if subject or tail else whole.rstrip() if chat else whole
        try:
            text, offset = in_chat(tokenizer, whole) if chat else (whole, 0)
            placed.append((text, offset + len(before)))
        except SubjectLost as error:
            placed.append(error)
    encoded = iter(_batch(tokenizer, [one[0] for one in placed if not isinstance(one, SubjectLost)], special=not chat))
    return [
        one if isinstance(one, SubjectLost) else _located(tokenizer, *one, subject, tail, *next(encoded))
        for one, (_, subject, tail) in zip(placed, texts, strict=True)
    ]


def _located(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    start: int,
    subject: str,
    tail: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
) -> Prompt | SubjectLost:
    """Locate the tokens of a subject that begins at character `start` of a text; without one, the token before it."""
    if not (subject or tail):
        return _last(text, start, ids, offsets)
    end = start + len(subject.rstrip())
    inside = [index for index, (a, b) in enumerate(offsets) if a < end and b > a and b > start]
    if not inside:
        return SubjectLost(f"no token of {text!r} lies in the subject {subject!r}")
    at = inside[-1]
    merged = offsets[at][1] > end
    decoded, wanted = _bare(str(tokenizer.decode(ids[: at + 1]))), _bare(subject)
    if not (wanted in decoded if merged else decoded.endswith(wanted)):
        return SubjectLost(f"decoding the tokens up to the subject gives {decoded[-40:]!r}, not {subject!r}")
    return Prompt(tuple(ids), at, merged, inside[0])


def _last(text: str, end: int, ids: list[int], offsets: list[tuple[int, int]]) -> Prompt | SubjectLost:
    """The last token that begins before character `end` of a text."""
    before = [index for index, (a, b) in enumerate(offsets) if a < end and b > a]
    if not before:
        return SubjectLost(f"the prompt {text!r} has no tokens in this tokenizer")
    return Prompt(tuple(ids), before[-1], subject_from=before[-1])


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool = False) -> tuple[int, ...]:
    """Tokenize a whole prompt: with BOS where the family adds one, without EOS at its end."""
    if chat:
        text, _ = in_chat(tokenizer, text)
    return tuple(_tokens(tokenizer, text, special=not chat)[0])


def encode_bare(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokenize a text without any special token."""
    return tuple(_tokens(tokenizer, text, special=False)[0])


def text_opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids with which a text begins: those that the tokenizer puts before it (BOS), or else EOS.

    A model whose tokenizer puts nothing before a text was trained on texts that EOS separates, so a text began after
    one. Empty where the tokenizer has neither.
    """
    end: int | None = tokenizer.eos_token_id  # type: ignore[assignment]
    return _put_before(tokenizer) or (() if end is None else (end,))


def _put_before(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text. An empty text would not tell them from those it puts behind."""
    ids, offsets = _tokens(tokenizer, "a", special=True)
    return tuple(ids[: next((n for n, (a, b) in enumerate(offsets) if a < b), 0)])


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of some ids."""
    return str(tokenizer.decode(list(ids)))


def in_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, int]:
    """The chat template with `text` as the user's turn, and the position of `text` in it.

    Raises SubjectLost where the template changes the text, and UsageError where it cannot be used.
    """
    rendered = rendered_chat(tokenizer, [{"role": "user", "content": text}])
    bare = text.strip()  # some templates strip the user's text
    at = rendered.rfind(bare)
    if at < 0:
        raise SubjectLost("the chat template changes the prompt's text")
    return rendered, at - text.find(bare)


REQUEST = "Answer in one sentence."
"""What the user says before the turn of the model's that is a context."""


def chat_openings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What the chat template writes before the user's words, and before the model's answer to `REQUEST`.

    Empty where there is no template, or one that cannot be used: a run that did not ask for chat does not need it.
    """
    template = str(tokenizer.chat_template or "")
    return _openings(tokenizer, template) if template else ()


@lru_cache(maxsize=4)  # a template that does not end is stopped after seconds: once a run
def _openings(tokenizer: PreTrainedTokenizerBase, _template: str) -> tuple[str, ...]:
    try:
        rendered, at = in_chat(tokenizer, REQUEST)
        gap = _gap(tokenizer)
    except (SubjectLost, UsageError):
        return ()
    # The tokenizer puts BOS before a text itself, so the template's own would be a second one.
    begin = decode_text(tokenizer, _put_before(tokenizer))
    return rendered[:at].removeprefix(begin), rendered.removeprefix(begin) + gap


def _gap(tokenizer: PreTrainedTokenizerBase) -> str:
    """The space that the model writes before its answer, as the template shows it: "[/INST]" has one."""
    asked = [{"role": "user", "content": "x"}]
    question = rendered_chat(tokenizer, asked)
    whole = rendered_chat(tokenizer, [*asked, {"role": "assistant", "content": "y"}])
    rest = whole.removeprefix(question)
    gap = rest[: len(rest) - len(rest.lstrip())]
    return gap if whole.startswith(question) and rest.lstrip().startswith("y") else ""


def object_ids(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    prompt_ids: tuple[int, ...],
    answer: str,
    *,
    glue: Glue | None = None,
    chat: bool = False,
) -> tuple[int, ...]:
    """The ids that follow `prompt_ids` when `answer` follows `text`, joined by `glue` or, if None, by the rule.

    Prompt and answer are tokenized together. Where the result does not begin with the prompt's ids (a token crosses
    the border), the answer is tokenized alone. In a chat the template decides what stands before the answer.
    """
    return encode_objects(tokenizer, [(text, prompt_ids, answer, glue)], chat=chat)[0]


def encode_objects(
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[str, tuple[int, ...], str, Glue | None]],
    *,
    chat: bool = False,
) -> list[tuple[int, ...]]:
    """`object_ids` of many (text, its ids, answer, glue), tokenized in batches."""
    gap = _gap(tokenizer) if chat and asked else ""
    tails = [gap + answer if chat else behind(text, answer, glue) for text, _, answer, glue in asked]
    texts = [in_chat(tokenizer, text)[0] if chat else text for text, *_ in asked]
    wholes = _batch(tokenizer, [text + tail for text, tail in zip(texts, tails, strict=True)], special=not chat)
    return [
        _beyond(tokenizer, prompt, tuple(whole), tail)
        for (_, prompt, *_), (whole, _), tail in zip(asked, wholes, tails, strict=True)
    ]


def encode_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[str, Sequence[str], Glue | None]],
    *,
    chat: bool = False,
) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """`encode_text` of each prompt and `object_ids` of its answers with its glue, all tokenized in one batch."""
    texts = [in_chat(tokenizer, text)[0] if chat else text for text, *_ in questions]
    gap = _gap(tokenizer) if chat and questions else ""
    glued = [
        [gap + answer if chat else behind(text, answer, glue) for answer in answers]
        for text, answers, glue in questions
    ]
    wholes = [text + tail for text, tails in zip(texts, glued, strict=True) for tail in tails]
    prompts = [tuple(ids) for ids, _ in _batch(tokenizer, texts, special=not chat)]
    ends = iter(_batch(tokenizer, wholes, special=not chat))
    return [
        (ids, [_beyond(tokenizer, ids, tuple(next(ends)[0]), tail) for tail in tails])
        for ids, tails in zip(prompts, glued, strict=True)
    ]


def _beyond(
    tokenizer: PreTrainedTokenizerBase, prompt: tuple[int, ...], whole: tuple[int, ...], answer: str
) -> tuple[int, ...]:
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        return whole[len(prompt) :]
    return tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


_Encoded = tuple[list[int], list[tuple[int, int]]]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> _Encoded:
    return _batch(tokenizer, [text], special=special)[0]


def _batch(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[_Encoded]:
    """Ids and character offsets of each text: with BOS where the family adds one, without EOS at its end."""
    names = ("input_ids", "offset_mapping", "special_tokens_mask")
    found: list[_Encoded] = []
    for at in range(0, len(texts), TEXTS_IN_A_BATCH):
        encoded: Any = tokenizer(
            texts[at : at + TEXTS_IN_A_BATCH],
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        found += [_trimmed(*row) for row in zip(*(encoded[name] for name in names), strict=True)]
    return found


def _trimmed(ids: list[int], offsets: list[tuple[int, int]], special: list[int]) -> _Encoded:
    end = len(ids)
    while end and offsets[end - 1][0] == offsets[end - 1][1] and special[end - 1]:
        end -= 1  # some tokenizers end every text with EOS, which is not part of a prompt
    return list(ids[:end]), [(a, b) for a, b in offsets[:end]]


def _bare(text: str) -> str:
    """A text for comparison: tokenizers may normalize letter forms, case and spaces."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()
