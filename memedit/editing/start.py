"""Sequential editing: where a run starts if its model was edited before.

The ledger in a model's folder lists its edits. There are two modes. Re-solve: open the base and solve all active edits
again, with the targets that the ledger kept. The result then depends on the set of edits and their targets, not on
their order. Sums of an earlier solve cannot be reused: above the first edited layer every key depends on every edit.
On top: the edited weights are the new base, and the earlier edits go through the solve as rows with no residual. Such
rows add K^T K / ridge to the metric and nothing else; this is what is published as sequential editing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memedit.config.layers import layer_range, layers_text
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.config.resolve import flatten, resolve
from memedit.editing.ledger import History, Ledger, MergedEdits, Mode, merge_edits
from memedit.editing.ledger_files import read_ledger
from memedit.edits.edit import EditRequest, Finding, shown
from memedit.edits.lint import beside_text, lint
from memedit.errors import RecipeError, UsageError
from memedit.model.load import at_hand, locate, read_config
from memedit.progress import Progress
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.writer import write_checkpoint

BY_CONTENT = "moments.corpus"
"""This setting is a path: two runs agree if the text is the same, whatever its name."""


@dataclass(frozen=True)
class RunStart:
    """What a run edits: the model to open, and all edits that will be active, the earlier ones first."""

    requests: tuple[EditRequest, ...]
    recipe: Recipe
    findings: tuple[Finding, ...] = ()
    history: History = field(default_factory=History)
    base: Checkpoint | None = None
    """The files of that model, if they were read already: their digest takes a pass over all of them."""
    preset: str | None = None
    """The name of the preset that the recipe's settings came from."""


def start_run(
    requests: Sequence[EditRequest],
    recipe: Recipe,
    findings: Sequence[Finding] = (),
    *,
    sources: Mapping[str, str] | None = None,
    mode: Mode | None = None,
    base: str | None = None,
) -> RunStart:
    """Prepare a run of new edits.

    `sources` has the source of each setting; one that the user gave must agree with the ledger. `base` is the folder of
    the base, if it was moved. Raises UsageError if the run cannot start, RecipeError if a setting contradicts the
    ledger, StorageError if the ledger is damaged.
    """
    folder = locate(recipe.model)
    ledger = read_ledger(folder)
    if ledger is None:
        if mode or base:
            raise UsageError(
                f"{folder} has no ledger: it was not edited by memedit, so there are no earlier edits",
                "leave out --re-solve, --on-top and --base, or give an edited model with its ledger",
            )
        return RunStart(tuple(requests), recipe, tuple(findings))
    settled = _with_ledger_settings(recipe, sources or {}, ledger)
    opened, mode, files = _choose_model(settled, ledger, folder, mode, base)
    if any(finding.severity == "error" for finding in (*findings, *lint(requests))):
        # The plan refuses the list with all its errors at once.
        return RunStart(tuple(requests), opened, tuple(findings))
    old = [ledger.entries[n].edit for n in ledger.active]
    merged = merge_edits(old, requests, [one.edit for one in ledger.entries if one.superseded_by is not None])
    replaced = {was.digest for _, was in merged.replaced}
    earlier = [n for n in ledger.active if ledger.entries[n].digest not in replaced]
    notes = merge_findings(merged)
    conflicts = tuple(finding for finding in notes if finding.code == "W230")
    history = History(ledger, mode, tuple(earlier), conflicts, tuple(request for request, _ in merged.duplicates))
    both = (*(ledger.entries[n].edit for n in earlier), *merged.requests)
    return RunStart(both, opened, (*findings, *notes), history, files)


