"""Generate text after many prompts at once, from kept keys and values.

Prompts of equal length share a launch, and prefixes that many share run once (see scoring, also for models that need
whole forwards). Then rows of all lengths go on together: the shorter ones have empty columns before them, which nothing
attends to. This is tried on two prompts first: where it does not give what whole forwards give, only rows of equal
length go on together. A prompt's text does not depend on the other prompts: each has its own random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from memedit.errors import UsageError
from memedit.forward.passes import draw_token, run
from memedit.forward.proof import prove_engine
from memedit.forward.scoring import KEPT_TOKENS, AnswerIds, Prefixes, copy_cache_rows, leads, proved, run_on, together
from memedit.forward.suffix import SUFFIX_AGREEMENT
from memedit.model.load import LanguageModel
from memedit.model.memory import send
from memedit.model.tokens import decode_text, encode_bare, text_opening
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks

MOST_ROWS = {"cpu": 64, "cuda": 256, "disk": 1024}
"""Rows of several lengths that go on together at most. On a CPU a token of 32 rows costs a quarter more than one of 64,
and of 96 hardly less (SmolLM2-135M), and processes share the launches; where blocks are read from disk, each step reads
all of them."""

JOINED = "rows with empty columns"


@dataclass(frozen=True)
class _Group:
    """Prompts of equal length behind prefixes of `lead` tokens, and how many tokens may follow them."""

    lead: int
    room: int
    prompts: list[AnswerIds]


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[AnswerIds],
    tokens: int,
    *,
    top_k: int = 1,
    seed: int = 0,
    until: Callable[[str], object] | None = None,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[AnswerIds]:
    """Generate at most `tokens` tokens after each prompt, up to a token that ends a text, which is left out.

    `top_k` 1 is greedy decoding. Else each token is sampled from the `top_k` most likely, by a generator seeded with
    `seed` and the prompt. A text also ends where `until`, which other processes may be sent, says so of it. No row gets
    longer than the model's limit. `ranks` share the launches.
    """
    room = {
        ids: tokens if (most := lm.architecture.positions) is None else min(tokens, most - len(ids)) for ids in prompts
    }
    found: dict[AnswerIds, AnswerIds] = {ids: () for ids, left in room.items() if left <= 0}
    unique = [ids for ids in room if ids not in found]
    shares = proved(lm, [(ids[:-2], [ids[-2:]]) for ids in unique if len(ids) > 2])
    groups = [
        _Group(lead, room[chosen[0]], chosen)
        for lead, group in (leads(unique, lm.place) if shares else [(0, unique)])
        for chosen in together(group, lead, tokens)
    ]
    joins = shares and len(groups) > 1 and _joining_proved(lm, unique)
    launches = _gathered(groups, MOST_ROWS.get(lm.place, MOST_ROWS["cuda"])) if joins else [[one] for one in groups]
    for part in ranks.each(lm, _WriteLaunch(top_k, seed, shares, until), launches, advance):
        found |= part or {}
    return [found[prompt] for prompt in prompts]


def generate_each(
    lm: LanguageModel,
    prompts: Sequence[AnswerIds],
    rooms: Sequence[int],
    *,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[AnswerIds]:
    """Generate greedily after each prompt at most as many tokens as it has room for; prompts of one room together."""
    found: list[AnswerIds] = [()] * len(prompts)
    for room in dict.fromkeys(rooms):
        which = [n for n, mine in enumerate(rooms) if mine == room]
        for n, ids in zip(
            which, generate(lm, [prompts[n] for n in which], room, advance=advance, ranks=ranks), strict=True
        ):
            found[n] = ids
    return found


def _gathered(groups: Sequence[_Group], most: int) -> list[list[_Group]]:
    """Launches of groups, shortest prompts first, of at most `most` rows where they are of several groups."""
    found: list[list[_Group]] = []
    rows = 0
    for group in sorted(groups, key=lambda one: len(one.prompts[0])):
        rows += len(group.prompts)
        if not found or rows > most or rows * (len(group.prompts[0]) + group.room) > KEPT_TOKENS:
            found.append([])
            rows = len(group.prompts)
        found[-1].append(group)
    return found


@torch.no_grad()
def _joining_proved(lm: LanguageModel, prompts: Sequence[AnswerIds]) -> bool:
    """Whether rows of different lengths that go on together give what whole forwards give, tried on two prompts.

    It is tried once on a model for prompts of up to a length. Raises what `prove_engine` raises, among it every
    exhaustion of memory.
    """
    several = sorted((ids for ids in prompts if len(ids) > 1), key=len)
    if several and len(several[-1]) <= lm.proofs.get(JOINED, 0):
        return True
    two = [several[0], several[-1]] if several else []
    if not two or len(two[0]) == len(two[1]) < max(map(len, prompts)):
        return False  # nothing to try it on

    def fast() -> list[Tensor]:
        caches = [DynamicCache() for _ in two]
        for ids, cache in zip(two, caches, strict=True):
            run_on(lm, torch.tensor([ids[:-1]]), cache, keep=1)
        return [_Going.of(lm, caches).step(torch.tensor([ids[-1:] for ids in two])).log_softmax(-1)]

    def whole() -> list[Tensor]:
        logits = [run(lm, torch.tensor([ids]), logits_to_keep=1).logits[:, -1].float() for ids in two]
        return [torch.cat(logits).log_softmax(-1)]

    holds = prove_engine(fast, whole, SUFFIX_AGREEMENT[lm.dtype], name=JOINED).holds
    if holds:
        lm.proofs[JOINED] = len(two[1])
    return holds


@dataclass
class _Going:
    """Rows that go on: their keys and values."""

    lm: LanguageModel
    cache: DynamicCache
    mask: Tensor | None
    """(R, tokens in the cache) 1 where a token is; None where the rows are of one cache, and so of one length."""

    @classmethod
    def of(cls, lm: LanguageModel, caches: Sequence[DynamicCache]) -> _Going:
        """Join rows of several caches, aligned on the right: a row's last token is in the last column."""
        if len(caches) == 1:
            return cls(lm, caches[0], None)
        lengths = [cache.get_seq_length() for cache in caches]
        joined, most = DynamicCache(), max(lengths)
        each: list[list[Any]] = [list(cache.layers) for cache in caches]
        for layer, parts in enumerate(zip(*each, strict=True)):
            keys, values = (
                torch.cat([pad(one, (0, 0, most - one.shape[2], 0)) for one in some])
                for some in ([part.keys for part in parts], [part.values for part in parts])
            )
            joined.update(keys, values, layer)
        of_row = torch.tensor([n for n, layers in zip(lengths, each, strict=True) for _ in layers[0].keys])
        mask = (torch.arange(most)[None] >= most - of_row[:, None]).long()
        return cls(lm, joined, send(mask, lm.device))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.cache = copy_cache_rows(self.cache, rows)
        if self.mask is not None:
            self.mask = self.mask[send(torch.tensor(rows), self.mask.device)]

    def step(self, new: Tensor) -> Tensor:
        """Add a token to each row, new (R, 1); the logits after it (R, V) float32."""
        if self.mask is None:
            return run_on(self.lm, new, self.cache, keep=1)[:, 0]
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(positions)], 1)
        return run_on(self.lm, new, self.cache, keep=1, attention_mask=self.mask, position_ids=positions)[:, 0]


