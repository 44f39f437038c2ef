"""Measures of written text: what it names first, how it repeats itself, how its words compare with other texts."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from memedit.lint import UNSPACED

SENTENCE_END = re.compile(r"[.!?](?=\s|$|[\u2e80-\uffff])|[\u3002\n]")
WORD = re.compile(r"\w+|[^\w\s]")


def names(text: str, answer: str) -> int | None:
    """Where `text` names `answer` first: whole words, whatever the case, width, spacing and punctuation between."""
    parts = re.findall(r"\w+", _plain(answer)) or [_plain(answer).strip()]
    if not parts[0]:
        return None
    pattern = r"[\W_]+".join(map(re.escape, parts))
    head = r"(?<!\w)" if parts[0][0] < UNSPACED else ""
    tail = r"(?!\w)" if parts[-1][-1] < UNSPACED else ""
    found = re.search(head + pattern + tail, _plain(text))
    return found.start() if found else None


def first_sentence(text: str) -> int:
    """Where the first sentence that says anything ends, in the text as it is compared."""
    plain = _plain(text)
    lead = len(plain) - len(plain.lstrip())
    found = SENTENCE_END.search(plain, lead)
    return found.end() if found else len(plain)


def answered(text: str, right: Sequence[str], wrong: str | None) -> tuple[bool, bool]:
    """Whether the first sentence names the right answer (in a spelling of it) before any wrong one; and whether it
    names the wrong one at all.

    >>> answered(" Lyon, not Paris. Paris is", ["Lyon"], "Paris"), answered(" Paris (not Lyon).", ["Lyon"], "Paris")
    ((True, True), (False, True))
    """
    end = first_sentence(text)
    places = [at for one in right if (at := names(text, one)) is not None and at < end]
    against = names(text, wrong) if wrong else None
    said_wrong = against is not None and against < end
    # An old object inside the new one ("York" in "New York") is named by it, not beside it.
    inside = wrong is not None and any(names(one, wrong) is not None for one in right)
    if inside and places:
        return True, False
    return bool(places) and not (said_wrong and against is not None and against < min(places)), said_wrong


def words(text: str) -> list[str]:
    """Words and marks: what nltk's word_tokenize parts, but for English contractions."""
    return WORD.findall(text)


def n_gram_entropy(tokens: Sequence[str]) -> float | None:
    """The published fluency: H2 / 3 + 2 H3 / 3, entropies in bits of the bigrams and trigrams; None under 3 words.

    >>> round(n_gram_entropy(["a", "b", "a", "b", "a"]), 4)  # bigrams 2 : 2, 1 bit; trigrams 2 : 1, 0.9183 bits
    0.9455
    """
    if len(tokens) < 3:
        return None
    return (_entropy(tokens, 2) + 2 * _entropy(tokens, 3)) / 3


def _entropy(tokens: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(tokens[at:] for at in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def document_weights(documents: Sequence[str]) -> dict[str, float]:
    """idf of every word over the documents, smoothed: ln((1 + n) / (1 + df)) + 1."""
    found = Counter(word for text in documents for word in set(words(text.casefold())))
    return {word: math.log((1 + len(documents)) / (1 + count)) + 1 for word, count in found.items()}


def cosine(one: str, other: str, weights: Mapping[str, float]) -> float:
    """Cosine of the tf-idf vectors of two texts; words that no document has weigh nothing."""
    a, b = (_vector(text, weights) for text in (one, other))
    length = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
    return sum(value * b.get(word, 0.0) for word, value in a.items()) / length if length else 0.0


def _vector(text: str, weights: Mapping[str, float]) -> dict[str, float]:
    counts = Counter(words(text.casefold()))
    return {word: count * weights[word] for word, count in counts.items() if word in weights}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
