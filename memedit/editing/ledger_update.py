"""A run's targets and verdicts against the ledger's: what need not be found again, and what is entered at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memedit.config.recipe import Recipe
from memedit.editing.batches import changes_of
from memedit.editing.ledger import About, Base, Entry, Found, Ledger, Past, deciding, extended
from memedit.editing.plan import Edit
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.evaluation.figures import figure
from memedit.evaluation.forced import Judgment
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


def kept_rows(past: Past, edits: Sequence[Edit], groups: Sequence[str], on: str) -> dict[int, int]:
    """The edits whose target the ledger has, each with its row there.

    A target holds as long as the edits that it serves are those in force; for a re-solve it must have been found on
    the base, whose digest is `on`.
    """
    if past.ledger is None:
        return {}
    rows = {past.ledger.entries[row].digest: row for row in past.earlier}
    found: dict[int, int] = {}
    for n, (edit, group) in enumerate(zip(edits, groups, strict=True)):
        row = rows.get(edit.request.digest)
        entry = None if row is None else past.ledger.entries[row]
        if row is not None and entry and entry.group == group and (past.way == "on top" or entry.on == on):
            found[n] = row
    return found


def filled(past: Past, kept: Mapping[int, int], found: Targets | None, n_edits: int, width: int) -> Targets:
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
        assert past.ledger is not None
        whole.wanted[n] = past.ledger.targets[row]
        whole.loss[n], whole.steps[n] = past.ledger.entries[row].loss, past.ledger.entries[row].steps
    return whole


def entered(
    past: Past,
    about: About,
    edits: Sequence[Edit],
    groups: Sequence[str],
    kept: Mapping[int, int],
    targets: Targets,
    after: Sequence[Judgment],
    on: str,
    rounds: Sequence[RedoRound] = (),
) -> Ledger:
    """The ledger after a run on the model with digest `on`, which found the targets that are not `kept`, and those of
    the rounds of redo that helped. (These were found with all changes in place, and are for a solve from that model.)
    """
    entries, shared = list[Entry](), Counter(groups)
    redone = {name for one in rounds if one.helped for name in one.ids}
    for n, (edit, group) in enumerate(zip(edits, groups, strict=True)):
        holds = after[n].accuracy == 1
        again = edit.request.id in redone
        way: Found = "redone" if again else "joint" if shared[group] > 1 else "searched"
        made: dict[str, Any] = {"found": way, "on": on, "group": group}
        made |= {"loss": float(targets.loss[n]), "steps": int(targets.steps[n])}
        if past.ledger is not None and n < len(past.earlier):
            old = past.ledger.entries[past.earlier[n]]
            entries.append(old.model_copy(update={"holds": holds, **({} if n in kept and not again else made)}))
        else:
            entries.append(Entry(edit=edit.request, digest=edit.request.digest, took=holds, holds=holds, **made))
    return extended(past.ledger, about, entries, targets.wanted, past.earlier)


def results_of(
    requests: Sequence[EditRequest],
    before: Sequence[Judgment],
    after: Sequence[Judgment],
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


def told(past: Past, groups: Sequence[str], kept: Mapping[int, int]) -> LedgerReport | None:
    """How a run stood to the ledger; None where there was none."""
    if past.ledger is None or past.way is None:
        return None
    rest, shared = [group for n, group in enumerate(groups) if n not in kept], Counter(groups)
    return LedgerReport(
        way=past.way,
        earlier=len(past.earlier),
        new=len(groups) - len(past.earlier),
        replaced=len(past.ledger.in_force) - len(past.earlier),
        twins=len(past.twins),
        kept=len(kept),
        searched=len(rest),
        joint=sum(shared[group] > 1 for group in rest),
        conflicts=tuple(finding.line for finding in past.conflicts),
    )


def retained(
    past: Past, before: Sequence[Judgment], after: Sequence[Judgment]
) -> tuple[dict[str, Figure | None], Figure | None]:
    """Of the earlier edits, the share that holds now: of those that held right before, and of those that ever took.

    A re-solve does not open the model as it was right before: what was written down with it is what it said.
    """
    if past.ledger is None:
        return {}, None
    entries = [past.ledger.entries[row] for row in past.earlier]
    were = [one.accuracy == 1 for one in before] if past.way == "on top" else [bool(one.holds) for one in entries]
    now = [float(one.accuracy == 1) for one in after]
    held = [now[n] for n in range(len(entries)) if were[n]]
    took = [now[n] for n, entry in enumerate(entries) if entry.took]
    return {"earlier": figure(held)}, figure(took)


def about_of(
    past: Past, recipe: Recipe, digest: str, layers: tuple[int, ...], contexts: Sequence[str], on: MomentInputs
) -> About:
    """What the edits of a run have in common: on top, all that the ledger says of them; else with the base as it was
    opened, which has this digest."""
    if past.ledger is not None and past.way == "on top":
        return past.ledger.about
    model, folder = recipe.model, Path(recipe.model.path).expanduser()
    base = Base(path=str(folder.resolve()) if folder.is_dir() else model.path, revision=model.revision, digest=digest)
    knobs = deciding(recipe)
    if past.ledger is not None:
        knobs["method.layers"] = past.ledger.about.knobs["method.layers"]
    return About(base=base, contexts=tuple(contexts), knobs=knobs, layers=layers, moments=_texts(on))


def check_moments(past: Past, on: MomentInputs) -> None:
    """Raises UsageError where a re-solve would weigh edits by another text than the ledger's edits were weighed by."""
    if past.ledger is not None and past.way == "re-solve" and past.ledger.about.moments != _texts(on):
        corpus = past.ledger.about.knobs.get("moments.corpus") or "the model's own"
        raise UsageError(
            f"the moments at hand are not those that the ledger's edits were solved with (text: {corpus})",
            "say --corpus with that text, or memedit stats --import where they were imported",
        )


def _texts(on: MomentInputs) -> str:
    """A digest of what moments were measured on, layer by layer."""
    return digest_of({str(layer): {name: one[name] for name in READ if name in one} for layer, one in on.items()})
