"""How a model does on an edit list: did the edits take, do they generalize, what else moved.

Success is CounterFact's (Meng et al. 2022, section 3.3; kmeng01/memit, eval_utils_counterfact.py): the likelier of two
answers by mean log-probability per token. Accuracy asks more: every token of the answer is the likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import torch

from memedit.model.load import LanguageModel
from memedit.model.passes import Continuation, continuations
from memedit.model.subject import encode_text, object_ids
from memedit.numerics.scores import harmonic, mean_interval, share_interval
from memedit.report import Figure, Scores
from memedit.request import EditRequest
from memedit.tell import Advance


@dataclass(frozen=True)
class Judgment:
    """One edit's measurements, each a mean over its own records from 0 to 1; None where there are none."""

    efficacy: float | None = None
    paraphrase: float | None = None
    neighborhood: float | None = None
    accuracy: float | None = None
    paraphrase_accuracy: float | None = None
    neighborhood_accuracy: float | None = None
    efficacy_magnitude: float | None = None
    paraphrase_magnitude: float | None = None
    neighborhood_magnitude: float | None = None

    def record(self) -> dict[str, float | None]:
        """As a plain mapping."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Question:
    """A prompt, the answers that count as right (the first is asked for by name) and the one it is held against."""

    text: str
    right: tuple[str, ...]
    wrong: str | None


def judge(
    lm: LanguageModel, requests: Sequence[EditRequest], *, chat: bool = False, advance: Advance | None = None
) -> list[Judgment]:
    """Every edit's judgment by the model as it is now."""
    asked = [_questions(request) for request in requests]
    questions = [question for of_one in asked for part in of_one for question in part]
    answers = iter(_ask(lm, questions, chat=chat, advance=advance))
    return [_judgment([[next(answers) for _ in part] for part in of_one]) for of_one in asked]


def exact(
    lm: LanguageModel, requests: Sequence[EditRequest], *, chat: bool = False, advance: Advance | None = None
) -> list[bool]:
    """For each record, whether greedy decoding says its object after its prompt."""
    questions = [_Question(request.text, (request.object, *request.aliases), None) for request in requests]
    return [answer.exact for answer in _ask(lm, questions, chat=chat, advance=advance)]


def score(judgments: Sequence[Judgment]) -> Scores:
    """Means over edits with 95 % intervals: an edit counts once, however many paraphrases or neighbors it has."""
    figures: dict[str, Figure | None] = {}
    for field in fields(Judgment):
        values = [value for one in judgments if (value := getattr(one, field.name)) is not None]
        figures[field.name] = figure(values, signed=field.name.endswith("magnitude"))
    parts = [figures[name] for name in ("efficacy", "paraphrase", "neighborhood")]
    known = [part.mean for part in parts if part is not None]
    return Scores(**figures, score=harmonic(known) if len(known) == len(parts) else None)  # type: ignore[arg-type]


def figure(values: Sequence[float], *, signed: bool = False) -> Figure | None:
    """The mean of one value per edit with its interval: Wilson's where all are 0 or 1, else a mean's."""
    if not values:
        return None
    if all(value in (0, 1) for value in values) and not signed:
        found = share_interval(round(sum(values)), len(values))
    else:
        found = mean_interval(torch.tensor(values, dtype=torch.float64))
    return Figure(mean=found.mean, low=found.low, high=found.high, n=found.n)


def kept(
    facts: Sequence[EditRequest], before: Sequence[bool], after: Sequence[bool], edited: Sequence[EditRequest]
) -> dict[str, Figure | None]:
    """Of the facts right before, the share right after: about others, and about the edited subjects.

    Facts that an edit is about are left out. Facts of one subject move together, so a subject counts once.
    """
    subjects = {request.subject for request in edited}
    changed = {request.fact for request in edited} | {(request.subject, request.prompt) for request in edited}
    shares: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    for fact, was, is_ in zip(facts, before, after, strict=True):
        if was and fact.fact not in changed and (fact.subject, fact.prompt) not in changed:
            shares[fact.subject in subjects].setdefault(fact.subject, []).append(float(is_))
    return {
        "others": _by_subject(shares[False]),
        "siblings": _by_subject(shares[True]),
    }


def _by_subject(shares: Mapping[str, Sequence[float]]) -> Figure | None:
    return figure([fmean(values) for values in shares.values()])


@dataclass(frozen=True)
class _Answer:
    right: float
    """Mean log-probability per token of the answer asked for."""
    wrong: float | None
    exact: bool


def _questions(request: EditRequest) -> tuple[list[_Question], list[_Question], list[_Question]]:
    right, old = (request.object, *request.aliases), request.object_old
    neighbors = [
        _Question(neighbor.prompt, (answer,), request.object)
        for neighbor in request.neighborhood
        if (answer := neighbor.answer or old)
    ]
    return (
        [_Question(request.text, right, old)],
        [_Question(text, right, old) for text in request.paraphrases],
        neighbors,
    )


def _ask(lm: LanguageModel, questions: Sequence[_Question], *, chat: bool, advance: Advance | None) -> list[_Answer]:
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for question in questions:
        ids = encode_text(lm.tokenizer, question.text, chat=chat)
        for answer in (*question.right, *([question.wrong] if question.wrong else [])):
            rows.append((ids, object_ids(lm.tokenizer, question.text, ids, answer, chat=chat)))
    said = iter(continuations(lm, rows, advance))
    answers: list[_Answer] = []
    for question in questions:
        right = [next(said) for _ in question.right]
        wrong = _mean(next(said)) if question.wrong else None
        answers.append(_Answer(_mean(right[0]), wrong, any(bool(one.likeliest.all()) for one in right)))
    return answers


def _mean(said: Continuation) -> float:
    return float(said.log_probs.double().mean())


def _judgment(parts: Sequence[Sequence[_Answer]]) -> Judgment:
    found: dict[str, float] = {}
    for name, answers in zip(("efficacy", "paraphrase", "neighborhood"), parts, strict=True):
        if not answers:
            continue
        found["accuracy" if name == "efficacy" else f"{name}_accuracy"] = fmean(one.exact for one in answers)
        paired = [(one.right, one.wrong) for one in answers if one.wrong is not None]
        if paired:
            found[name] = fmean(right > wrong for right, wrong in paired)
            found[f"{name}_magnitude"] = fmean(math.exp(right) - math.exp(wrong) for right, wrong in paired)
    return Judgment(**found)
