"""Marks that belong to a letter, which Python's patterns do not count as part of a word."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"
"""They say how the letters beside them are joined: Persian, Bengali and Malayalam have them inside words."""


def marks_as_letters(text: str) -> str:
    r"""The text with each mark behind a letter replaced by that letter, so that `\w` finds whole words in it.

    Vowels of Hindi and Thai are such marks, and accents that are characters of their own; to `\w` they end a word.
    Every character keeps its place: what is found here is at the same place in the text. This takes no time to import,
    as a class of all 2,400 marks would, and an emoji's marks do not become words, as they would with the class.

    >>> marks_as_letters("e\u0301te\u0301 1")
    'eetee 1'
    """
    if text.isascii():
        return text
    found: list[str] = []
    for character in text:
        mark = unicodedata.category(character)[0] == "M" or character in JOINERS
        found.append(found[-1] if mark and found and found[-1].isalnum() else character)
    return "".join(found)
