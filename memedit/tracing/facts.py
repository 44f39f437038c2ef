"""Causal tracing, one fact at a time: which states carry an answer from the subject to the end of the prompt.

Meng et al. 2022, section 2 (kmeng01/memit, experiments/causal_trace.py): noise on the embeddings of the subject's
tokens lowers the answer's probability, and patching in a clean state raises it again in part. For an answer of several
tokens the probability is joint over them; for one token this is the published definition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from memedit.config.recipe import TraceKnobs
from memedit.edits.edit import EditRequest, Finding
from memedit.edits.lint import lint, raise_errors
from memedit.forward.passes import continuations, likeliest_next
from memedit.model.load import LanguageModel
from memedit.model.tokens import Prompt, SubjectLost, encode_prompt, object_ids
from memedit.numerics.effects import windows
from memedit.tracing.clean_and_corrupted import Cell, NoiseTrial, StateKind, TracePrompt, embedding_spread
from memedit.tracing.engines import Engine
from memedit.tracing.parts import Parts

TABLES: tuple[StateKind, ...] = ("hidden", "mlp", "attention")
"""Kinds with a score at each token and layer."""
SEVERED: tuple[StateKind, ...] = ("mlp severed", "attention severed")
"""Kinds with a score at each layer, at the last subject token."""


@dataclass(frozen=True)
class Fact:
    """A record, and an answer to it that the model gives."""

    request: EditRequest
    question: TracePrompt
    answer: str
    source: Literal["object_old", "object", "own"]


def find_facts(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    findings: Sequence[Finding] = (),
    *,
    chat: bool = False,
    own: bool = False,
) -> tuple[list[Fact], list[EditRequest]]:
    """Find the facts that can be traced, and the records whose answer the model does not give.

    The answer is the old object. A record without one takes its object where the model gives that, else the model's
    own next token. With `own` every record takes the model's next token. Raises EditListError with everything that is
    wrong with the list.
    """
    prompts = _prompts(lm, requests, findings, chat, own)
    answers = (
        [] if own else [_answer(lm, request, prompt, chat) for request, prompt in zip(requests, prompts, strict=True)]
    )
    scores = continuations(lm, [(prompt.ids, ids) for prompt, ids in zip(prompts, answers, strict=not own)])
    knows = [bool(one.likeliest.all()) for one in scores] or [False] * len(requests)
    lacks = [n for n, request in enumerate(requests) if not knows[n] and (own or not request.object_old)]
    tokens = dict(zip(lacks, likeliest_next(lm, [prompts[n].ids for n in lacks]), strict=True))
    facts: list[Fact] = []
    unknown: list[EditRequest] = []
    for n, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        if knows[n]:
            text, source = _wanted(request), "object_old" if request.object_old else "object"
            facts.append(Fact(request, _question(prompt, answers[n]), text, source))
        elif n in tokens:
            text = str(lm.tokenizer.decode([tokens[n]]))
            facts.append(Fact(request, _question(prompt, (tokens[n],)), text, "own"))
        else:
            unknown.append(request)
    return facts, unknown


def _wanted(request: EditRequest) -> str:
    return request.object_old or request.object


def _answer(lm: LanguageModel, request: EditRequest, prompt: Prompt, chat: bool) -> tuple[int, ...]:
    return object_ids(lm.tokenizer, request.text, prompt.ids, _wanted(request), glue=request.glue, chat=chat)


def _prompts(
    lm: LanguageModel, requests: Sequence[EditRequest], findings: Sequence[Finding], chat: bool, own: bool
) -> list[Prompt]:
    passed = {"E106", "E104"} if own else {"E106"}
    found = [one for one in (*findings, *lint(requests)) if one.severity == "error" and one.code not in passed]
    flawed = {finding.edit for finding in found}
    room, prompts = lm.architecture.positions, list[Prompt]()
    for request in requests:
        if request.id in flawed:
            continue
        if request.remove and not (request.answer or own):
            message = 'it is a removal without an old object, so there is no answer to trace; add "object_old"'
            found.append(request.finding("E123", message))
            continue
        if not request.subject:
            message = "it has no subject, and tracing adds noise to the subject's tokens"
            found.append(request.finding("E103", f'{message}; add "subject"'))
            continue
        try:
            prompt = encode_prompt(lm.tokenizer, request, chat=chat)
        except SubjectLost as error:
            found.append(request.finding("E120", str(error)))
            continue
        prompts.append(prompt)
        length = len(prompt.ids) + (1 if own else len(_answer(lm, request, prompt, chat)))
        if room is not None and length > room:
            message = f"prompt and answer are {length:,} tokens long; {room:,} fit into this model"
            found.append(request.finding("E121", message))
    raise_errors("the list of facts", found, empty=not requests)
    return prompts


def _question(prompt: Prompt, answer: tuple[int, ...]) -> TracePrompt:
    return TracePrompt(prompt.ids, answer, prompt.subject_from, prompt.subject_at)


def noise_scale(lm: LanguageModel, facts: Sequence[Fact], knobs: TraceKnobs) -> float:
    """The noise's standard deviation: a number, or a multiple of that of the subjects' embeddings in these prompts."""
    number, relative = knobs.noise_value
    if not relative:
        return number
    subjects = [fact.question.prompt[fact.question.first : fact.question.last + 1] for fact in facts]
    return number * embedding_spread(lm, subjects)


def make_trial(lm: LanguageModel, fact: Fact, scale: float, knobs: TraceKnobs, seed: int, width: int) -> NoiseTrial:
    """A fact with its own noise, drawn from the seed and the prompt's ids, so it does not depend on other facts."""
    question = fact.question
    drawn = hashlib.sha256(repr((seed, question.prompt)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
    embedding: Any = lm.model.get_input_embeddings()
    shape = (knobs.samples, question.last - question.first + 1, int(embedding.weight.shape[1]))
    noise = scale * torch.randn(shape, generator=generator)
    return NoiseTrial(question, noise, windows(lm.architecture.n_layers, width))


def trace_fact(
    lm: LanguageModel, parts: Parts, trial: NoiseTrial, engine: Any, *, everywhere: bool = True
) -> dict[str, Tensor]:
    """Compute every score of one fact, float32 on the CPU.

    `clean`, `corrupted` and `corrupted rank` are (); each kind of TABLES is (T, L), each of SEVERED (L,). Without
    `everywhere` only the last subject token is scored, as the choice of layers needs; the rest is NaN.
    """
    ready: Engine = engine(lm, parts, trial)
    question, layers = trial.question, range(lm.architecture.n_layers)
    tokens = range(len(question.prompt)) if everywhere else [question.last]
    cells = [Cell(kind, layer, token) for kind in TABLES for token in tokens for layer in layers]
    cells += [Cell(kind, layer, question.last) for kind in SEVERED for layer in layers]
    scores = ready.scores(cells).float()
    split = len(TABLES) * len(tokens) * len(layers)
    found = {"clean": torch.tensor(ready.clean), "corrupted": torch.tensor(ready.low)}
    found["corrupted rank"] = torch.tensor(float(ready.rank))
    for kind, table in zip(TABLES, scores[:split].view(len(TABLES), len(tokens), -1), strict=True):
        found[kind] = torch.full((len(question.prompt), len(layers)), torch.nan)
        found[kind][list(tokens)] = table
    found |= dict(zip(SEVERED, scores[split:].view(len(SEVERED), -1).clone(), strict=True))
    return found
