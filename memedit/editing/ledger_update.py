"""Reuse ledger targets in a run, and update the ledger after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memedit.config.recipe import Recipe
from memedit.editing.batches import changes_of
from memedit.editing.ledger import (
    BaseIdentity,
    FoundBy,
    History,
    Ledger,
    LedgerEntry,
    Provenance,
    deciding_settings,
    extend_ledger,
)
from memedit.editing.moment_cache import digest_of_texts
from memedit.editing.plan import Edit
from memedit.editing.targets import UNKNOWN, Targets
from memedit.edits.edit import EditRequest
from memedit.errors import StorageError, UsageError
from memedit.evaluation.figures import share_figure
from memedit.evaluation.forced import EditScores
from memedit.results.report import EditResult, Figure, LedgerReport, RetryRound
from memedit.storage.artifacts import digest_of

MomentInputs = Mapping[int, Mapping[str, Any]]
STILL_SAID = "the model still says the old object"


def groups_of(edits: Sequence[Edit], *, joint: bool) -> list[str]:
    """For each edit, a digest of the edits that share its target: those of its subject, or the edit alone."""
    changes = changes_of(edits, joint=joint)
    members: dict[int, list[str]] = {}
    for change, edit in zip(changes, edits, strict=True):
        members.setdefault(change, []).append(edit.request.digest)
    digests = {change: digest_of(sorted(mine)) for change, mine in members.items()}
    return [digests[change] for change in changes]


def reusable_rows(history: History, edits: Sequence[Edit], groups: Sequence[str], on: str) -> dict[int, int]:
    """Find the edits whose target the ledger has: {number of the edit: row in the ledger}.

    A target can be reused while exactly the edits that it serves are active. For a re-solve it must also have been
    found on the base, whose digest is `on`.
    """
    if history.ledger is None:
        return {}
    rows = {history.ledger.entries[row].digest: row for row in history.earlier}
    found: dict[int, int] = {}
    for n, (edit, group) in enumerate(zip(edits, groups, strict=True)):
        row = rows.get(edit.request.digest)
        entry = None if row is None else history.ledger.entries[row]
        if row is not None and entry and entry.group == group and (history.mode == "on top" or entry.on == on):
            found[n] = row
    return found


def check_width(ledger: Ledger | None, width: int) -> None:
    """Raises StorageError if the ledger's targets are not states of this model, which has `width` numbers in each."""
    if ledger is not None and ledger.targets.shape[1] != width:
        raise StorageError(
            f"the rows of {ledger.file or 'the ledger'} have {ledger.targets.shape[1]:,} numbers, "
            f"and the states of the model have {width:,}",
            "copy both files of the ledger again from the model that it was written with",
        )


def merge_targets(
    history: History, kept: Mapping[int, int], found: Targets | None, n_edits: int, width: int
) -> Targets:
    """Join the targets `kept` from the ledger, whose start is not known (NaN), and those `found` in this run."""
    whole = Targets(
        torch.empty(n_edits, width),
        torch.full((n_edits, width), torch.nan),
        torch.empty(n_edits),
        torch.empty(n_edits, dtype=torch.long),
        torch.full((n_edits,), UNKNOWN),
    )
    rest = [n for n in range(n_edits) if n not in kept]
    if found is not None:
        for name, part in vars(found).items():
            getattr(whole, name)[rest] = part
    for n, row in kept.items():
        assert history.ledger is not None
        whole.wanted[n] = history.ledger.targets[row]
        whole.loss[n], whole.steps[n] = history.ledger.entries[row].loss, history.ledger.entries[row].steps
    return whole


def updated_ledger(
    history: History,
    about: Provenance,
    edits: Sequence[Edit],
    groups: Sequence[str],
    kept: Mapping[int, int],
    targets: Targets,
    after: Sequence[EditScores],
    on: str,
    rounds: Sequence[RetryRound] = (),
) -> Ledger:
    """Make the ledger of the edited model, after a run on the model with digest `on`.

    The run found the targets that are not `kept`, and those of the retry rounds that helped. The latter were found with
    all changes in place, and are for a solve from that model.
    """
    entries, shared = list[LedgerEntry](), Counter(groups)
    retried = {name for one in rounds if one.helped for name in one.ids}
    for n, (edit, group) in enumerate(zip(edits, groups, strict=True)):
        holds = after[n].holds
        again = edit.request.id in retried
        found_by: FoundBy = "redone" if again else "joint" if shared[group] > 1 else "searched"
        search: dict[str, Any] = {"found": found_by, "on": on, "group": group}
        search |= {"loss": float(targets.loss[n]), "steps": int(targets.steps[n])}
        if history.ledger is not None and n < len(history.earlier):
            old = history.ledger.entries[history.earlier[n]]
            entries.append(old.model_copy(update={"holds": holds, **({} if n in kept and not again else search)}))
        else:
            entries.append(
                LedgerEntry(edit=edit.request, digest=edit.request.digest, took=holds, holds=holds, **search)
            )
    return extend_ledger(history.ledger, about, entries, targets.wanted, history.earlier)


