"""Edits after edits: what a run starts from where its model was edited before, and tells so in a ledger.

There are two ways to go on. re-solve: the base is opened, and all edits in force are solved anew, with the targets that
the ledger kept; what comes of it follows from the set of edits and their targets, not from their history. Sums of an
earlier solve are never used again, since above the first edited layer every key depends on every edit. on top: the
edited weights are the new base, and the earlier edits go through the solve as rows that ask for nothing. That is what
is published as sequential editing: rows with no residual add K^T K / ridge to the metric, and nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memedit.config.layers import layer_range, layers_text
from memedit.config.recipe import Recipe
from memedit.config.resolve import flatten, resolve
from memedit.editing.ledger import History, Ledger, MergedEdits, Mode, merge_edits
from memedit.editing.ledger_files import read_ledger
from memedit.edits.edit import EditRequest, Finding, shown
from memedit.edits.lint import lint
from memedit.errors import RecipeError, UsageError
from memedit.model.load import at_hand, locate
from memedit.progress import Progress
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.writer import write_checkpoint

BY_CONTENT = "moments.corpus"
"""The knob whose value is a place: what was read there is compared, not its name."""


@dataclass(frozen=True)
class RunStart:
    """What a run is about: all edits that shall hold, the earlier ones first, and the model that is to be opened."""

    requests: tuple[EditRequest, ...]
    recipe: Recipe
    findings: tuple[Finding, ...] = ()
    history: History = field(default_factory=History)
    base: Checkpoint | None = None
    """That model's files, where they were looked into already: their digest takes a reading of them all."""


def start_run(
    requests: Sequence[EditRequest],
    recipe: Recipe,
    findings: Sequence[Finding] = (),
    *,
    sources: Mapping[str, str] | None = None,
    way: Mode | None = None,
    base: str | None = None,
) -> RunStart:
    """The start of a run of new edits. `sources` tell which knobs were asked for; `base` says where the base lies.

    Raises UsageError where there is no way to go on, or a knob that was asked for contradicts the ledger.
    """
    folder = locate(recipe.model)
    ledger = read_ledger(folder)
    if ledger is None:
        if way or base:
            raise UsageError(
                f"{folder} has no ledger: it is no edited model, and edits of it begin a new one",
                "leave out --re-solve, --on-top and --base, or give an edited model with its ledger",
            )
        return RunStart(tuple(requests), recipe, tuple(findings))
    settled = _settled(recipe, sources or {}, ledger)
    opened, way, files = _opened(settled, ledger, folder, way, base)
    if any(finding.severity == "error" for finding in (*findings, *lint(requests))):
        return RunStart(tuple(requests), opened, tuple(findings))  # refused with all that is wrong, as any list
    old = [ledger.entries[n].edit for n in ledger.active]
    found = merge_edits(old, requests)
    given_way = {was.digest for _, was in found.replaced}
    stay = [n for n in ledger.active if ledger.entries[n].digest not in given_way]
    told = merge_findings(found)
    conflicts = tuple(finding for finding in told if finding.code == "W230")
    history = History(ledger, way, tuple(stay), conflicts, tuple(request for request, _ in found.twins))
    both = (*(ledger.entries[n].edit for n in stay), *found.requests)
    return RunStart(both, opened, (*findings, *told), history, files)


