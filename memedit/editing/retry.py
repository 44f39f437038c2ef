"""Edits that did not take: their targets are found again on the edited model, and all is solved anew from the base.

A target is found with one edit in mind on a model that holds no other. Found again with all changes in place, it allows
for what they, and the solve, left of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memedit.editing.batches import changes_of
from memedit.editing.moment_cache import MomentPlan
from memedit.editing.plan import Edit, with_contexts
from memedit.editing.run import EditRun
from memedit.editing.solve import Update
from memedit.editing.target_search import Search
from memedit.editing.targets import Targets
from memedit.evaluation.forced import says_object
from memedit.forward.perturbed import WholeForward
from memedit.forward.suffix import Suffix
from memedit.model.weights import applied
from memedit.results.report import RedoRound
from memedit.storage.artifacts import Store, digest_of


@dataclass(frozen=True)
class RetryResult:
    """What the rounds left: targets, the update that is theirs, and a record of each round."""

    targets: Targets
    update: Update
    rounds: tuple[RedoRound, ...] = ()


def retry_failed(
    job: EditRun, run: Store, contexts: Sequence[str], moments: MomentPlan, targets: Targets, update: Update
) -> RetryResult:
    """Rounds of `target.redo`, until every edit takes or a round does not help.

    A round helps where more edits take than before. Of one that does not, nothing is kept, and the next would equal it.
    """
    rounds, again = list[RedoRound](), set[int]()
    took = _took(job, update) if job.recipe.target.redo else []
    while len(rounds) < job.recipe.target.redo and not all(took):
        which = failed_edits(job.plan.edits, took, joint=job.recipe.joint)
        sought = _sought(job, run, contexts, moments, targets, update, which)
        again |= set(which)
        made = job.update(contexts, moments, sought, again)
        now = _took(job, made)
        ids = tuple(job.requests[n].id for n in which)
        rounds.append(RedoRound(ids=ids, took_before=sum(took), took_after=sum(now), helped=sum(now) > sum(took)))
        if not rounds[-1].helped:
            break
        targets, update, took = sought, made, now
    for one in rounds:
        said = f"{len(one.ids):,} targets found again: {one.took_before:,} edits took, then {one.took_after:,}"
        job.progress.note(said if one.helped else f"{said}; the round was not kept")
    return RetryResult(targets, update, tuple(rounds))


def failed_edits(edits: Sequence[Edit], took: Sequence[bool], *, joint: bool) -> list[int]:
    """Which edits did not take, and which share a change with one of them: it has to serve those still."""
    changes = changes_of(edits, joint=joint)
    failed = {change for change, is_said in zip(changes, took, strict=True) if not is_said}
    return [n for n, change in enumerate(changes) if change in failed]


def _took(job: EditRun, update: Update) -> list[bool]:
    """For each edit, whether the edited model says the object."""
    with applied(job.lm, job.weights(update)):
        return says_object(job.lm, job.requests, chat=job.recipe.chat)


def _sought(
    job: EditRun,
    run: Store,
    contexts: Sequence[str],
    moments: MomentPlan,
    targets: Targets,
    update: Update,
    which: Sequence[int],
) -> Targets:
    """The targets, those of the edits `which` found on the edited weights; recalled where the run folder has them."""
    edits = [job.plan.edits[n] for n in which]
    prompts = [with_contexts(edit, contexts, job.lm.tokenizer, chat=job.recipe.chat) for edit in edits]
    search = Search(job.lm, edits, prompts, job.plan.layers[-1], job.recipe, len(job.plan.layers))
    engine = Suffix if job.splices else WholeForward
    # The edited weights follow from the targets and the moments, the recipe and the edits being the run's own.
    on: dict[str, Any] = {"contexts": list(contexts), "layer": search.layer, "engine": engine.__name__}
    on |= {"which": list(which), "moments": digest_of({str(layer): made_of for layer, made_of in moments.on.items()})}
    on |= {"wanted": hashlib.sha256(targets.wanted.contiguous().numpy().tobytes()).hexdigest()}
    with job.timed("redo", len(edits), "edits") as advance, applied(job.lm, job.weights(update)):
        found = search.run(run, on, engine, advance)
    rows = torch.tensor(which)
    return Targets(**{name: kept.index_copy(0, rows, getattr(found, name)) for name, kept in vars(targets).items()})
