"""Join an answer to a prompt: by one space, or by nothing where the writing of the language has no space there.

Every place that puts an answer behind a prompt uses this rule: edits, probes, tracing.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from typing import Literal

Glue = Literal["", " "]

# Hyphens are three characters. Also opening brackets and quotes, currency signs and _, by their category.
_JOINS_NEXT = frozenset("-\u2010\u2011/\\@#¿¡")
_JOINS_BEFORE = frozenset(",.;:!?%")  # also closing brackets and quotes, by their category
_CONTRACTION = re.compile(r"'(?:s|t|d|m|re|ve|ll)\b", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)['‘](?:[^'’]|\b['’]\b)+['’]$")  # an apostrophe inside a word does not end a quotation

_UNSPACED = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF),  # Thai, Lao, Tibetan; Burmese; Khmer
    (0x2E80, 0x312F), (0x31A0, 0x9FFF), (0xA000, 0xA4CF),  # Han, kana, bopomofo and their marks; Yi
    (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFF9F), (0xFFE0, 0xFFEF),  # compatibility and full-width forms
    (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),  # more kana and Han
)  # fmt: skip
"""Unicode's scripts without spaces between words. Korean is not one of them: it puts spaces between words."""
_STARTS = [first for first, _ in _UNSPACED]


def behind(prompt: str, answer: str, glue: Glue | None = None) -> str:
    """The answer as it follows the prompt: `glue` before it, or what `glue_between` says if that is None.

    >>> behind("The capital is", "Rome"), behind("It costs $", "30"), behind("It costs $", "30", " ")
    (' Rome', '30', ' 30')
    """
    return (glue_between(prompt, answer) if glue is None else glue) + answer


def glue_between(prompt: str, answer: str) -> Glue:
    """What joins an answer to a prompt: a space, or nothing.

    Nothing where there is white space already, at punctuation (see `joining_mark`), and behind a script without spaces:
    the prompt's last character decides, so a Japanese name in an English sentence follows a space.
    """
    if not prompt or not answer or prompt[-1].isspace() or answer[0].isspace() or _unspaced(prompt[-1]):
        return ""
    return "" if joining_mark(prompt, answer) else " "


def joining_mark(prompt: str, answer: str) -> str | None:
    """The mark at the border of a prompt and an answer that no space stands beside; None if there is none.

    Also None behind a script without spaces, or its marks: there nothing is in doubt.
    """
    if not prompt or not answer or prompt[-1].isspace() or answer[0].isspace() or _unspaced(prompt[-1]):
        return None
    if _joins_next(prompt):
        return prompt[-1]
    return answer[0] if _joins_before(prompt, answer) else None


def _joins_next(prompt: str) -> bool:
    mark = prompt[-1]
    if mark == '"':
        return prompt.count(mark) % 2 == 1  # the last of an even number closes a quotation
    if mark in "'’":
        return not _QUOTED.search(prompt)  # an apostrophe, or an opening quote: l'Italie
    return mark in _JOINS_NEXT or unicodedata.category(mark) in ("Ps", "Pi", "Pc", "Sc")


def _joins_before(prompt: str, answer: str) -> bool:
    mark = answer[0]
    if mark == '"':
        return prompt.count(mark) % 2 == 1 and answer.count(mark) % 2 == 1  # it closes the prompt's quotation
    if mark == "'":
        return _CONTRACTION.match(answer) is not None
    closing = unicodedata.category(mark) in ("Pe", "Pf")
    ends = mark in _JOINS_BEFORE and not answer[1:2].isalnum()  # .NET and %PATH% are words
    return ends or closing or (_unspaced(mark) and unicodedata.category(mark) == "Po")


def _unspaced(character: str) -> bool:
    at = bisect_right(_STARTS, ord(character)) - 1
    return at >= 0 and ord(character) <= _UNSPACED[at][1]
