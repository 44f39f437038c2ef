"""Prompts as token ids: where the subject's last token is, and which ids an object has there.

The subject is located by character offsets of the whole prompt and proved by decoding; objects are joined to
prompts as ids, never by decoding and encoding again.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from memedit.request import EditRequest


@dataclass(frozen=True)
class Prompt:
    """A prompt that met a tokenizer: its ids (BOS included where the family adds one) and the subject's last token."""

    ids: tuple[int, ...]
    subject_at: int
    merged: bool = False
    """The subject's last token holds characters that follow the subject."""
    subject_from: int = 0
    """The subject's first token."""

    @property
    def head(self) -> tuple[int, ...]:
        """The ids up to and with the subject's last token: all that a key depends on."""
        return self.ids[: self.subject_at + 1]


class SubjectLost(ValueError):  # noqa: N818 - a finding, turned into words by the plan
    """The tokenizer's offsets do not lead to the subject."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, *, context: str = "", chat: bool = False
) -> Prompt:
    """The request's prompt after `context`, as ids. Raises SubjectLost when its subject cannot be found and proved."""
    head, tail = request.frame
    return encode(tokenizer, context + head, request.subject, tail, chat=chat)


def encode(tokenizer: PreTrainedTokenizerBase, head: str, subject: str, tail: str, *, chat: bool = False) -> Prompt:
    """`head + subject + tail` as ids, with the position of the subject's last token."""
    text, start = head + subject + tail, len(head)
    if chat:
        text, offset = in_chat(tokenizer, text)
        start += offset
    ids, offsets = _tokens(tokenizer, text, special=not chat)
    end = start + len(subject.rstrip())
    inside = [index for index, (a, b) in enumerate(offsets) if a < end and b > a and b > start]
    if not inside:
        raise SubjectLost(f"no token of {text!r} lies in the subject {subject!r}")
    at = inside[-1]
    merged = offsets[at][1] > end
    said, wanted = _bare(str(tokenizer.decode(ids[: at + 1]))), _bare(subject)
    if not (wanted in said if merged else said.endswith(wanted)):
        raise SubjectLost(f"decoding the tokens up to the subject gives {said[-40:]!r}, not {subject!r}")
    return Prompt(tuple(ids), at, merged, inside[0])


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool = False) -> tuple[int, ...]:
    """A whole prompt as ids, BOS as the family has it, no EOS at its end."""
    if chat:
        text, _ = in_chat(tokenizer, text)
    return tuple(_tokens(tokenizer, text, special=not chat)[0])


def in_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, int]:
    """The rendered chat template with `text` as a user turn, and where `text` begins in it."""
    turn = [{"role": "user", "content": text}]
    rendered: Any = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    at = rendered.rfind(text)
    if at < 0:
        raise SubjectLost("the chat template changes the prompt's text")
    return rendered, at


def object_ids(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    prompt_ids: tuple[int, ...],
    answer: str,
    *,
    chat: bool = False,
) -> tuple[int, ...]:
    """The ids that follow `prompt_ids` when `answer` follows `text`.

    Read off the encoding of the whole where that begins with the prompt's own ids; else (the border merges) the
    answer's ids alone. A space is put between them unless the prompt ends in one or the script has none.
    """
    glue = "" if chat or not _spaced(text, answer) else " "
    if chat:
        text, _ = in_chat(tokenizer, text)
    whole = tuple(_tokens(tokenizer, text + glue + answer, special=not chat)[0])
    if whole[: len(prompt_ids)] == prompt_ids and len(whole) > len(prompt_ids):
        return whole[len(prompt_ids) :]
    return tuple(tokenizer(glue + answer, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def _spaced(text: str, answer: str) -> bool:
    if not text or text[-1].isspace() or answer[:1].isspace():
        return False
    border = (text[-1], answer[:1])
    # Han, kana, Thai and their kin are written without spaces; an opening quote takes none after it either.
    return not any(unicodedata.category(c) == "Lo" and not _is_rtl(c) and ord(c) > 0xE00 for c in border) and (
        text[-1] not in '([{"“«‘' or (text.count('"') % 2 == 0 and text[-1] == '"')
    )


def _is_rtl(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL")


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    encoded: Any = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    while ids and offsets[-1][0] == offsets[-1][1] and encoded["special_tokens_mask"][len(ids) - 1]:
        ids.pop()  # an EOS that the tokenizer puts after every text is no part of a prompt
        offsets.pop()
    return ids, offsets  # type: ignore[return-value]


def _bare(text: str) -> str:
    """Letters as they compare: tokenizers may normalize forms, case and spaces."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()