def start_forget(
    ids: Sequence[str], recipe: Recipe, *, sources: Mapping[str, str] | None = None, base: str | None = None
) -> RunStart:
    """The start of a run that solves the edits of an edited model anew but for some. No requests: none are left.

    Raises UsageError for an id that the ledger does not have, or where the base is not at hand.
    """
    folder = locate(recipe.model)
    ledger = read_ledger(folder)
    if ledger is None:
        raise UsageError(f"{folder} has no ledger, so it tells of no edit to forget", "give a model that apply wrote")
    known = {entry.edit.id for entry in ledger.entries}
    if missing := [name for name in ids if name not in known]:
        near = difflib.get_close_matches(missing[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else "memedit/ledger.jsonl in it lists its edits"
        raise UsageError(f"the ledger of {folder} has no edit {shown(missing[0])}", hint)
    opened, way, files = _opened(_settled(recipe, sources or {}, ledger), ledger, folder, "re-solve", base)
    left = ledger.without(set(ids))
    edits = [left.entries[n].edit for n in left.active]
    were = {ledger.entries[n].digest for n in ledger.active}
    back = tuple(edit.finding("W230", "it holds again") for edit in edits if edit.digest not in were)
    return RunStart(tuple(edits), opened, (), History(left, way, tuple(left.active), back, command="forget"), files)


def write_base(start: RunStart, progress: Progress) -> str:
    """Write the model of a start as it is to its output: that folder's path."""
    knobs = start.recipe.output
    if knobs.dir is None:
        raise UsageError("no output folder was given", "say where to: -o OUT")
    base = start.base or Checkpoint.open(locate(start.recipe.model))
    with progress.phase("write"):
        out = Path(knobs.dir).expanduser()
        write_checkpoint(
            base, out, {}, {}, link=knobs.link, overwrite=knobs.overwrite, force=knobs.force, note=progress.note
        )
    return knobs.dir


def merge_findings(found: MergedEdits) -> list[Finding]:
    """What people should know of how new edits join those in force; both origins stand in each line."""
    return [
        *(
            now.finding("W230", f"the object {shown(now.object)} takes the place of {shown(was.object)}, as edited "
                        f"at {was.origin} (edit {shown(was.id)}): the later wins")
            for now, was in found.replaced
        ),
        *(now.finding("W201", f"the same subject, prompt and object as at {was.origin}, which is in force")
          for now, was in found.twins),
        *(was.finding("W231", f"an edit in force has this id; here it is {shown(now.id)}")
          for was, now in found.renamed),
    ]  # fmt: skip


def _settled(recipe: Recipe, sources: Mapping[str, str], ledger: Ledger) -> Recipe:
    """A recipe with the ledger's knobs. Raises RecipeError where one was asked for that is another there."""
    mine, kept = flatten(recipe.model_dump(mode="json")), ledger.about.knobs
    asked = [name for name in kept if sources.get(name, "default") != "default"]
    others = [name for name in asked if name != BY_CONTENT and not _same(name, mine[name], ledger)]
    if others:
        said = "; ".join(f"{name} = {mine[name]!r} ({sources[name]}), there {kept[name]!r}" for name in others)
        hint = "leave these out; for other knobs edit the base anew, with memedit/edits.jsonl and the new list"
        raise RecipeError(f"the ledger's edits were made with other knobs: {said}", hint)
    corpus = {BY_CONTENT: mine[BY_CONTENT]} if BY_CONTENT in asked else {}
    layers = {"method.layers": layers_text(ledger.about.layers)}
    return resolve([("file", {**mine, **kept, **corpus, **layers})])[0]


def _same(name: str, value: Any, ledger: Ledger) -> bool:
    kept = ledger.about.knobs[name]
    if name == "method.layers" and value not in (kept, "depth", "auto"):
        return layer_range(value, max(ledger.about.layers[-1] + 1, 10_000)) == list(ledger.about.layers)
    return value == kept


def _opened(
    recipe: Recipe, ledger: Ledger, folder: Path, way: Mode | None, base: str | None
) -> tuple[Recipe, Mode, Checkpoint | None]:
    """The recipe with the model that is to be opened, the way to go on, and that model's files if they were read."""
    if way == "on top":
        if base:
            raise UsageError("--base is where a re-solve begins, and --on-top opens no base", "leave one of them out")
        return recipe, way, None
    about = ledger.about.base
    knobs = recipe.model.model_copy(update={"path": base or about.path, "revision": None if base else about.revision})
    place = locate(knobs) if base else at_hand(knobs)
    if place is not None:
        files = Checkpoint.open(place)
        if files.digest == about.digest:
            return recipe.model_copy(update={"model": knobs}), "re-solve", files
        if base:
            ours, theirs = files.digest[:12], about.digest[:12]
            raise UsageError(
                f"{base} is not the base of {folder}: its digest is {ours}, the ledger has {theirs}",
                "give the model that the first edit was made on, as it was",
            )
    lost = f"{about.path}, the base of {folder}, " + ("has changed" if place else "is not at hand")
    raise UsageError(
        lost, "say where it is: --base PATH, to solve all edits anew; or --on-top, to edit the edited weights"
        if way is None else "say where it is: --base PATH",
    )  # fmt: skip
