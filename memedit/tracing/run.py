"""Trace a list of facts, one by one, for `trace` and `apply --layers auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memedit.config.layers import layers_text
from memedit.config.recipe import Recipe
from memedit.edits.edit import EditRequest, Finding
from memedit.errors import GateError
from memedit.model.load import LanguageModel
from memedit.model.memory import memory_named
from memedit.model.tokens import token_parts
from memedit.numerics.effects import ROLES, default_window, windows
from memedit.progress import Advance, Progress
from memedit.ranks import ALONE, Ranks
from memedit.results.traces import Average, FactTrace, TracedFact, TracingResult
from memedit.storage.artifacts import Store, digest_of
from memedit.storage.cache import cache_dir
from memedit.tracing.engines import WholeForwardPatching, choose_trace_engine
from memedit.tracing.facts import SEVERED, TABLES, Fact, find_facts, make_trial, noise_scale, trace_fact
from memedit.tracing.layer_selection import curve, effects, mean_figure, reason, suggest
from memedit.tracing.parts import Parts, find_parts
from memedit.tracing.suffix_engine import SuffixPatching

TRACE_CODE = 2  # raise it when tracing changes: traces kept by older code are then not reused
_FULL = "tracing does not fit into memory"
_FULL_HINT = "use fewer --samples, --dtype bfloat16 or --device cpu; traces made so far are kept"


def trace_all(
    lm: LanguageModel,
    digest: str,
    requests: Sequence[EditRequest],
    recipe: Recipe,
    progress: Progress,
    findings: Sequence[Finding] = (),
    *,
    everywhere: bool = True,
    own: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[TracingResult, Store]:
    """Trace the facts of a list that the model knows. Each is kept in the store: a second run reuses them.

    `ranks` share the facts. Raises EditListError with everything that is wrong with the list, GateError where the model
    knows none of the facts, and ResourceError where memory runs out.
    """
    knobs, n_layers = recipe.trace, lm.architecture.n_layers
    with progress.phase("facts"):
        facts, unknown = find_facts(lm, requests, findings, chat=recipe.chat, own=own)
    if unknown:
        known = f"{len(facts):,} of {len(requests):,}"
        progress.note(f"the model says the answer of {known} facts; the others are skipped")
    if not facts:
        raise GateError(
            "the model knows none of these facts, so there is nothing to trace", "trace facts that the model knows"
        )
    width = knobs.window or default_window(n_layers)
    scale = noise_scale(lm, facts, knobs)
    parts = find_parts(lm)
    with memory_named(_FULL, _FULL_HINT):
        engine, engine_reason = choose_trace_engine(
            lm, parts, make_trial(lm, facts[0], scale, knobs, recipe.seed, width)
        )
    same = {"model": digest, "dtype": str(lm.dtype), "noise": scale, "samples": knobs.samples, "window": width}
    same |= {"seed": recipe.seed, "engine": engine.__name__, "everywhere": everywhere, "code": TRACE_CODE}
    store = Store(cache_dir() / "traces" / digest_of(same)[:16], model=recipe.model.path)
    task = _TraceFact(parts, engine, scale, width, recipe, everywhere, store, same)
    with store.locked(progress.note), progress.phase("trace", len(facts), "facts") as advance:
        scores = [found or {} for found in ranks.each(lm, task, facts, advance)]
    settings: dict[str, Any] = {
        "noise": scale, "samples": knobs.samples, "window": width, "windows": windows(n_layers, width),
    }  # fmt: skip
    provenance = {
        "model": recipe.model.path, "digest": digest, "noise_rule": knobs.noise, "seed": recipe.seed,
        "engine": engine_reason,
    }  # fmt: skip
    average = _average(facts, scores, {**settings, **provenance, "unknown": len(unknown), "n_layers": n_layers})
    traced = tuple(
        TracedFact(_record(lm, fact, found, settings), found) for fact, found in zip(facts, scores, strict=True)
    )
    return TracingResult(traced, tuple(_unknown(request) for request in unknown), average), store


@dataclass(frozen=True)
class _TraceFact:
    """Trace one fact, or read its scores from the store. Any rank can do it."""

    parts: Parts
    engine: type[SuffixPatching] | type[WholeForwardPatching]
    scale: float
    width: int
    recipe: Recipe
    everywhere: bool
    store: Store
    same: dict[str, Any]

    def __call__(self, lm: LanguageModel, fact: Fact, advance: Advance) -> dict[str, Tensor]:
        def make() -> dict[str, Tensor]:
            trial = make_trial(lm, fact, self.scale, self.recipe.trace, self.recipe.seed, self.width)
            with memory_named(_FULL, _FULL_HINT):
                return trace_fact(lm, self.parts, trial, self.engine, everywhere=self.everywhere)

        found = self.store.recall("fact", {**self.same, "question": vars(fact.question)}, make)
        advance(1)
        return found


def _average(facts: Sequence[Fact], scores: Sequence[Mapping[str, Tensor]], settings: Mapping[str, Any]) -> Average:
    means = effects(facts, scores)
    peak = suggest(means)
    by_role = {
        kind: {role: found for row, role in enumerate(ROLES) if (found := curve(means[kind], row))} for kind in TABLES
    }
    at_subject = {"hidden": curve(means["normal"]), **{kind: curve(means[kind]) for kind in SEVERED}}
    gap = curve(means["gap"])
    assert gap is not None  # every fact has a last subject token
    return Average(
        **settings,
        facts=len(facts),
        clean=mean_figure(means["clean"]),
        corrupted=mean_figure(means["corrupted"]),
        total=mean_figure(means["total"]),
        effects=by_role,
        severed={kind: found for kind, found in at_subject.items() if found},
        gap=gap,
        layers=layers_text(range(peak.layers[0], peak.layers[1] + 1)) if peak.layers else None,
        reason=reason(peak, means),
    )


def _record(lm: LanguageModel, fact: Fact, found: Mapping[str, Tensor], settings: Mapping[str, Any]) -> FactTrace:
    question, tokenizer = fact.question, lm.tokenizer
    return FactTrace(
        **settings,
        id=fact.request.id,
        status="traced",
        subject=fact.request.subject,
        prompt=fact.request.text,
        answer=fact.answer,
        source=fact.source,
        answer_tokens=len(question.answer),
        tokens=tuple(str(tokenizer.decode([token])) for token in question.prompt),
        parts=tuple(token_parts(tokenizer, question.prompt)),
        subject_tokens=(question.first, question.last),
        clean=float(found["clean"]),
        corrupted=float(found["corrupted"]),
        corrupted_rank=int(found["corrupted rank"]),
    )


def _unknown(request: EditRequest) -> FactTrace:
    return FactTrace(
        id=request.id,
        status="unknown",
        subject=request.subject,
        prompt=request.text,
        answer=request.object_old or request.object,
    )
