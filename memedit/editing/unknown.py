"""What a removal aims at: the model's own answer, before the edit, about subjects that it cannot know.

Made-up names take the subject's place in the removal's own prompts. The mean of the model's predictions after them is
how unsure it is about a subject of this relation. To push the old object down alone would only move the probability to
whatever is next, and could be pushed without end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from memedit.forward.passes import launches, run
from memedit.model.load import LanguageModel

NAMES = 8
"""Made-up subjects for each removal: with few, the mean is what the model guesses of these few."""
WORDS = 3
"""Words of a made-up name at most."""
TOKENS_ASKED = 1024
"""Tokens in a launch: of each row the logits at every token of the old object are read."""
_STARTS = ("b", "br", "d", "dr", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_ENDS = ("", "", "l", "m", "n", "r", "s", "th")


def made_up_names(like: str, seed: int) -> tuple[str, ...]:
    """Invent names as long in words as a subject, and with capitals if it has them; the same for the same seed.

    >>> made_up_names("Ada Lovelace", 0) == made_up_names("Alan Turing", 0) != made_up_names("Alan Turing", 1)
    True
    """
    count, capital = min(WORDS, len(like.split()) or 1), not like[:1].islower()
    draw = random.Random(f"{seed} {count} {capital}")
    names: dict[str, None] = {}
    while len(names) < NAMES:
        words = [_word(draw) for _ in range(count)]
        names[" ".join(word.capitalize() if capital else word for word in words)] = None
    return tuple(names)


def _word(draw: random.Random) -> str:
    syllables = (draw.choice(_STARTS) + draw.choice(_VOWELS) + draw.choice(_ENDS) for _ in range(draw.choice((2, 3))))
    return "".join(syllables)


Asking = tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]
"""Prompts about made-up subjects, and the ids of an old object behind them."""


@dataclass(frozen=True)
class UnknownAnswers:
    """Predictions about subjects that the model cannot know."""

    log_probs: Tensor
    """(W, V) float32, on the model's device: log of the mean over names of the next token's probability."""
    first: tuple[int, ...]
    """For each question the row of its old object's first token; those of the other tokens follow."""

    @classmethod
    @torch.no_grad()
    def of(cls, lm: LanguageModel, asked: Sequence[Asking]) -> UnknownAnswers:
        """Ask the model as it is now. Equal questions are asked once."""
        keys = [(prompts, target[:-1]) for prompts, target in asked]
        found: dict[Asking, Tensor] = {}
        rows = [(key, prompt + key[1]) for key in dict.fromkeys(keys) for prompt in key[0]]
        for batch in launches([len(ids) for _, ids in rows], TOKENS_ASKED):
            keep = max(len(rows[n][0][1]) + 1 for n in batch)
            logits = run(lm, torch.tensor([rows[n][1] for n in batch]), logits_to_keep=keep).logits[:, -keep:]
            for n, line in zip(batch, logits, strict=True):
                (prompts, said), _ = rows[n]
                mine = line[-len(said) - 1 :].float().log_softmax(-1) - math.log(len(prompts))
                key = (prompts, said)
                found[key] = torch.logaddexp(found[key], mine) if key in found else mine
        ends = accumulate((len(table) for table in found.values()), initial=0)
        at = dict(zip(found, ends, strict=False))
        tables = [torch.zeros(0, lm.architecture.vocabulary, device=lm.device), *found.values()]
        return cls(torch.cat([table.to(lm.device) for table in tables]), tuple(at[key] for key in keys))
