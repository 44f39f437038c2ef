"""Score answers: the log-probability of each continuation of each prompt, with every prompt run once.

1. Equal prompts are one prompt: its answers share its forward, and the first token of each is read from one output.
2. Prompts that share many first tokens (a chat template, a passage before them) share that prefix too: it runs once,
   and all of them use its keys and values. Prefixes of equal length share a launch.
3. Answers of several tokens continue from their prompt's keys and values.
4. Rows of equal length share a launch, so nothing is padded. The head runs only where an answer is read.

A few rows are scored both ways first. Where kept keys and values do not give what whole forwards give, whole forwards
are used for all.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from memedit.forward.partial import cache_name
from memedit.forward.passes import TOKENS_PER_LAUNCH, launches, run
from memedit.forward.proof import prove_engine
from memedit.forward.suffix import SUFFIX_AGREEMENT
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double, send
from memedit.progress import Advance, ignore_advance
from memedit.ranks import ALONE, Ranks

AnswerIds = tuple[int, ...]
LEAST_LEAD = 8  # tokens that prompts must share for a common prefix
LEAST_SAVED = {"cpu": 128, "cuda": 1024, "disk": 1 << 19}
"""Tokens that shared prefixes of one length must save, since their own launch costs as much as some tokens: tens on a
CPU, hundreds on a GPU, and far more where each launch reads the blocks from disk."""
KEPT_VALUES = "kept keys and values"
KEPT_TOKENS = 4 * TOKENS_PER_LAUNCH  # tokens whose keys and values a launch may hold; a prefix counts in every row


@dataclass(frozen=True)
class AnswerScores:
    """A model's scores of one answer: each token's log-probability, and the most likely token in its place."""

    log_probs: tuple[float, ...]
    likeliest: AnswerIds


_Row = tuple[AnswerIds, AnswerIds]
"""A prompt and one of its answers."""
_Scored = dict[_Row, AnswerScores]


@torch.no_grad()
def score_answers(
    lm: LanguageModel,
    rows: Sequence[_Row],
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[AnswerScores]:
    """Score rows of (prompt ids, answer ids), neither empty. `ranks` share the launches."""
    answers: dict[AnswerIds, dict[AnswerIds, None]] = {}
    for prompt, answer in rows:
        answers.setdefault(prompt, {})[answer] = None
    if proved(lm, list(answers.items())):
        asked = [
            (lead, [(prompt, tuple(answers[prompt])) for prompt in chosen])
            for lead, prompts in leads(list(answers), lm.place)
            for chosen in together(prompts, lead)
        ]
        found = _merged(ranks.each(lm, _ScoreLaunch(), asked, advance))
    else:
        pairs = [(prompt, answer) for prompt in answers for answer in answers[prompt]]
        found = _merged(ranks.each(lm, _whole_launch, list(_whole_launches(pairs)), advance))
    return [found[row] for row in rows]


class Prefixes:
    """Keys and values of the prefixes of a launch, kept for the next one, which often has the same."""

    def __init__(self) -> None:
        self.held: tuple[AnswerIds, ...] = ()
        self.start: DynamicCache | None = None

    def cache(self, lm: LanguageModel, prompts: Sequence[AnswerIds], lead: int) -> DynamicCache:
        """A cache of its own with a row for each prompt, after its first `lead` tokens."""
        prefixes = tuple(dict.fromkeys(prompt[:lead] for prompt in prompts))
        if prefixes != self.held:
            self.held, self.start = prefixes, None
            if lead:
                self.start = DynamicCache()
                run_on(lm, torch.tensor(prefixes), self.start, keep=1)
        row = {prefix: n for n, prefix in enumerate(prefixes)}
        return copy_cache_rows(self.start, [row[prompt[:lead]] for prompt in prompts])


class _ScoreLaunch:
    """Score the answers of a launch: prompts behind prefixes of some tokens, each with its answers."""

    def __init__(self) -> None:
        self.prefixes = Prefixes()

    @torch.no_grad()
    def __call__(
        self, lm: LanguageModel, launch: tuple[int, list[tuple[AnswerIds, tuple[AnswerIds, ...]]]], advance: Advance
    ) -> _Scored:
        lead, asked = launch
        prompts, found = [prompt for prompt, _ in asked], _Scored()
        cache = self.prefixes.cache(lm, prompts, lead)
        _together(lm, prompts, [list(answers) for _, answers in asked], lead, cache, found)
        advance(len(found))
        return found


def leads(prompts: Sequence[AnswerIds], place: str) -> Generator[tuple[int, list[AnswerIds]]]:
    """Group prompts by the length of a prefix that several share: the length, and the prompts; the others last, with 0.

    What counts as worth a launch depends on the place of the model's blocks. At least one token of every prompt stays
    outside the prefix: the state of its last token is read.
    """
    sharing: dict[int, list[list[AnswerIds]]] = {}
    alone: list[AnswerIds] = []
    for run_of in _runs(sorted(prompts)):
        first, last = run_of[0], run_of[-1]  # in order, so that what these share all share
        lead = min(_common(first, last), min(map(len, run_of)) - 1) if len(run_of) > 1 else 0
        sharing.setdefault(lead, []).append(run_of)
    for lead, runs in sharing.items():
        some = [prompt for run_of in runs for prompt in run_of]
        if lead * (len(some) - len(runs)) >= LEAST_SAVED.get(place, LEAST_SAVED["cuda"]):
            yield lead, some
        else:
            alone += some
    if alone:
        yield 0, alone


def together(prompts: Sequence[AnswerIds], lead: int, more: int = 0) -> Generator[list[AnswerIds]]:
    """Batches of prompts of equal length behind prefixes of `lead` tokens; `more` tokens may follow each."""
    for batch in launches([len(prompt) - lead for prompt in prompts]):
        most = max(1, KEPT_TOKENS // (len(prompts[batch[0]]) + more))
        for at in range(0, len(batch), most):
            yield [prompts[index] for index in batch[at : at + most]]


def _runs(prompts: Sequence[AnswerIds]) -> Generator[list[AnswerIds]]:
    """Groups of neighbors, in sorted order, that share LEAST_LEAD tokens."""
    group: list[AnswerIds] = []
    for prompt in prompts:
        if group and _common(group[-1], prompt) < LEAST_LEAD:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def _common(one: AnswerIds, other: AnswerIds) -> int:
    both = min(len(one), len(other))
    return next((n for n in range(both) if one[n] != other[n]), both)


def run_on(lm: LanguageModel, ids: Tensor, cache: DynamicCache, *, keep: int, **options: Tensor) -> Tensor:
    """Run ids (B, T) after the tokens in the cache, and add them to it; logits (B, keep, V) float32.

    `options` are arguments of the model's forward, such as a mask.
    """
    rows: dict[str, Any] = {"input_ids": send(ids, lm.device), cache_name(lm): cache, **options}
    output: Any = lm.forward(**rows, use_cache=True, logits_to_keep=keep)
    return output.logits[:, -keep:].float()


def copy_cache_rows(cache: DynamicCache | None, rows: Sequence[int]) -> DynamicCache:
    """A cache of its own with some rows of another, in any number; an empty one of None."""
    chosen = DynamicCache()
    layers: list[Any] = list(cache.layers) if cache is not None else []
    places = {device: send(torch.tensor(rows), device) for device in {layer.keys.device for layer in layers}}
    for index, layer in enumerate(layers):
        at = places[layer.keys.device]
        chosen.update(layer.keys[at], layer.values[at], index)
    return chosen


def _together(
    lm: LanguageModel,
    prompts: list[AnswerIds],
    answers: list[list[AnswerIds]],
    lead: int,
    cache: DynamicCache,
    found: _Scored,
) -> None:
    """One launch of prompts of equal length after what the cache has of them, and the launches that go on from it."""
    logits = run_on(lm, torch.tensor([prompt[lead:] for prompt in prompts]), cache, keep=1)[:, 0]
    pairs = [(row, answer) for row, of_one in enumerate(answers) for answer in of_one]
    rows, first = send(torch.tensor([(row, answer[0]) for row, answer in pairs]), logits.device).unbind(1)
    read = [_numbers(logits[rows, first] - logits.logsumexp(-1)[rows], logits.argmax(-1)[rows])]
    of = list(range(len(pairs)))
    longer = [n for n, (_, answer) in enumerate(pairs) if len(answer) > 1]
    most = max(1, TOKENS_PER_LAUNCH // len(prompts[0]))
    for batch in launches([len(pairs[n][1]) for n in longer], tokens=1 << 30):
        for at in range(0, len(batch), most):
            some = [longer[index] for index in batch[at : at + most]]
            ids = torch.tensor([pairs[n][1] for n in some])
            after = run_on(lm, ids[:, :-1], copy_cache_rows(cache, [pairs[n][0] for n in some]), keep=ids.shape[1] - 1)
            read.append(_read(after, send(ids[:, 1:], after.device)))
            of += [n for n in some for _ in pairs[n][1][1:]]
    scores = _of_each(read, of, len(pairs))
    found |= {(prompts[row], answer): one for (row, answer), one in zip(pairs, scores, strict=True)}


def _read(logits: Tensor, wanted: Tensor) -> Tensor:
    """logits (R, T, V), wanted ids (R, T) -> the numbers of every id, row by row."""
    log_probs = logits.gather(2, wanted[:, :, None])[:, :, 0] - logits.logsumexp(-1)
    return _numbers(log_probs.flatten(), logits.argmax(-1).flatten())


def _numbers(log_probs: Tensor, likeliest: Tensor) -> Tensor:
    """Log-probabilities (N,) and the likeliest ids (N,) in one tensor (N, 2) float64, which holds both exactly."""
    return torch.stack([in_double(log_probs), in_double(likeliest)], 1)


def _of_each(read: Sequence[Tensor], of: Sequence[int], count: int) -> list[AnswerScores]:
    """The scores of `count` answers from the numbers of their tokens; `of` says whose each token is."""
    tokens: list[list[tuple[float, int]]] = [[] for _ in range(count)]
    # One read for all launches: the host waits for each.
    for n, (log_prob, top) in zip(of, torch.cat(list(read)).tolist(), strict=True):
        tokens[n].append((log_prob, int(top)))
    return [AnswerScores(tuple(one for one, _ in mine), tuple(top for _, top in mine)) for mine in tokens]


def whole(lm: LanguageModel, rows: Sequence[_Row]) -> _Scored:
    """Score rows by whole forwards, without sharing anything: to compare with, and to fall back to."""
    return _merged([_whole_launch(lm, launch, ignore_advance) for launch in _whole_launches(rows)])


def _whole_launches(rows: Sequence[_Row]) -> Generator[list[_Row]]:
    """Rows of equal length, some at a time."""
    for batch in launches([len(prompt) + len(answer) - 1 for prompt, answer in rows]):
        yield [rows[index] for index in batch]


@torch.no_grad()
def _whole_launch(lm: LanguageModel, chosen: list[_Row], advance: Advance) -> _Scored:
    keep = max(len(answer) for _, answer in chosen)
    ids = torch.tensor([(prompt + answer)[:-1] for prompt, answer in chosen])
    logits = run(lm, ids, logits_to_keep=keep).logits[:, -keep:].float()
    padded = send(torch.tensor([(0,) * (keep - len(answer)) + answer for _, answer in chosen]), logits.device)
    read = [
        _read(line[None, -len(answer) :], wanted[None, -len(answer) :])
        for (_, answer), line, wanted in zip(chosen, logits, padded, strict=True)
    ]
    of = [n for n, (_, answer) in enumerate(chosen) for _ in answer]
    found = dict(zip(chosen, _of_each(read, of, len(chosen)), strict=True))
    advance(len(chosen))
    return found


def _merged(parts: Sequence[_Scored | None]) -> _Scored:
    return {row: scores for part in parts if part for row, scores in part.items()}


def proved(lm: LanguageModel, asked: Sequence[tuple[AnswerIds, Collection[AnswerIds]]]) -> bool:
    """Whether kept keys and values give the log-probabilities of whole forwards, tried on a few prompts' answers.

    It is tried once on a model for rows of up to a length. Raises what `prove_engine` raises, among it every exhaustion
    of memory.
    """
    order = sorted(asked, key=lambda one: (max(map(len, one[1])), len(one[0])))
    longest = max(order, key=_tokens, default=None)
    if longest is None or _tokens(longest) <= lm.proofs.get(KEPT_VALUES, 0):
        return True
    few = [longest, *(one for one in order[:: max(1, len(order) // 3)][-4:] if one is not longest)]
    rows = [(prompt, answer) for prompt, answers in few for answer in answers]

    def log_probs(scores: _Scored) -> list[Tensor]:
        return [torch.tensor([value for row in rows for value in scores[row].log_probs], dtype=torch.float64)]

    def fast() -> list[Tensor]:
        found: _Scored = {}
        for prompt, answers in few:
            lead = len(prompt) // 2
            _together(lm, [prompt], [list(answers)], lead, Prefixes().cache(lm, [prompt], lead), found)
        return log_probs(found)

    # Log-probabilities near 0 are compared absolutely: a likely answer's are all rounding.
    limit = SUFFIX_AGREEMENT[lm.dtype]
    holds = prove_engine(fast, lambda: log_probs(whole(lm, rows)), limit, name=KEPT_VALUES, least=1.0).holds
    if holds:
        lm.proofs[KEPT_VALUES] = _tokens(longest)
    return holds


def _tokens(asked: tuple[AnswerIds, Collection[AnswerIds]]) -> int:
    """The tokens of the longest row of a prompt and an answer."""
    return len(asked[0]) + max(map(len, asked[1]))
