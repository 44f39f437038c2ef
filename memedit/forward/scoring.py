"""Weighing answers: how likely a model finds each continuation of each prompt, with every prompt run once.

1. Equal prompts are one prompt: its answers share its forward, and the first token of each is read off one head.
2. Prompts that begin alike for many tokens (a chat template, a passage put before them) share that beginning too: it
   runs once, and its keys and values serve all.
3. Answers of several tokens go on from their prompt's keys and values.
4. Rows of equal length share a launch, so that nothing is padded; the head runs where an answer is read, only there.

A few rows are weighed both ways first; where a family's cache does not agree with whole forwards, whole forwards it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
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

AnswerIds = tuple[int, ...]
LEAST_LEAD = 8  # tokens that prompts must share to be run together
LEAST_SAVED = 1024  # tokens that a shared beginning must save: a launch of its own costs as much as some hundreds
KEPT_TOKENS = 4 * TOKENS_PER_LAUNCH  # whose keys and values a launch may hold: a shared beginning counts in every row


@dataclass(frozen=True)
class AnswerScores:
    """How a model takes one answer: each token's log-probability, and the token it finds likeliest there."""

    log_probs: tuple[float, ...]
    likeliest: AnswerIds


@torch.no_grad()
def score_answers(
    lm: LanguageModel, rows: Sequence[tuple[AnswerIds, AnswerIds]], seen: Callable[[int], None] | None = None
) -> list[AnswerScores]:
    """Weigh (prompt ids, answer ids), neither empty; `seen` hears of rows done."""
    answers: dict[AnswerIds, dict[AnswerIds, None]] = {}
    for prompt, answer in rows:
        answers.setdefault(prompt, {})[answer] = None
    found: dict[tuple[AnswerIds, AnswerIds], AnswerScores] = {}
    shares = proved(lm, list(answers.items()))
    for lead, prompts in leads(list(answers)) if shares else [(0, list(answers))]:
        if not shares:
            found |= whole(lm, [(prompt, answer) for prompt in prompts for answer in answers[prompt]], seen)
            continue
        start = lead_cache(lm, prompts[0][:lead])
        for chosen in together(prompts, lead):
            _together(lm, chosen, [list(answers[prompt]) for prompt in chosen], lead, start, found)
            if seen:
                seen(sum(len(answers[prompt]) for prompt in chosen))
    return [found[row] for row in rows]


def leads(prompts: Sequence[AnswerIds]) -> Generator[tuple[int, list[AnswerIds]]]:
    """Prompts in groups that begin alike: how many tokens they share, and the group; 0 and the others at the end.

    At least one token of every prompt is left over: its last state is what is read.
    """
    alone: list[AnswerIds] = []
    for run_of in _runs(sorted(prompts)):
        first, last = run_of[0], run_of[-1]  # in order, so that what these share all share
        lead = min(_common(first, last), min(map(len, run_of)) - 1)
        if (len(run_of) - 1) * lead >= LEAST_SAVED:
            yield lead, run_of
        else:
            alone += run_of
    if alone:
        yield 0, alone


