"""Score a model by what it writes: greedy decoding after the prompt, with nothing forced.

An answer is right if the first sentence that the model writes names the object, or an alias, before the old object.
Forced figures are higher: every token sees the right tokens before it, or only two answers are compared. The same
prompts are asked after unrelated text as well, since edits often fail where the prompt does not begin the text.

By hand: "The capital of France is" -> " Lyon, a city on the Rhone. Paris" counts for Lyon and does not name Paris,
which stands in the second sentence; " a city. Lyon" does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from memedit.config.recipe import EvalKnobs
from memedit.edits.edit import EditRequest
from memedit.edits.glue import behind
from memedit.evaluation.forced import EditScores, says_object
from memedit.evaluation.probes import Probe, list_probes
from memedit.evaluation.text_metrics import answered, contains_words, cosine, document_weights, n_gram_entropy, words
from memedit.forward.generation import generate, generate_each
from memedit.model.load import LanguageModel
from memedit.model.tokens import decode_text, encode_bare, encode_text
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks
from memedit.results.metrics import METRICS, MetricKind, metric_for

WRITTEN_PROBES = tuple(one.probe for one in METRICS if one.kind == "written")
OWN_PROBES = ("efficacy", "removal")
"""The probes of the edits' own prompts."""

UNRELATED = (
    "The bakery on the corner opens before sunrise, and by seven the first loaves are already gone. People stand in "
    "line with their coats buttoned up and talk about the weather, which has been wet since the beginning of the "
    "month. Behind the counter a radio plays quietly. Somebody asks for two rolls and a slice of cake, somebody else "
    "counts coins into a small dish. When the rain stops for a moment, the street begins to steam, and a dog shakes "
    "itself next to the door. In the back room the oven hums, flour lies on every shelf, and a calendar from last year "
    "still hangs above the sink. Later in the day children come for biscuits, and the owner gives them the broken ones "
    "for free. The shop closes in the early afternoon, the blinds are pulled down, the floor is swept and mopped, and "
    "the dough for the next morning is covered with a cloth. Nothing else happens there, except that now and then a "
    "cat sits on the window sill and looks at the bread for a long time without moving, as if it were reading a book."
)
"""The text before prompts if the user gives none; it is about nothing in any edit list."""