def start_forget(
    ids: Sequence[str], recipe: Recipe, *, sources: Mapping[str, str] | None = None, base: str | None = None
) -> RunStart:
    """Prepare a re-solve of an edited model without the edits of these ids. No requests: none are left.

    Raises UsageError for an id that the ledger does not have, or if the base is not found.
    """
    folder = locate(recipe.model)
    ledger = read_ledger(folder)
    if ledger is None:
        raise UsageError(f"{folder} has no ledger, so it has no edits to forget", "give a model that apply wrote")
    known = {entry.edit.id for entry in ledger.entries}
    if missing := [name for name in ids if name not in known]:
        near = difflib.get_close_matches(missing[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else "memedit/ledger.jsonl in it lists its edits"
        raise UsageError(f"the ledger of {folder} has no edit {shown(missing[0])}", hint)
    settled = _with_ledger_settings(recipe, sources or {}, ledger)
    opened, mode, files = _choose_model(settled, ledger, folder, "re-solve", base)
    left = ledger.without(set(ids))
    edits = [left.entries[n].edit for n in left.active]
    were = {ledger.entries[n].digest for n in ledger.active}
    back = tuple(edit.finding("W230", "it is active again") for edit in edits if edit.digest not in were)
    return RunStart(tuple(edits), opened, (), History(left, mode, tuple(left.active), back, command="forget"), files)


def write_base(start: RunStart, progress: Progress) -> str:
    """Copy the model of a start to its output folder, unchanged; return that folder's path."""
    knobs = start.recipe.output
    if knobs.dir is None:
        raise UsageError("no output folder was given", "name one: -o OUT")
    base = start.base or Checkpoint.open(locate(start.recipe.model))
    with progress.phase("write"):
        out = Path(knobs.dir).expanduser()
        write_checkpoint(
            base,
            out,
            {},
            {},
            link=knobs.link,
            keep_copies=knobs.keep_copies,
            overwrite=knobs.overwrite,
            force=knobs.force,
            note=progress.note,
        )
    return knobs.dir


def merge_findings(merged: MergedEdits) -> list[Finding]:
    """Report how new edits join the active ones; each line names both origins."""
    return [
        *(
            now.finding("W230", f"{beside_text(now, 'replaces', was)}, as edited "
                        f"at {was.origin} (edit {shown(was.id)}): the later edit wins")
            for now, was in merged.replaced
        ),
        *(now.finding("W201", f"the same subject, prompt and object as at {was.origin}, which is active")
          for now, was in merged.duplicates),
        *(was.finding("W231", f"an earlier edit has this id; here it is {shown(now.id)}")
          for was, now in merged.renamed),
    ]  # fmt: skip


def _with_ledger_settings(recipe: Recipe, sources: Mapping[str, str], ledger: Ledger) -> Recipe:
    """A recipe with the ledger's settings (`read_ledger` let only deciding ones pass).

    Raises RecipeError if the user gave one of them another value.
    """
    mine, kept = flatten(recipe.model_dump(mode="json")), ledger.about.knobs
    given = [name for name in kept if sources.get(name, "default") != "default"]
    differing = [name for name in given if name != BY_CONTENT and not _agrees(name, mine[name], ledger)]
    if differing:
        pairs = "; ".join(f"{name} = {mine[name]!r} ({sources[name]}), there {kept[name]!r}" for name in differing)
        hint = "leave these out; for other settings edit the base, with memedit/edits.jsonl and the new list"
        raise RecipeError(f"the ledger's edits were made with other settings: {pairs}", hint)
    corpus = {BY_CONTENT: mine[BY_CONTENT]} if BY_CONTENT in given else {}
    layers = {"method.layers": layers_text(ledger.about.layers)}
    return resolve([("file", {**mine, **kept, **corpus, **layers})])[0]


def _agrees(name: str, value: Any, ledger: Ledger) -> bool:
    kept = ledger.about.knobs[name]
    if name == "method.layers" and value not in (kept, "depth", "published", "auto"):
        return layer_range(value, max(ledger.about.layers[-1] + 1, 10_000)) == list(ledger.about.layers)
    return value == kept


def _choose_model(
    recipe: Recipe, ledger: Ledger, folder: Path, mode: Mode | None, base: str | None
) -> tuple[Recipe, Mode, Checkpoint | None]:
    """The recipe with the model to open, the mode, and that model's files if they were read.

    Without `base` the ledger says where to look for the base, and its digest decides. It is looked for on this machine
    only: nothing is fetched because a ledger names it.
    """
    if mode == "on top":
        if base:
            raise UsageError("--base is for a re-solve, and --on-top opens no base", "leave one of them out")
        return recipe, mode, None
    identity = ledger.about.base
    revision = None if base else identity.revision
    knobs = recipe.model.model_copy(update={"path": base or identity.path, "revision": revision})
    place = locate(knobs) if base else at_hand(knobs)
    if place is not None:
        files = Checkpoint.open(place)
        if files.has_digest(identity.digest):
            knobs = knobs if base else _without_trust(knobs, place)
            return recipe.model_copy(update={"model": knobs}), "re-solve", files
        if base:
            ours, theirs = files.digest[:12], identity.digest[:12]
            raise UsageError(
                f"{base} is not the base of {folder}: its digest is {ours}, the ledger has {theirs}",
                "give the model that the first edit was made on, unchanged",
            )
    lost = f"{identity.path}, the base of {folder}, " + ("has changed" if place else "is not on this machine")
    raise UsageError(
        lost, "say where it is: --base PATH, to solve all edits again; or --on-top, to edit the edited weights"
        if mode is None else "say where it is: --base PATH",
    )  # fmt: skip


def _without_trust(knobs: ModelKnobs, place: Path) -> ModelKnobs:
    """Drop trust_remote_code: the user gave it for the folder that they named, and a ledger named this one.

    Raises UsageError if the base needs Python code of its own.
    """
    if knobs.trust_remote_code and "auto_map" in read_config(place, trust_remote_code=True):
        raise UsageError(
            f"the ledger names the base {place}, which brings Python code of its own",
            f"read that code; if you trust it, name the base yourself: --base {place}",
        )
    return knobs.model_copy(update={"trust_remote_code": False})
