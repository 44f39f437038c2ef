"""Reading a text with one model, or with two side by side: how surprised each is, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.forward.passes import launches, run
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double

TOKENS_AT_A_TIME = 1024  # two models' logits over a large vocabulary are what memory must hold


@dataclass(frozen=True)
class Passage:
    """Sums over the tokens of one row that follow another token."""

    tokens: int
    surprise: float
    """Of -log p(token) under the model."""
    surprise_base: float | None = None
    """The same under the base."""
    divergence: float | None = None
    """Of KL(base || model) over the vocabulary."""
    agreed: int | None = None
    """Tokens at which both find the same next token likeliest."""


@torch.no_grad()
def read_text(
    lm: LanguageModel,
    rows: Sequence[AnswerIds],
    base: LanguageModel | None = None,
    seen: Callable[[int], None] | None = None,
) -> list[Passage]:
    """Read rows of at least two tokens, with `base` beside the model where there is one."""
    found: list[Passage] = [Passage(0, 0.0)] * len(rows)
    for batch in launches([len(row) for row in rows], TOKENS_AT_A_TIME):
        ids = torch.tensor([rows[index] for index in batch])
        mine = _log_probs(lm, ids)
        theirs = _log_probs(base, ids) if base is not None else None
        for n, index in enumerate(batch):
            found[index] = _passage(mine[n], None if theirs is None else theirs[n].to(mine.device), ids[n, 1:])
        if seen:
            seen(ids.numel())
    return found


def _log_probs(lm: LanguageModel, ids: Tensor) -> Tensor:
    """(B, T - 1, V) float32."""
    return run(lm, ids).logits[:, :-1].float().log_softmax(-1)


def _passage(mine: Tensor, theirs: Tensor | None, wanted: Tensor) -> Passage:
    at = wanted.to(mine.device)[:, None]
    surprise = -float(in_double(mine.gather(1, at)).sum())
    if theirs is None:
        return Passage(len(wanted), surprise)
    return Passage(
        len(wanted),
        surprise,
        -float(in_double(theirs.gather(1, at)).sum()),
        float(in_double(theirs.exp() * (theirs - mine)).sum()),
        int((mine.argmax(-1) == theirs.argmax(-1)).sum()),
    )
