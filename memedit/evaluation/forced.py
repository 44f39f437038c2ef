"""Score a model on an edit list by forced answers: given answers are scored, nothing is generated.

The score of an answer is its mean log-probability per token after the prompt. Success and magnitude are CounterFact's
(Meng et al. 2022, section 3.3; kmeng01/memit, eval_utils_counterfact.py), token accuracy is zsRE's (Mitchell et al.
2022) and EasyEdit's, exact match asks that every token be the likeliest. Each figure is a mean over an edit's probes
first, then over edits, so that every edit counts once.

By hand: new object of two tokens with probabilities 0.5 and 0.32, old object of one token with 0.3. The new one scores
sqrt(0.5 x 0.32) = 0.4 > 0.3: success 1, magnitude 0.1. If 0.5 is the largest at its place and 0.32 is not: token
accuracy 1/2, exact match 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.evaluation.figures import differences, score_of, share_figure
from memedit.evaluation.probes import Probe, list_probes
from memedit.forward.scoring import AnswerScores, score_answers
from memedit.model.load import LanguageModel
from memedit.model.tokens import encode_questions
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks
from memedit.results.metrics import FORCED_METRICS, MetricKind, metric_for
from memedit.results.report import Figure, Scores


@dataclass(frozen=True)
class EditScores:
    """One edit's measurements, each a mean over its own probes; None where it has none."""

    efficacy: float | None = None
    paraphrase: float | None = None
    neighborhood: float | None = None
    accuracy: float | None = None
    paraphrase_accuracy: float | None = None
    neighborhood_accuracy: float | None = None
    efficacy_magnitude: float | None = None
    paraphrase_magnitude: float | None = None
    neighborhood_magnitude: float | None = None
    token_accuracy: float | None = None
    paraphrase_token_accuracy: float | None = None
    neighborhood_token_accuracy: float | None = None
    neighborhood_plus: float | None = None
    neighborhood_plus_magnitude: float | None = None
    portability: float | None = None
    portability_accuracy: float | None = None
    reversal: float | None = None
    reversal_accuracy: float | None = None
    still_named: float | None = None
    paraphrase_still_named: float | None = None
    groups: Mapping[str, float] = field(default_factory=dict)
    """Token accuracy by the list's name for a kind of question: `portability/Reasoning`."""
    around: Sequence[tuple[str, Sequence[int]]] = ()
    """For each neighbor its group and the most likely token at each place of its answer; locality compares these."""

    written: Mapping[str, float] = field(default_factory=dict)
    """Metrics of free answers, without `generated.`: of a removal in a run, since they tell what is left of a fact."""
    said: str | None = None
    """The free answer after the prompt, if there is one here."""

    @property
    def holds(self) -> bool:
        """Whether the model says the object, or of a removal no longer says the old one."""
        if (contained := self.written.get("contains")) is not None:  # what the edit asked to be compared by
            return contained == 1
        return self.accuracy == 1 or self.still_named == 0

    def record(self) -> dict[str, float | None]:
        """The measurements as a plain mapping."""
        free = {f"generated.{name}": value for name, value in self.written.items()}
        return {**{one.name: getattr(self, one.name) for one in FORCED_METRICS}, **free}