def edit_results(
    requests: Sequence[EditRequest],
    before: Sequence[EditScores],
    after: Sequence[EditScores],
    targets: Targets,
    skipped: Sequence[EditRequest],
    rounds: Sequence[RetryRound] = (),
) -> tuple[EditResult, ...]:
    """The result of each edit, and of the duplicates that were skipped."""
    retried = {name: number for number, one in enumerate(rounds, start=1) if one.helped for name in one.ids}
    results = [
        EditResult(
            id=request.id,
            status="ok" if now.holds else "failed",
            reason=None if now.holds else STILL_SAID if request.remove else "the model does not say the object",
            edit=request.public(),
            before=was.record(),
            after=now.record(),
            said={when: one.said for when, one in (("before", was), ("after", now)) if one.said is not None},
            loss=float(loss),
            steps=int(steps),
            search=end,
            redone=retried.get(request.id),
        )
        for request, was, now, loss, steps, end in zip(
            requests, before, after, targets.loss, targets.steps, targets.ends(), strict=True
        )
    ]
    duplicates = (
        EditResult(id=request.id, status="skipped", reason="an exact duplicate", edit=request.public())
        for request in skipped
    )
    return (*results, *duplicates)


def ledger_report(history: History, groups: Sequence[str], kept: Mapping[int, int]) -> LedgerReport | None:
    """Count what a run reused of the ledger and added to it; None if there was no ledger."""
    if history.ledger is None or history.mode is None:
        return None
    rest, shared = [group for n, group in enumerate(groups) if n not in kept], Counter(groups)
    return LedgerReport(
        way=history.mode,
        earlier=len(history.earlier),
        new=len(groups) - len(history.earlier),
        replaced=len(history.ledger.active) - len(history.earlier),
        twins=len(history.duplicates),
        kept=len(kept),
        searched=len(rest),
        joint=sum(shared[group] > 1 for group in rest),
        conflicts=tuple(finding.line for finding in history.conflicts),
    )


def retained(
    history: History, before: Sequence[EditScores], after: Sequence[EditScores]
) -> tuple[dict[str, Figure | None], Figure | None]:
    """The share of earlier edits that hold now: of those that held before this run, and of those that ever succeeded.

    A re-solve opens the base and not the edited model, so what held before is read from the ledger.
    """
    if history.ledger is None:
        return {}, None
    entries = [history.ledger.entries[row] for row in history.earlier]
    were = [one.holds for one in before] if history.mode == "on top" else [bool(one.holds) for one in entries]
    now = [float(one.holds) for one in after]
    still = [now[n] for n in range(len(entries)) if were[n]]
    took = [now[n] for n, entry in enumerate(entries) if entry.took]
    return {"earlier": share_figure(still)}, share_figure(took)


def provenance_of(
    history: History, recipe: Recipe, digest: str, layers: tuple[int, ...], contexts: Sequence[str], on: MomentInputs
) -> Provenance:
    """The provenance of a run's edits: the ledger's own if on top, else with the base with this `digest`."""
    if history.ledger is not None and history.mode == "on top":
        return history.ledger.about
    model, folder = recipe.model, Path(recipe.model.path).expanduser()
    base = BaseIdentity(
        path=str(folder.resolve()) if folder.is_dir() else model.path, revision=model.revision, digest=digest
    )
    knobs = deciding_settings(recipe)
    if history.ledger is not None:
        knobs["method.layers"] = history.ledger.about.knobs["method.layers"]
    return Provenance(base=base, contexts=tuple(contexts), knobs=knobs, layers=layers, moments=digest_of_texts(on))


def check_moments(history: History, on: MomentInputs) -> None:
    """Check that a re-solve uses the second moments of the same text as the ledger's edits; else raise UsageError."""
    if history.ledger is None or history.mode != "re-solve":
        return
    if history.ledger.about.moments != digest_of_texts(on):
        corpus = history.ledger.about.knobs.get("moments.corpus") or "the model's own"
        raise UsageError(
            f"the second moments are not those that the ledger's edits were solved with (text: {corpus})",
            "give that text: --corpus FILE; or import them again: memedit stats --import FILE",
        )
