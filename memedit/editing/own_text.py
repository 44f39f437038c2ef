"""Text that the model writes itself, to measure second moments on where no corpus is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from memedit.forward.generation import write_texts
from memedit.model.digests import of_model, of_tokenizer
from memedit.model.load import LanguageModel
from memedit.progress import Advance, Progress
from memedit.storage.artifacts import Store

SELF = "self"
"""The value of `moments.corpus` that stands for this text."""
TOGETHER, LONGEST = 32, 256
"""Texts written side by side, and the most tokens of each: what the keys and values of one launch may hold."""
OWN_TEXT_CODE = 1  # raise it when the way of writing changes


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

    def rows(self, lm: LanguageModel, store: Store, progress: Progress) -> list[tuple[int, ...]]:
        """Read the rows that are kept, and let the model write the others. A longer text begins with the same rows."""
        parts = -(-self.tokens // (TOGETHER * self.row))
        with progress.phase("own text", parts * TOGETHER * self.row, "tokens") as advance:
            kept = [self._part(lm, store, part, advance) for part in range(parts)]
        return [tuple(row) for ids in kept for row in ids.tolist()]

    def _part(self, lm: LanguageModel, store: Store, part: int, advance: Advance) -> torch.Tensor:
        on = {**self.on, "part": part}
        found = store.find("own-text", on)
        if found is None:
            mixed = self.seed * 1_000_003 + part
            texts = write_texts(lm, TOGETHER, self.row, seed=mixed, seen=advance)
            found = {"ids": torch.tensor(texts)}
            store.keep("own-text", on, found)
        else:
            advance(found["ids"].numel())
        return found["ids"]
