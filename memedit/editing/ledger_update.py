"""A run's targets and verdicts against the ledger's: what need not be found again, and what is entered at the end."""

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
from memedit.editing.plan import Edit
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.evaluation.figures import share_figure
from memedit.evaluation.forced import EditScores
from memedit.results.report import EditResult, Figure, LedgerReport, RedoRound
from memedit.storage.artifacts import digest_of

MomentInputs = Mapping[int, Mapping[str, Any]]
READ = ("tokens", "row", "corpus", "imported")
"""Of what a moment depends on, what says which text was read, and how far."""


def groups_of(edits: Sequence[Edit], *, joint: bool) -> list[str]:
    """For each edit, a digest of the edits that its target has to serve: those of its subject, or it alone."""
    changes = changes_of(edits, joint=joint)
    members: dict[int, list[str]] = {}
    for change, edit in zip(changes, edits, strict=True):
        members.setdefault(change, []).append(edit.request.digest)
    digests = {change: digest_of(sorted(mine)) for change, mine in members.items()}
    return [digests[change] for change in changes]


def reusable_rows(history: History, edits: Sequence[Edit], groups: Sequence[str], on: str) -> dict[int, int]:
    """The edits whose target the ledger has, each with its row there.

    A target holds as long as the edits that it serves are those in force; for a re-solve it must have been found on
    the base, whose digest is `on`.
    """
    if history.ledger is None:
        return {}
    rows = {history.ledger.entries[row].digest: row for row in history.earlier}
    found: dict[int, int] = {}
    for n, (edit, group) in enumerate(zip(edits, groups, strict=True)):
        row = rows.get(edit.request.digest)
        entry = None if row is None else history.ledger.entries[row]
        if row is not None and entry and entry.group == group and (history.way == "on top" or entry.on == on):
            found[n] = row
    return found


def merge_targets(
    history: History, kept: Mapping[int, int], found: Targets | None, n_edits: int, width: int
) -> Targets:
    """The targets of all edits: those `kept` from the ledger, which does not tell their start, the others as found."""
    whole = Targets(
        torch.empty(n_edits, width),
        torch.full((n_edits, width), torch.nan),
        torch.empty(n_edits),
        torch.empty(n_edits, dtype=torch.long),
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
    rounds: Sequence[RedoRound] = (),
) -> Ledger:
    """The ledger after a run on the model with digest `on`, which found the targets that are not `kept`, and those of
    the rounds of redo that helped. (These were found with all changes in place, and are for a solve from that model.)
    """
    entries, shared = list[LedgerEntry](), Counter(groups)
    redone = {name for one in rounds if one.helped for name in one.ids}
    for n, (edit, group) in enumerate(zip(edits, groups, strict=True)):
        holds = after[n].accuracy == 1
        again = edit.request.id in redone
        way: FoundBy = "redone" if again else "joint" if shared[group] > 1 else "searched"
        made: dict[str, Any] = {"found": way, "on": on, "group": group}
        made |= {"loss": float(targets.loss[n]), "steps": int(targets.steps[n])}
        if history.ledger is not None and n < len(history.earlier):
            old = history.ledger.entries[history.earlier[n]]
            entries.append(old.model_copy(update={"holds": holds, **({} if n in kept and not again else made)}))
        else:
            entries.append(LedgerEntry(edit=edit.request, digest=edit.request.digest, took=holds, holds=holds, **made))
    return extend_ledger(history.ledger, about, entries, targets.wanted, history.earlier)


def edit_results(
    requests: Sequence[EditRequest],
    before: Sequence[EditScores],
    after: Sequence[EditScores],
    targets: Targets,
    skipped: Sequence[EditRequest],
    rounds: Sequence[RedoRound] = (),
) -> tuple[EditResult, ...]:
    """What became of each edit, and of those that were not tried."""
    redone = {name: number for number, one in enumerate(rounds, start=1) if one.helped for name in one.ids}
    found = [
        EditResult(
            id=request.id,
            status="ok" if now.accuracy == 1 else "failed",
            reason=None if now.accuracy == 1 else "the model does not say the object",
            edit=request.public(),
            before=was.record(),
            after=now.record(),
            loss=float(loss),
            steps=int(steps),
            redone=redone.get(request.id),
        )
        for request, was, now, loss, steps in zip(requests, before, after, targets.loss, targets.steps, strict=True)
    ]
    twins = (
        EditResult(id=request.id, status="skipped", reason="an exact duplicate", edit=request.public())
        for request in skipped
    )
    return (*found, *twins)


def ledger_report(history: History, groups: Sequence[str], kept: Mapping[int, int]) -> LedgerReport | None:
    """How a run stood to the ledger; None where there was none."""
    if history.ledger is None or history.way is None:
        return None
    rest, shared = [group for n, group in enumerate(groups) if n not in kept], Counter(groups)
    return LedgerReport(
        way=history.way,
        earlier=len(history.earlier),
        new=len(groups) - len(history.earlier),
        replaced=len(history.ledger.active) - len(history.earlier),
        twins=len(history.twins),
        kept=len(kept),
        searched=len(rest),
        joint=sum(shared[group] > 1 for group in rest),
        conflicts=tuple(finding.line for finding in history.conflicts),
    )


def retained(
    history: History, before: Sequence[EditScores], after: Sequence[EditScores]
) -> tuple[dict[str, Figure | None], Figure | None]:
    """Of the earlier edits, the share that holds now: of those that held right before, and of those that ever took.

    A re-solve does not open the model as it was right before: what was written down with it is what it said.
    """
    if history.ledger is None:
        return {}, None
    entries = [history.ledger.entries[row] for row in history.earlier]
    were = [one.accuracy == 1 for one in before] if history.way == "on top" else [bool(one.holds) for one in entries]
    now = [float(one.accuracy == 1) for one in after]
    held = [now[n] for n in range(len(entries)) if were[n]]
    took = [now[n] for n, entry in enumerate(entries) if entry.took]
    return {"earlier": share_figure(held)}, share_figure(took)


def provenance_of(
    history: History, recipe: Recipe, digest: str, layers: tuple[int, ...], contexts: Sequence[str], on: MomentInputs
) -> Provenance:
    """What the edits of a run have in common: on top, all that the ledger says of them; else with the base as it was
    opened, which has this digest."""
    if history.ledger is not None and history.way == "on top":
        return history.ledger.about
    model, folder = recipe.model, Path(recipe.model.path).expanduser()
    base = BaseIdentity(
        path=str(folder.resolve()) if folder.is_dir() else model.path, revision=model.revision, digest=digest
    )
    knobs = deciding_settings(recipe)
    if history.ledger is not None:
        knobs["method.layers"] = history.ledger.about.knobs["method.layers"]
    return Provenance(base=base, contexts=tuple(contexts), knobs=knobs, layers=layers, moments=_texts(on))


def check_moments(history: History, on: MomentInputs) -> None:
    """Raises UsageError where a re-solve would weigh edits by another text than the ledger's edits were weighed by."""
    if history.ledger is not None and history.way == "re-solve" and history.ledger.about.moments != _texts(on):
        corpus = history.ledger.about.knobs.get("moments.corpus") or "the model's own"
        raise UsageError(
            f"the moments at hand are not those that the ledger's edits were solved with (text: {corpus})",
            "say --corpus with that text, or memedit stats --import where they were imported",
        )


def _texts(on: MomentInputs) -> str:
    """A digest of what moments were measured on, layer by layer."""
    return digest_of({str(layer): {name: one[name] for name in READ if name in one} for layer, one in on.items()})
