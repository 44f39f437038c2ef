"""Read a text with one model, or with two side by side, and sum its log-probabilities and their divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.forward.passes import launches, run
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double, send

TOKENS_AT_A_TIME = 1024  # so that two models' logits over a large vocabulary fit into memory


@dataclass(frozen=True)
class Passage:
    """Sums over one row's tokens, the first left out."""

    tokens: int
    surprise: float
    """Sum of -log p(token) under the model, in nats."""
    surprise_base: float | None = None
    """The same under the base model."""
    divergence: float | None = None
    """Sum of KL(base || model) over the vocabulary, in nats."""
    agreed: int | None = None
    """Tokens for which both models have the same most likely token."""
    begins: str = ""
    """How the row begins, for people."""


@torch.no_grad()
def read_text(
    lm: LanguageModel,
    rows: Sequence[AnswerIds],
    base: LanguageModel | None = None,
    seen: Callable[[int], object] | None = None,
) -> list[Passage]:
    """Read rows of at least two tokens, with the base model too where it is given."""
    found: list[Passage] = [Passage(0, 0.0)] * len(rows)
    for batch in launches([len(row) for row in rows], TOKENS_AT_A_TIME):
        ids = torch.tensor([rows[index] for index in batch])
        mine = _log_probs(lm, ids)
        theirs = _log_probs(base, ids).to(mine.device) if base is not None else None
        wanted = send(ids[:, 1:], mine.device)
        sums = [_sums(mine[n], None if theirs is None else theirs[n], wanted[n]) for n in range(len(batch))]
        # One read a launch: the host waits for each.
        for index, (surprise, *others) in zip(batch, torch.stack(sums).tolist(), strict=True):
            if others:
                found[index] = Passage(wanted.shape[1], surprise, others[0], others[1], int(others[2]))
            else:
                found[index] = Passage(wanted.shape[1], surprise)
        if seen:
            seen(ids.numel())
    return found


def _log_probs(lm: LanguageModel, ids: Tensor) -> Tensor:
    """(B, T - 1, V) float32."""
    return run(lm, ids).logits[:, :-1].float().log_softmax(-1)


def _sums(mine: Tensor, theirs: Tensor | None, wanted: Tensor) -> Tensor:
    """The surprise of one row, and with the base's log-probabilities the other sums of a Passage: (1,) or (4,) float64.

    mine, theirs (T, V) float32, wanted (T,) ids.
    """
    at = wanted[:, None]
    surprise = -in_double(mine.gather(1, at)).sum()
    if theirs is None:
        return surprise[None]
    divergence = in_double(theirs.exp() * (theirs - mine)).sum()
    agreed = in_double((mine.argmax(-1) == theirs.argmax(-1)).sum())
    return torch.stack([surprise, -in_double(theirs.gather(1, at)).sum(), divergence, agreed])