def score_edits(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    chat: bool = False,
    derive: bool = False,
    plus: bool = False,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[EditScores]:
    """Score every edit with the model as it is now; `derive` and `plus` as for `list_probes`."""
    asked = list_probes(requests, derive=derive, plus=plus)
    of_edit: list[list[tuple[Probe, Answer]]] = [[] for _ in requests]
    for probe, answer in ask(lm, asked, chat=chat, advance=advance, ranks=ranks):
        of_edit[probe.edit].append((probe, answer))
    return [_edit_scores(answered) for answered in of_edit]


def says_object(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    chat: bool = False,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[bool]:
    """For each record, whether greedy decoding says its object after its prompt; of a removal, its old object."""
    asked = [
        Probe(n, "efficacy", one.text, (one.answer, *one.aliases), glue=one.glue) for n, one in enumerate(requests)
    ]
    return [answer.exact for _, answer in ask(lm, asked, chat=chat, advance=advance, ranks=ranks)]


def summarize(edit_scores: Sequence[EditScores], base: Sequence[EditScores] | None = None) -> Scores:
    """Means over edits with 95 % intervals; with the base's scores of the same edits, locality too."""
    columns = {
        metric.name: [value for one in edit_scores if (value := getattr(one, metric.name)) is not None]
        for metric in FORCED_METRICS
    }
    groups = _columns([one.groups for one in edit_scores])
    local = agreement(edit_scores, base) if base is not None else [{} for _ in edit_scores]
    whole = [one["locality"] for one in local if "locality" in one]
    groups |= {name: values for name, values in _columns(local).items() if name != "locality"}
    written = {name: share_figure(values) for name, values in _columns([one.written for one in edit_scores]).items()}
    return score_of(columns, groups=groups, locality=share_figure(whole), generated=written)


def score_changes(before: Sequence[EditScores], after: Sequence[EditScores]) -> dict[str, Figure]:
    """After minus before by forced metric, paired by edit."""
    return differences([one.record() for one in before], [one.record() for one in after])


def agreement(edit_scores: Sequence[EditScores], base: Sequence[EditScores]) -> list[dict[str, float]]:
    """EasyEdit's locality of each edit: the share of answer tokens of a neighbor at which the likeliest token is the
    base's, right or wrong, over its neighbors; whole, and by group."""
    return [_agreement(now, was) for now, was in zip(edit_scores, base, strict=True)]


def _agreement(now: EditScores, was: EditScores) -> dict[str, float]:
    shares: dict[str, list[float]] = {}
    for (group, mine), (_, theirs) in zip(now.around, was.around, strict=True):
        share = fmean(a == b for a, b in zip(mine, theirs, strict=True))
        for name in ("locality", f"locality/{group}") if group else ("locality",):
            shares.setdefault(name, []).append(share)
    return {name: fmean(values) for name, values in shares.items()}


def facts_kept(
    facts: Sequence[EditRequest], before: Sequence[bool], after: Sequence[bool], edited: Sequence[EditRequest]
) -> dict[str, Figure | None]:
    """Of the facts right before, the share right after: about others, and about the edited subjects.

    Facts that an edit is about are left out. Facts of one subject move together, so a subject counts once; a fact
    without a subject counts by itself, as one about others.
    """
    subjects = {request.subject for request in edited if request.subject}
    changed, texts = {request.fact for request in edited}, {request.text for request in edited}
    shares: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    for fact, was, is_ in zip(facts, before, after, strict=True):
        if was and fact.fact not in changed and fact.text not in texts:
            shares[fact.subject in subjects].setdefault(fact.subject or fact.text, []).append(float(is_))
    return {
        "others": _by_subject(shares[False]),
        "siblings": _by_subject(shares[True]),
    }


def _by_subject(shares: Mapping[str, Sequence[float]]) -> Figure | None:
    return share_figure([fmean(values) for values in shares.values()])


@dataclass(frozen=True)
class Answer:
    """How a model answers a probe."""

    right: float
    """Mean log-probability per token of the right answer; of two right answers, the higher one."""
    wrong: float | None
    exact: bool
    """Every token of the answer, or of a spelling of it, is the likeliest."""
    tokens: float
    """Share of the answer's tokens that are the likeliest."""
    likeliest: tuple[int, ...]
    """The likeliest token at each place of the answer."""


def ask(
    lm: LanguageModel,
    asked: Sequence[Probe],
    *,
    chat: bool,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> list[tuple[Probe, Answer]]:
    """Score the answers of every probe. A derived probe that is too long for the model is left out.

    Raises UsageError if a probe of the list is too long for the model.
    """
    answers = [[*one.right, *([one.rival] if one.rival else []), *([one.wrong] if one.wrong else [])] for one in asked]
    encoded = encode_questions(
        lm.tokenizer, [(one.text, of_one, one.glue) for one, of_one in zip(asked, answers, strict=True)], chat=chat
    )
    lengths = [len(prompt) + max(map(len, ids)) for prompt, ids in encoded]
    held = [n for n, one in enumerate(asked) if not one.derived or lm.architecture.fits(lengths[n])]
    _check_lengths(lm, [(asked[n].text, lengths[n]) for n in held])
    rows = [(encoded[n][0], ids) for n in held for ids in encoded[n][1]]
    weighed = zip(rows, score_answers(lm, rows, advance, ranks), strict=True)
    return [(asked[n], _answer(asked[n], weighed)) for n in held]


def _check_lengths(lm: LanguageModel, lengths: Sequence[tuple[str, int]]) -> None:
    """Raise UsageError if a prompt with its answer has more tokens than the model can read."""
    text, longest = max(lengths, key=lambda one: one[1], default=("", 0))
    if not lm.architecture.fits(longest):
        said = (
            f"a prompt and its answer are {longest:,} tokens long, and this model takes {lm.architecture.positions:,}"
        )
        raise UsageError(f"{said}: {text[:60]!r}...", "leave such a record out; memedit check -m MODEL names it")


def _answer(probe: Probe, weighed: Iterator[tuple[tuple[tuple[int, ...], tuple[int, ...]], AnswerScores]]) -> Answer:
    right = [next(weighed) for _ in probe.right]
    if probe.rival:
        right.append(next(weighed))
    wrong = fmean(next(weighed)[1].log_probs) if probe.wrong else None
    hits = [[a == b for a, b in zip(ids, taken.likeliest, strict=True)] for (_, ids), taken in right]
    best = fmean(right[0][1].log_probs)
    if probe.rival:
        best = max(best, fmean(right[-1][1].log_probs))
    return Answer(best, wrong, any(map(all, hits)), fmean(hits[0]), right[0][1].likeliest)


def _edit_scores(answered: Sequence[tuple[Probe, Answer]]) -> EditScores:
    """Average the answers of one edit's probes into its scores."""
    by_kind: dict[str, list[tuple[Probe, Answer]]] = {}
    for probe, answer in answered:
        by_kind.setdefault(probe.kind, []).append((probe, answer))
    found: dict[str, float] = {}
    for probe_kind, these in by_kind.items():
        answers = [answer for _, answer in these]
        pairs = [(one.right, one.wrong) for one in answers if one.wrong is not None]
        measured: dict[MetricKind, list[float]] = {
            "exact": [one.exact for one in answers],
            "tokens": [one.tokens for one in answers],
            "success": [right > wrong for right, wrong in pairs],
            "magnitude": [math.exp(right) - math.exp(wrong) for right, wrong in pairs],
        }
        for kind, values in measured.items():
            metric = metric_for(probe_kind, kind)
            if metric is not None and values:
                found[metric.name] = fmean(values)
    asked = by_kind.get("portability", [])
    groups = _columns([{f"portability/{probe.group}": answer.tokens} for probe, answer in asked if probe.group])
    around = [(probe.group or "", answer.likeliest) for probe, answer in by_kind.get("neighborhood", [])]
    means = {name: fmean(values) for name, values in groups.items()}
    return EditScores(**found, groups=means, around=around, written={}, said=None)


def _columns(records: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return columns
