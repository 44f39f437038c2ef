"""Metrics of generated text: the first name in it, repetition, similarity to references."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from memedit.edits.letters import marks_as_letters
from memedit.edits.lint import UNSPACED

SENTENCE_END = re.compile(
    # A full stop ends no sentence behind an initial or a title: "J. Smith", "Dr. Smith", "St. Petersburg".
    r"(?<!\b[^\W\d_])(?<!\b(?:dr|jr|mr|ms|mt|st))(?<!\b(?:mrs))[.](?=\s|$|[\u2e80-\uffff])"
    # Hindi's full stops, Urdu's, Arabic's question mark, and the full stops of Armenian, Amharic, Burmese and Khmer.
    r"|[!?\u0964\u0965\u06d4\u061f\u0589\u1362\u104b\u17d4](?=\s|$|[\u2e80-\uffff])|[\u3002\n]"
)
WORD = re.compile(r"\w+|[^\w\s]")
PART = re.compile(r"[^\W_]+")

Span = tuple[int, int]


def names_in_text(text: str, answer: str) -> list[Span]:
    """Where `text` names `answer`: whole words, whatever the case, width, spacing and punctuation between.

    A mark that is the only difference to another name counts: C++, C#. In 2+2 it stands between two names.
    """
    plain, sought = _plain(text), _plain(answer).strip()
    letters = marks_as_letters(sought)
    parts = PART.findall(letters)
    if not parts:
        parts = [letters] if letters else []
    elif mark := re.search(r"[+#]+$", letters):
        parts[-1] += mark[0]
    if not parts:
        return []
    head = r"(?<![^\W_])" if _spaced(parts[0][0]) else ""
    tail = r"(?![^\W_]|[+#](?![^\W_]))" if _spaced(parts[-1][-1]) else ""
    pattern = head + r"[\W_]+".join(map(re.escape, parts)) + tail
    spans = [found.span() for found in re.finditer(pattern, marks_as_letters(plain))]
    # Words that differ only in their marks look the same to the pattern.
    return [(a, b) for a, b in spans if _find(PART, plain[a:b]) == _find(PART, sought)]


def _spaced(character: str) -> bool:
    return character.isalnum() and character < UNSPACED


def first_sentence(text: str) -> int:
    """Where the first sentence that says anything ends, in the text as it is compared."""
    plain = _plain(text)
    lead = len(plain) - len(plain.lstrip())
    found = SENTENCE_END.search(marks_as_letters(plain), lead)
    return found.end() if found else len(plain)


def answered(text: str, right: Sequence[str], wrong: str | None) -> tuple[bool, bool]:
    """Whether the first sentence names the right answer (in a spelling of it) before any wrong one; and whether it
    names the wrong one at all.

    A name inside a longer one is not said: " New York" names New York, not York.

    >>> answered(" Lyon, not Paris. Paris is", ["Lyon"], "Paris"), answered(" Paris (not Lyon).", ["Lyon"], "Paris")
    ((True, True), (False, True))
    """
    end = first_sentence(text)
    good = [span for one in right for span in names_in_text(text, one)]
    bad = names_in_text(text, wrong) if wrong else []
    first, against = _first(good, bad, end), _first(bad, good, end)
    return first < end and first <= against, against < end


def _first(spans: Sequence[Span], others: Sequence[Span], end: int) -> int:
    """Where the first of the spans begins that lies in none of the others that is longer; `end` where none does."""
    free = [a for a, b in spans if not any(c <= a and b <= d and d - c > b - a for c, d in others)]
    return min(free, default=end)


def contains_words(text: str, answer: str) -> bool:
    """Whether a text has all words of an answer that matter, in any order, case and width.

    A small word (up to three letters, without a capital or a digit) does not matter where others do. In a script
    without spaces a word is what stands between two marks, and may stand inside a longer one.

    >>> contains_words("It has an iron tower, of 1889.", "a tower of iron from 1889")
    False
    >>> contains_words("It is from 1889: an iron tower.", "a tower of iron from 1889")
    True
    """
    every = _find(r"\w+", unicodedata.normalize("NFKC", answer))
    matter = [word for word in every if len(word) > 3 or not (word.isalpha() and word.islower())] or every
    plain = _plain(text)
    said = set(_find(r"\w+", plain))
    return bool(every) and all(
        word in said or (word in plain and not _spaced(word[0])) for word in (one.casefold() for one in matter)
    )


def words(text: str) -> list[str]:
    """Split a text into words and marks, as nltk's word_tokenize does except for English contractions."""
    return _find(WORD, text)


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
    """Cosine of the tf-idf vectors of two texts; words in no document have weight 0."""
    a, b = (_vector(text, weights) for text in (one, other))
    length = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
    return sum(value * b.get(word, 0.0) for word, value in a.items()) / length if length else 0.0


def _vector(text: str, weights: Mapping[str, float]) -> dict[str, float]:
    counts = Counter(words(text.casefold()))
    return {word: count * weights[word] for word, count in counts.items() if word in weights}


def _find(pattern: str | re.Pattern[str], text: str) -> list[str]:
    """All that a pattern finds in a text whose marks count as letters."""
    return [text[slice(*found.span())] for found in re.finditer(pattern, marks_as_letters(text))]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
