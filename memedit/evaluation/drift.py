"""Measure drift: the edited model and its base read the same text, given or written by the base itself.

Perplexity is exp of the mean surprise per token; `ppl` its ratio to the base's; `kl` the mean KL(base || model) per
token in nats; `top1` the share of tokens at which both find the same next token likeliest. Tokens of one row move
together, so intervals resample whole rows (see numerics.scores.ratio_interval).

By hand: two rows of 10 and 30 tokens, surprises 20 and 70 nats under the model, 20 and 60 under the base. Perplexity
exp(90 / 40) = 9.49, the base's exp(80 / 40) = 7.39, ppl exp(10 / 40) = 1.28.

Text that the base wrote, sampled at temperature 1, tells the divergence too: the mean of log p(base) - log p(model)
over its tokens is an estimate of KL(base || model) per token, so ppl is about exp(kl).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from memedit.forward.generation import write_texts
from memedit.forward.packing import packed
from memedit.forward.perplexity import Passage, read_text
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel
from memedit.model.tokens import decode_text, text_opening
from memedit.numerics.scores import ratio_interval
from memedit.progress import Advance
from memedit.results.report import Drift, Figure, TextDrift

LONGEST = 512  # tokens in a row at most
OWN_ROWS, OWN_LENGTH = 32, 64
"""Texts that a model writes where none is given, and the tokens of each. 2,048 tokens tell a ratio of perplexities to
about one per cent, and take a fiftieth of a run of 60 edits (memedit/docs/measured.md)."""
BEGINNING = 60
"""Characters by which a row is known."""
LARGEST_MEAN = 700.0  # nats: exp of more is no float


def own_rows(lm: LanguageModel, seed: int) -> list[AnswerIds]:
    """Let a model write the text that is read where none is given.

    There is none if no token begins a text, and none of a model whose blocks are read from disk, where each token takes
    a reading of all of them.
    """
    if lm.streamed or not text_opening(lm.tokenizer):
        return []
    length = min(OWN_LENGTH, lm.architecture.positions or OWN_LENGTH)
    # Not the seeds of the text that second moments are measured on: what the change was fitted to moves least.
    return write_texts(lm, [(OWN_ROWS, seed * 1_000_003 + 500_009)], length)


def given_rows(lm: LanguageModel, documents: Iterable[str], tokens: int) -> list[AnswerIds]:
    """The first `tokens` tokens of the documents, packed into rows; a last row of one token is left out."""
    length = min(LONGEST, lm.architecture.positions or LONGEST)
    rows: list[tuple[int, ...]] = []
    left = tokens
    for row in packed(documents, lm.tokenizer, length):
        if left < 2:
            break
        if len(row[:left]) > 1:
            rows.append(row[:left])
        left -= len(row)
    return rows


def passages(
    lm: LanguageModel, rows: Sequence[AnswerIds], base: LanguageModel | None = None, advance: Advance | None = None
) -> list[Passage]:
    """Read rows of text, with the base too where it is given."""
    opening = set(text_opening(lm.tokenizer))
    words = [decode_text(lm.tokenizer, [one for one in row[:BEGINNING] if one not in opening]) for row in rows]
    named = zip(read_text(lm, rows, base, advance), words, strict=True)
    return [replace(one, begins=" ".join(text.split())[:BEGINNING]) for one, text in named]


def after_base(now: Sequence[Passage], before: Sequence[Passage]) -> list[Passage]:
    """What a model read, beside what its base read of the same rows at another time."""
    return [replace(one, surprise_base=was.surprise) for one, was in zip(now, before, strict=True)]


def drift_of(read: Sequence[Passage], *, own: bool = False) -> Drift | None:
    """The drift figures of a text; those that need a base are None without one. `own`: the base wrote it."""
    if not read:
        return None
    tokens = [one.tokens for one in read]
    mine = [one.surprise for one in read]
    theirs = [one.surprise_base for one in read if one.surprise_base is not None]
    divergence = [one.divergence for one in read if one.divergence is not None]
    agreed = [float(one.agreed) for one in read if one.agreed is not None]
    more = [a - b for a, b in zip(mine, theirs, strict=True)] if theirs else []
    return Drift(
        tokens=sum(tokens),
        own=own,
        perplexity=_ratio(mine, tokens, exponent=True),
        perplexity_base=_ratio(theirs, tokens, exponent=True),
        ppl=_ratio(more, tokens, exponent=True),
        kl=_ratio(divergence, tokens),
        top1=_ratio(agreed, tokens),
        texts=tuple(map(_row_drift, read)),
    )


def _row_drift(one: Passage) -> TextDrift:
    return TextDrift(
        begins=one.begins,
        tokens=one.tokens,
        perplexity=_perplexity(one.surprise, one.tokens),
        perplexity_base=None if one.surprise_base is None else _perplexity(one.surprise_base, one.tokens),
        kl=None if one.divergence is None else one.divergence / one.tokens,
    )


def _perplexity(surprise: float, tokens: int) -> float:
    return math.exp(min(surprise / tokens, LARGEST_MEAN))


def _ratio(parts: Sequence[float], tokens: Sequence[int], *, exponent: bool = False) -> Figure | None:
    """Sum over sum with its interval; n counts the rows."""
    if not parts:
        return None
    found = ratio_interval(torch.tensor(parts, dtype=torch.float64), torch.tensor(tokens, dtype=torch.float64))
    mean, low, high = (math.exp(value) if exponent else value for value in found[:3])
    return Figure(mean=mean, low=low, high=high, n=found.n)