@dataclass
class _Whole:
    """Rows that go on by whole forwards: their ids (R, T), all of one length."""

    lm: LanguageModel
    ids: Tensor

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.ids = self.ids[rows]

    def step(self, new: Tensor) -> Tensor:
        """Add a token to each row, new (R, 1); the logits after it (R, V) float32."""
        self.ids = torch.cat([self.ids, new], 1)
        return run(self.lm, self.ids, logits_to_keep=1).logits[:, -1].float()


class _WriteLaunch:
    """Generate after the prompts of a launch; by whole forwards unless `shares`."""

    def __init__(self, top_k: int, seed: int, shares: bool, until: Callable[[str], object] | None) -> None:
        self.top_k, self.seed, self.shares, self.until = top_k, seed, shares, until
        self.prefixes = Prefixes()

    @torch.no_grad()
    def __call__(self, lm: LanguageModel, launch: list[_Group], advance: Advance) -> dict[AnswerIds, AnswerIds]:
        prompts = [prompt for group in launch for prompt in group.prompts]
        room = [group.room for group in launch for _ in group.prompts]
        draws = [_generator(self.seed, prompt) for prompt in prompts] if self.top_k > 1 else None
        going, logits = self._begin(lm, launch)
        stops = ends(lm)
        written: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        at = list(range(len(prompts)))  # the prompt of each row
        while True:
            picks = _pick(logits, [draws[n] for n in at] if draws else None, self.top_k)
            for n, token in zip(at, picks, strict=True):
                if not ended[n]:
                    written[n] += [] if token in stops else [token]
                    ended[n] = token in stops or len(written[n]) == room[n] or self._ends(lm, written[n])
            left = [row for row, n in enumerate(at) if not ended[n]]
            if not left:
                break
            if 2 * len(left) <= len(at):
                going.keep(left)
                at, picks = [at[row] for row in left], [picks[row] for row in left]
            logits = going.step(torch.tensor(picks)[:, None])
        advance(len(prompts))
        return {prompt: tuple(line) for prompt, line in zip(prompts, written, strict=True)}

    def _ends(self, lm: LanguageModel, ids: Sequence[int]) -> bool:
        """Whether a text ends with these ids."""
        return self.until is not None and bool(self.until(decode_text(lm.tokenizer, ids)))

    def _begin(self, lm: LanguageModel, launch: list[_Group]) -> tuple[_Going | _Whole, Tensor]:
        """Run the prompts: the rows, and the logits (R, V) of the first new token of each."""
        if not self.shares:
            ids = torch.tensor(launch[0].prompts)
            return _Whole(lm, ids), run(lm, ids, logits_to_keep=1).logits[:, -1].float()
        caches, logits = list[DynamicCache](), list[Tensor]()
        for group in launch:
            caches.append(self.prefixes.cache(lm, group.prompts, group.lead))
            ids = torch.tensor([prompt[group.lead :] for prompt in group.prompts])
            logits.append(run_on(lm, ids, caches[-1], keep=1)[:, 0])
        return _Going.of(lm, caches), torch.cat(logits)


