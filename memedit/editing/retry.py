"""Retry: find the targets of failed edits again on the edited model, and solve everything again from the base.

A target is first found for one edit, on a model without the others. Found again with all changes in place, it accounts
for what the other edits and the solve changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memedit.editing.batches import changes_of
from memedit.editing.moment_cache import MomentPlan
from memedit.editing.plan import Contexts, Edit
from memedit.editing.run import EditRun
from memedit.editing.solve import Update
from memedit.editing.target_search import Search, SearchEngine, searched_prompts
from memedit.editing.targets import Targets
from memedit.evaluation.generated import edits_hold
from memedit.model.weights import applied
from memedit.results.report import RetryRound
from memedit.storage.artifacts import Store, digest_of


@dataclass(frozen=True)
class RetryResult:
    """The targets after the rounds, the update made from them, and a record of each round."""

    targets: Targets
    update: Update
    rounds: tuple[RetryRound, ...] = ()


def retry_failed(
    job: EditRun,
    run: Store,
    contexts: Contexts,
    moments: MomentPlan,
    targets: Targets,
    engine: SearchEngine,
    update: Update,
) -> RetryResult:
    """Run up to `target.retry` rounds; stop when every edit succeeds, or when a round does not help.

    A round helps if more edits succeed than before. Otherwise its result is dropped, and another round would equal it.
    """
    rounds, retried = list[RetryRound](), set[int]()
    success = _success(job, update) if job.recipe.target.retry else []
    while len(rounds) < job.recipe.target.retry and not all(success):
        which = failed_edits(job.plan.edits, success, joint=job.recipe.joint)
        new_targets = _search_again(job, run, contexts, moments, targets, engine, update, which)
        retried |= set(which)
        new_update = job.update(contexts, moments, new_targets, engine, retried)
        now = _success(job, new_update)
        ids, before, after = tuple(job.requests[n].id for n in which), sum(success), sum(now)
        rounds.append(RetryRound(ids=ids, took_before=before, took_after=after, helped=after > before))
        if not rounds[-1].helped:
            break
        targets, update, success = new_targets, new_update, now
    for one in rounds:
        note = f"{len(one.ids):,} targets found again: {one.took_before:,} edits succeeded, now {one.took_after:,}"
        job.progress.note(note if one.helped else f"{note}; this round was dropped")
    return RetryResult(targets, update, tuple(rounds))


def failed_edits(edits: Sequence[Edit], success: Sequence[bool], *, joint: bool) -> list[int]:
    """The numbers of the edits that failed, and of those that share a change with one: it must still serve them."""
    changes = changes_of(edits, joint=joint)
    failed = {change for change, succeeded in zip(changes, success, strict=True) if not succeeded}
    return [n for n, change in enumerate(changes) if change in failed]


def _success(job: EditRun, update: Update) -> list[bool]:
    """For each edit, whether it holds in the edited model."""
    weights = job.in_model(update.weights)
    with applied(job.lm, weights):
        ranks = job.ranks.edited(weights)
        return edits_hold(job.lm, job.requests, job.recipe.eval, chat=job.recipe.chat, ranks=ranks)


def _search_again(
    job: EditRun,
    run: Store,
    contexts: Contexts,
    moments: MomentPlan,
    targets: Targets,
    engine: SearchEngine,
    update: Update,
    which: Sequence[int],
) -> Targets:
    """All targets, those of the edits `which` found again on the edited weights, or read from the run folder."""
    edits = [job.plan.edits[n] for n in which]
    prompts = searched_prompts([contexts.prompts[n] for n in which], job.recipe)
    layers, base, weights = job.plan.layers, job.in_model(job.stored), job.in_model(update.weights)
    search = Search(job.lm, edits, prompts, layers[-1], job.recipe, len(layers), base)
    # Targets and moments determine the edited weights: the recipe and the edits are those of the run folder.
    on: dict[str, Any] = {"contexts": list(contexts.texts), "layer": search.layer, "engine": engine.kind.__name__}
    on |= {"which": list(which), "moments": digest_of({str(layer): inputs for layer, inputs in moments.on.items()})}
    on |= {"wanted": hashlib.sha256(targets.wanted.contiguous().numpy().tobytes()).hexdigest()}
    with job.timed("redo", len(edits), "edits") as advance, applied(job.lm, weights):
        found = search.run(run, on, engine.kind, advance, ranks=job.ranks.edited(weights))
    rows = torch.tensor(which)
    return Targets(**{name: kept.index_copy(0, rows, getattr(found, name)) for name, kept in vars(targets).items()})
