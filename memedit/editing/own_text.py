"""Text that the model writes itself, to measure second moments on where no corpus is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from memedit.forward.generation import write_texts
from memedit.model.digests import of_model, of_tokenizer
from memedit.model.load import LanguageModel
from memedit.progress import Advance, Progress
from memedit.ranks import ALONE, Ranks
from memedit.storage.artifacts import Store

SELF = "self"
"""The value of `moments.corpus` that stands for this text."""
TOGETHER, LONGEST = 64, 256
"""Texts written side by side, and the most tokens of each: what the keys and values of one launch may hold. A step of
60 rows takes 1.4 times as long as one of 32 (SmolLM2-135M on two cores)."""
DRAWN = 32
"""Rows that one seed draws: what they say does not depend on how many are written side by side, up to rounding."""
OWN_TEXT_CODE = 3  # raise it when the way of writing changes


@dataclass(frozen=True)
class OwnText:
    """A text of `tokens` tokens that a model writes, in rows of `row` tokens, kept part by part."""

    on: dict[str, Any]
    tokens: int
    row: int
    seed: int

    @classmethod
    def of(cls, lm: LanguageModel, tokens: int, row: int, seed: int) -> OwnText:
        """The text of this model, which depends on all of its weights."""
        row = min(row, LONGEST)
        on = {"writer": of_model(lm), "tokenizer": of_tokenizer(lm.tokenizer), "seed": seed, "row": row}
        return cls({**on, "code": OWN_TEXT_CODE}, tokens, row, seed)

    def rows(self, lm: LanguageModel, store: Store, progress: Progress, ranks: Ranks = ALONE) -> list[tuple[int, ...]]:
        """Read the rows that are kept, and let the model write the others: as many as hold the tokens.

        A longer text begins with the same whole parts. `ranks` share the parts.
        """
        rows = -(-self.tokens // self.row)
        parts = [(at, min(TOGETHER, rows - at)) for at in range(0, rows, TOGETHER)]
        with progress.phase("own text", rows * self.row, "tokens") as advance:
            kept = ranks.each(lm, _WritePart(self, store), parts, advance)
        return [tuple(row) for ids in kept if ids is not None for row in ids.tolist()]


@dataclass(frozen=True)
class _WritePart:
    """Write a part of a text, or read it from the store. Any rank can do it."""

    text: OwnText
    store: Store

    def __call__(self, lm: LanguageModel, part: tuple[int, int], advance: Advance) -> torch.Tensor:
        """Ids (count, row) of the part (at, count), which begins with row `at`."""
        at, count = part
        on = {**self.text.on, "at": at, "count": count}
        found = self.store.find("own-text", on)
        if found is None:
            drawn = [
                (min(DRAWN, at + count - first), self.text.seed * 1_000_003 + first)
                for first in range(at, at + count, DRAWN)
            ]
            texts = write_texts(lm, drawn, self.text.row, seen=advance)
            found = {"ids": torch.tensor(texts)}
            self.store.keep("own-text", on, found)
        else:
            advance(found["ids"].numel())
        return found["ids"]