@torch.no_grad()
def write_texts(
    lm: LanguageModel, drawn: Sequence[tuple[int, int]], length: int, *, seen: Callable[[int], object] | None = None
) -> list[AnswerIds]:
    """Let the model write texts of `length` tokens from the way a text begins, sampled at temperature 1.

    `drawn` are pairs of a number of texts and the seed that draws them. Where a text ends before `length`, another
    begins in the same row, as in packed rows. `seen` is called with the number of tokens of each step. Raises
    UsageError if the tokenizer has no token with which a text begins.
    """
    opening, stops = text_opening(lm.tokenizer), ends(lm)
    if not opening:
        raise UsageError("the tokenizer has no token with which a text begins", "give a corpus: --corpus FILE")
    shares = proved(lm, [((*opening, *encode_bare(lm.tokenizer, "The")), [encode_bare(lm.tokenizer, " first of the")])])
    count = sum(texts for texts, _ in drawn)
    cache = copy_cache_rows(None, [0] * count) if shares else None
    draws = [(texts, torch.Generator().manual_seed(seed)) for texts, seed in drawn]
    rows = torch.tensor([opening] * count)
    forced: list[list[int]] = [[] for _ in range(count)]
    new = rows
    while rows.shape[1] < length:
        if cache is None:
            logits = run(lm, rows, logits_to_keep=1).logits[:, -1].float()
        else:
            logits = run_on(lm, new, cache, keep=1)[:, 0]
        picks = _sampled(logits.cpu(), draws)
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


def _sampled(logits: Tensor, draws: Sequence[tuple[int, torch.Generator]]) -> list[int]:
    """A token of each row, logits (B, V) float32 on the CPU, at temperature 1, by one uniform number a row.

    `draws`: how many rows each generator draws for.
    `torch.multinomial` draws a number for each token of the vocabulary, a ninth of the time of a small model's step.
    """
    below = logits.double().softmax(-1).cumsum(-1)
    # In units of the sum, so that rounding leaves no place behind the last token.
    uniform = [torch.rand(rows, 1, generator=draw, dtype=torch.float64) for rows, draw in draws]
    at = torch.cat(uniform) * below[:, -1:]
    return torch.searchsorted(below, at, right=True)[:, 0].tolist()


def ends(lm: LanguageModel) -> set[int]:
    """Tokens that end a text: the tokenizer's EOS, and those of the generation config, such as the end of a turn."""
    named: int | list[int] | None = getattr(lm.model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return {token for token in (lm.tokenizer.eos_token_id, *several) if isinstance(token, int)}


def _pick(logits: Tensor, draws: list[torch.Generator] | None, top_k: int) -> list[int]:
    """The next token of each row, logits (B, V)."""
    if draws is None:
        return logits.argmax(-1).tolist()
    return [draw_token(row, top_k, draw) for row, draw in zip(logits.cpu(), draws, strict=True)]


def _generator(seed: int, prompt: AnswerIds) -> torch.Generator:
    mixed = seed
    for token in prompt:
        mixed = (mixed * 1_000_003 + token + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
