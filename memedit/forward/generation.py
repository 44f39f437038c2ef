"""Generate text after many prompts at once, without padding, from kept keys and values.

Prompts of equal length share a launch, and a prefix that many share runs once (see scoring, also for models that need
whole forwards). A prompt's text does not depend on the other prompts: each prompt has its own random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from memedit.errors import UsageError
from memedit.forward.passes import draw_token, run
from memedit.forward.scoring import AnswerIds, copy_cache_rows, lead_cache, leads, proved, run_on, together
from memedit.model.load import LanguageModel
from memedit.model.tokens import encode_bare, text_opening
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[AnswerIds],
    tokens: int,
    *,
    top_k: int = 1,
    seed: int = 0,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[AnswerIds]:
    """Generate at most `tokens` tokens after each prompt, up to a token that ends a text, which is left out.

    `top_k` 1 is greedy decoding. Else each token is sampled from the `top_k` most likely, by a generator seeded with
    `seed` and the prompt. No row gets longer than the model's limit. `ranks` share the launches.
    """
    room = {
        ids: tokens if (most := lm.architecture.positions) is None else min(tokens, most - len(ids)) for ids in prompts
    }
    found: dict[AnswerIds, AnswerIds] = {ids: () for ids, left in room.items() if left <= 0}
    unique = [ids for ids in room if ids not in found]
    shares = proved(lm, [(ids[:-2], [ids[-2:]]) for ids in unique if len(ids) > 2])
    asked = [
        (lead, room[chosen[0]], chosen)
        for lead, group in (leads(unique) if shares else [(0, unique)])
        for chosen in together(group, lead, tokens)
    ]
    for part in ranks.each(lm, _WriteLaunch(top_k, seed, shares), asked, advance):
        found |= part or {}
    return [found[prompt] for prompt in prompts]


class _WriteLaunch:
    """Generate after the prompts of a launch, which share a prefix; by whole forwards unless `shares`."""

    def __init__(self, top_k: int, seed: int, shares: bool) -> None:
        self.top_k, self.seed, self.shares = top_k, seed, shares
        self.lead: AnswerIds = ()
        self.start: DynamicCache | None = None
        """Keys and values of the prefix of the last launch: the next one often has the same."""

    @torch.no_grad()
    def __call__(
        self, lm: LanguageModel, launch: tuple[int, int, list[AnswerIds]], advance: Advance
    ) -> dict[AnswerIds, AnswerIds]:
        lead, room, chosen = launch
        if self.lead != (prefix := chosen[0][:lead]):
            self.lead, self.start = prefix, lead_cache(lm, prefix)
        draws = [_generator(self.seed, prompt) for prompt in chosen] if self.top_k > 1 else None
        cache = copy_cache_rows(self.start, [0] * len(chosen)) if self.shares else None
        lines = _write(lm, torch.tensor([prompt[lead:] for prompt in chosen]), cache, room, self.top_k, draws)
        advance(len(chosen))
        return dict(zip(chosen, lines, strict=True))


@torch.no_grad()
def write_texts(
    lm: LanguageModel, count: int, length: int, *, seed: int, seen: Callable[[int], object] | None = None
) -> list[AnswerIds]:
    """Let the model write `count` texts of `length` tokens from the way a text begins, sampled at temperature 1.

    Where a text ends before `length`, another begins in the same row, as in packed rows. `seen` is called with the
    number of tokens of each step. Raises UsageError if the tokenizer has no token with which a text begins.
    """
    opening, stops = text_opening(lm.tokenizer), ends(lm)
    if not opening:
        raise UsageError("the tokenizer has no token with which a text begins", "give a corpus: --corpus FILE")
    shares = proved(lm, [((*opening, *encode_bare(lm.tokenizer, "The")), [encode_bare(lm.tokenizer, " first of the")])])
    cache = copy_cache_rows(None, [0] * count) if shares else None
    draw = torch.Generator().manual_seed(seed)
    rows = torch.tensor([opening] * count)
    forced: list[list[int]] = [[] for _ in range(count)]
    new = rows
    while rows.shape[1] < length:
        if cache is None:
            logits = run(lm, rows, logits_to_keep=1).logits[:, -1].float()
        else:
            logits = run_on(lm, new, cache, keep=1)[:, 0]
        picks = _sampled(logits.cpu(), draw)
        for row, rest in enumerate(forced):
            if rest:
                picks[row] = rest.pop(0)
            elif picks[row] in stops:
                # Where EOS itself is the opening, it also begins the next text.
                rest += [] if opening == (picks[row],) else opening
        new = torch.tensor(picks)[:, None]
        rows = torch.cat([rows, new], 1)
        if seen:
            seen(count)
    return [tuple(row) for row in rows[:, :length].tolist()]


def _sampled(logits: Tensor, draw: torch.Generator) -> list[int]:
    """A token of each row, logits (B, V) float32 on the CPU, at temperature 1, by one uniform number a row.

    `torch.multinomial` draws a number for each token of the vocabulary, a ninth of the time of a small model's step.
    """
    below = logits.double().softmax(-1).cumsum(-1)
    # In units of the sum, so that rounding leaves no place behind the last token.
    at = torch.rand(len(logits), 1, generator=draw, dtype=torch.float64) * below[:, -1:]
    return torch.searchsorted(below, at, right=True)[:, 0].tolist()


def ends(lm: LanguageModel) -> set[int]:
    """Tokens that end a text: the tokenizer's EOS, and those of the generation config, such as the end of a turn."""
    named: int | list[int] | None = getattr(lm.model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return {token for token in (lm.tokenizer.eos_token_id, *several) if isinstance(token, int)}


def _write(
    lm: LanguageModel,
    ids: Tensor,
    cache: DynamicCache | None,
    room: int,
    top_k: int,
    draws: list[torch.Generator] | None,
) -> list[AnswerIds]:
    """Generate after rows of ids (B, T) that follow the tokens in the cache; by whole forwards without a cache."""
    stops = ends(lm)
    written: list[list[int]] = [[] for _ in ids]
    ended = [False] * len(ids)
    for _ in range(room):
        if cache is None:
            logits = run(lm, ids, logits_to_keep=1).logits[:, -1].float()
        else:
            logits = run_on(lm, ids, cache, keep=1)[:, 0]
        picks = _pick(logits, top_k, draws)
        for row, token in enumerate(picks):
            ended[row] = ended[row] or token in stops
            if not ended[row]:
                written[row].append(token)
        if all(ended):
            break
        new = torch.tensor(picks)[:, None]
        ids = torch.cat([ids, new], 1) if cache is None else new
    return [tuple(line) for line in written]


def _pick(logits: Tensor, top_k: int, draws: list[torch.Generator] | None) -> list[int]:
    """The next token of each row, logits (B, V)."""
    if draws is None:
        return logits.argmax(-1).tolist()
    return [draw_token(row, top_k, draw) for row, draw in zip(logits.cpu(), draws, strict=True)]


def _generator(seed: int, prompt: AnswerIds) -> torch.Generator:
    mixed = seed
    for token in prompt:
        mixed = (mixed * 1_000_003 + token + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