@dataclass(frozen=True)
class Writing:
    """What the model wrote after one edit's prompts, and its metrics: means over the edit's prompts."""

    said: str = ""
    """The text after the edit's own prompt."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """`efficacy`, `old`, `paraphrase_50`, ...; the number is that of the unrelated tokens before the prompt."""
    open: Mapping[str, float] = field(default_factory=dict)
    """`fluency`, `fluency_written`, `consistency` of what was written on."""


def written(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    knobs: EvalKnobs,
    *,
    chat: bool = False,
    unrelated: str = UNRELATED,
    bare: bool = False,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> tuple[list[Writing], list[str]]:
    """Let the model write after every edit's prompts; notes say what could not be asked.

    `bare`: only after the edits' own prompts.
    """
    kinds = OWN_PROBES if bare else WRITTEN_PROBES
    asked = [
        probe
        for probe in list_probes(requests, derive=knobs.derive and not bare)
        # A derived probe that is too long is left out; after one of the list the model writes as far as there is room.
        if probe.kind in kinds
        and (not probe.derived or lm.architecture.fits(len(encode_text(lm.tokenizer, probe.text, chat=chat)) + 1))
    ]
    rooms = [
        answer_room(lm, [behind(probe.text, answer, probe.glue) for answer in probe.right], knobs.tokens)
        for probe in asked
    ]
    values: list[dict[str, list[float]]] = [{} for _ in requests]
    said = [""] * len(requests)
    notes: list[str] = []
    for count in (0,) if bare else knobs.prefixes:
        before = prefix(lm, unrelated, count)
        if before is None:
            notes.append(f"the unrelated text has fewer than {count} tokens: prompts after it were not asked")
            continue
        prompts = [encode_text(lm.tokenizer, before + probe.text, chat=chat) for probe in asked]
        longest = max((len(ids) + room for ids, room in zip(prompts, rooms, strict=True)), default=0)
        if not lm.architecture.fits(longest):
            if count:
                notes.append(f"prompts after {count} unrelated tokens do not fit into this model: not asked")
                continue
            notes.append("some prompts leave this model less room to write in than eval.tokens")
        for probe, ids in zip(asked, generate_each(lm, prompts, rooms, advance=advance, ranks=ranks), strict=True):
            text = decode_text(lm.tokenizer, ids)
            for name, value in _measures(probe, text, count, requests[probe.edit]):
                values[probe.edit].setdefault(name, []).append(value)
            if probe.kind in OWN_PROBES and not count:
                said[probe.edit] = text
    opened = [{} for _ in requests] if bare else _open(lm, requests, knobs, chat, advance, ranks)
    return [
        Writing(text, {name: fmean(each) for name, each in of_one.items()}, free)
        for text, of_one, free in zip(said, values, opened, strict=True)
    ], notes


def with_free_answers(
    lm: LanguageModel, requests: Sequence[EditRequest], edit_scores: Sequence[EditScores], knobs: EvalKnobs, *,
    chat: bool = False, ranks: Ranks = ALONE,
) -> list[EditScores]:  # fmt: skip
    """Add to the scores of some edits what the model writes after their prompts.

    They are the removals, since another text may name the old object, and the edits compared by the words they contain.
    """
    which = [n for n, request in enumerate(requests) if needs_free_answer(request)]
    writing, _ = written(lm, [requests[n] for n in which], knobs, chat=chat, bare=True, ranks=ranks)
    found = list(edit_scores)
    for n, one in zip(which, writing, strict=True):
        found[n] = replace(found[n], written=one.measures, said=one.said)
    return found


def needs_free_answer(request: EditRequest) -> bool:
    """Whether a free answer decides or tells what became of an edit."""
    return request.remove or request.evaluate == "contains"


def edits_hold(
    lm: LanguageModel, requests: Sequence[EditRequest], knobs: EvalKnobs, *, chat: bool = False, ranks: Ranks = ALONE
) -> list[bool]:
    """For each edit, whether it holds: by the most likely tokens, or by a free answer where the edit asks for that."""
    said = says_object(lm, requests, chat=chat, ranks=ranks)
    found = [is_said != request.remove for is_said, request in zip(said, requests, strict=True)]
    which = [n for n, request in enumerate(requests) if request.evaluate == "contains" and not request.remove]
    writing, _ = written(lm, [requests[n] for n in which], knobs, chat=chat, bare=True, ranks=ranks)
    for n, one in zip(which, writing, strict=True):
        found[n] = one.measures["contains"] == 1
    return found


def answer_room(lm: LanguageModel, answers: Sequence[str], tokens: int) -> int:
    """How many tokens may be written to name one of the answers: `tokens`, and as many again as the longest fills."""
    longest = max(len(encode_bare(lm.tokenizer, answer)) for answer in answers)
    return tokens * (1 + longest // tokens)


def prefix(lm: LanguageModel, text: str, tokens: int) -> str | None:
    """The first `tokens` tokens of a text, as text that a prompt can follow; None where the text is shorter."""
    if not tokens:
        return ""
    cut = encode_bare(lm.tokenizer, text)[:tokens]
    if len(cut) < tokens:
        return None
    # A cut inside a character leaves half of it, which decodes as U+FFFD.
    return decode_text(lm.tokenizer, cut).strip().rstrip(".,;:\ufffd") + ". "


def _measures(probe: Probe, text: str, count: int, request: EditRequest) -> Iterator[tuple[str, float]]:
    """The metrics of one written answer, without `generated.`; `count`: the unrelated tokens before its prompt."""
    tail = f"_{count}" if count else ""
    right, old = answered(text, probe.right, probe.wrong)
    measured: dict[MetricKind, float | None] = {
        "written": float(right), "old": None if probe.wrong is None else float(old),
    }  # fmt: skip
    if request.evaluate == "contains":
        measured["contains"] = float(any(contains_words(text, one) for one in probe.right))
    for kind, value in measured.items():
        metric = metric_for(probe.kind, kind)
        if metric is not None and value is not None:
            yield metric.name.removeprefix("generated.") + tail, value


def _open(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    knobs: EvalKnobs,
    chat: bool,
    advance: Advance | None,
    ranks: Ranks,
) -> list[dict[str, float]]:
    """Fluency and consistency: the published 100 tokens, prompt included, drawn from the 5 likeliest."""
    openings = [list(request.generation) or [request.text] for request in requests]
    flat = [text for of_one in openings for text in of_one]
    ids = [encode_text(lm.tokenizer, text, chat=chat) for text in flat]
    # The published length counts the prompt's tokens, so what is written differs with them.
    rooms = [max(0, knobs.fluency_tokens - len(prompt)) for prompt in ids]
    most = max(rooms, default=0)
    found = generate(lm, ids, most, top_k=knobs.fluency_top_k, seed=knobs.seed, advance=advance, ranks=ranks)
    texts = iter([decode_text(lm.tokenizer, line[:room]) for line, room in zip(found, rooms, strict=True)])
    weights = document_weights([text for request in requests for text in request.references])
    results: list[dict[str, float]] = []
    for request, of_one in zip(requests, openings, strict=True):
        mine = [(opening, next(texts)) for opening in of_one]
        whole = [entropy for a, b in mine if (entropy := n_gram_entropy(words(a + b))) is not None]
        alone = [entropy for _, b in mine if (entropy := n_gram_entropy(words(b))) is not None]
        result = {name: fmean(each) for name, each in (("fluency", whole), ("fluency_written", alone)) if each}
        if request.references:
            joined = " ".join(a + b for a, b in mine)
            result["consistency"] = cosine(joined, " ".join(request.references), weights)
        results.append(result)
    return results