def together(prompts: Sequence[AnswerIds], lead: int, more: int = 0) -> Generator[list[AnswerIds]]:
    """Prompts that share a launch behind a beginning of `lead` tokens: of equal length. `more` tokens may follow."""
    for batch in launches([len(prompt) - lead for prompt in prompts]):
        most = max(1, KEPT_TOKENS // (len(prompts[batch[0]]) + more))
        for at in range(0, len(batch), most):
            yield [prompts[index] for index in batch[at : at + most]]


def _runs(prompts: Sequence[AnswerIds]) -> Generator[list[AnswerIds]]:
    """Neighbors in order that share LEAST_LEAD tokens."""
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


def lead_cache(lm: LanguageModel, lead: AnswerIds) -> DynamicCache | None:
    """Keys and values of a shared beginning, one row; None for an empty one."""
    if not lead:
        return None
    cache = DynamicCache()
    run_on(lm, torch.tensor([lead]), cache, keep=1)
    return cache


def run_on(lm: LanguageModel, ids: Tensor, cache: DynamicCache, *, keep: int) -> Tensor:
    """Run ids (B, T) after what the cache holds, which grows by them; logits (B, keep, V) float32."""
    rows: dict[str, Any] = {"input_ids": ids.to(lm.device), cache_name(lm): cache}
    output: Any = lm.model(**rows, use_cache=True, logits_to_keep=keep)
    return output.logits[:, -keep:].float()


def copy_cache_rows(cache: DynamicCache | None, rows: Sequence[int]) -> DynamicCache:
    """A cache of its own with some rows of another, in any number; an empty one of None."""
    chosen = DynamicCache()
    for index, entry in enumerate(cache.layers if cache is not None else ()):
        layer: Any = entry
        at = torch.tensor(rows, device=layer.keys.device)
        chosen.update(layer.keys[at], layer.values[at], index)
    return chosen


def _together(
    lm: LanguageModel,
    prompts: list[AnswerIds],
    answers: list[list[AnswerIds]],
    lead: int,
    start: DynamicCache | None,
    found: dict[tuple[AnswerIds, AnswerIds], AnswerScores],
) -> None:
    """One launch of prompts of equal length, and the launches that go on from it."""
    cache = copy_cache_rows(start, [0] * len(prompts))
    logits = run_on(lm, torch.tensor([prompt[lead:] for prompt in prompts]), cache, keep=1)[:, 0]
    pairs = [(row, answer) for row, of_one in enumerate(answers) for answer in of_one]
    rows = torch.tensor([row for row, _ in pairs], device=logits.device)
    first = torch.tensor([answer[0] for _, answer in pairs], device=logits.device)
    heads = (logits[rows, first] - logits.logsumexp(-1)[rows]).tolist()
    likeliest = logits.argmax(-1)[rows].tolist()
    tails: list[tuple[list[float], list[int]]] = [([], [])] * len(pairs)
    longer = [n for n, (_, answer) in enumerate(pairs) if len(answer) > 1]
    most = max(1, TOKENS_PER_LAUNCH // len(prompts[0]))
    for batch in launches([len(pairs[n][1]) for n in longer], tokens=1 << 30):
        for at in range(0, len(batch), most):
            some = [longer[index] for index in batch[at : at + most]]
            ids = torch.tensor([pairs[n][1] for n in some])
            after = run_on(lm, ids[:, :-1], copy_cache_rows(cache, [pairs[n][0] for n in some]), keep=ids.shape[1] - 1)
            for n, tail in zip(some, _read(after, ids[:, 1:].to(after.device)), strict=True):
                tails[n] = tail
    for n, (row, answer) in enumerate(pairs):
        log_probs, tops = tails[n]
        found[prompts[row], answer] = AnswerScores((heads[n], *log_probs), (likeliest[n], *tops))


def _read(logits: Tensor, wanted: Tensor) -> list[tuple[list[float], list[int]]]:
    """logits (R, T, V), wanted ids (R, T) -> for each row the log-probabilities of its ids, and the likeliest ids."""
    log_probs = logits.gather(2, wanted[:, :, None])[:, :, 0] - logits.logsumexp(-1)
    return list(zip(log_probs.tolist(), logits.argmax(-1).tolist(), strict=True))


def whole(
    lm: LanguageModel, rows: Sequence[tuple[AnswerIds, AnswerIds]], seen: Callable[[int], None] | None = None
) -> dict[tuple[AnswerIds, AnswerIds], AnswerScores]:
    """The same by whole forwards, nothing shared: the witness, and the way out."""
    found: dict[tuple[AnswerIds, AnswerIds], AnswerScores] = {}
    for batch in launches([len(prompt) + len(answer) - 1 for prompt, answer in rows]):
        chosen = [rows[index] for index in batch]
        keep = max(len(answer) for _, answer in chosen)
        ids = torch.tensor([(prompt + answer)[:-1] for prompt, answer in chosen])
        logits = run(lm, ids, logits_to_keep=keep).logits[:, -keep:].float()
        for row, line in zip(chosen, logits, strict=True):
            wanted = torch.tensor([row[1]], device=line.device)
            log_probs, tops = _read(line[None, -len(row[1]) :], wanted)[0]
            found[row] = AnswerScores(tuple(log_probs), tuple(tops))
        if seen:
            seen(len(batch))
    return found


def proved(lm: LanguageModel, asked: Sequence[tuple[AnswerIds, Collection[AnswerIds]]]) -> bool:
    """Whether kept keys and values give the log-probabilities of whole forwards, tried on a few prompts' answers.

    Raises what `prove_engine` raises, among it every exhaustion of memory.
    """
    few = sorted(asked, key=lambda one: max(map(len, one[1])))[:: max(1, len(asked) // 3)][-4:]
    if not few:
        return True
    rows = [(prompt, answer) for prompt, answers in few for answer in answers]

    def log_probs(scores: Mapping[tuple[AnswerIds, AnswerIds], AnswerScores]) -> list[Tensor]:
        return [torch.tensor([value for row in rows for value in scores[row].log_probs], dtype=torch.float64)]

    def fast() -> list[Tensor]:
        found: dict[tuple[AnswerIds, AnswerIds], AnswerScores] = {}
        for prompt, answers in few:
            lead = len(prompt) // 2
            _together(lm, [prompt], [list(answers)], lead, lead_cache(lm, prompt[:lead]), found)
        return log_probs(found)

    # Log-probabilities near 0 are compared absolutely: a likely answer's are all rounding.
    limit = SUFFIX_AGREEMENT[lm.dtype]
    return prove_engine(fast, lambda: log_probs(whole(lm, rows)), limit, name="kept keys and values", least=1.0).holds
