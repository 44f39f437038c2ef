"""The ledger of an edited model: its edits in order, and how each target was found. Records and set logic.

The list alone decides which edits are active: of edits that contradict each other, or say the same, the latest one.
Forgetting an edit removes it from the list as if it had never been made, so an edit that it had replaced is active
again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from memedit.config.recipe import Recipe
from memedit.config.resolve import deciding_names, flatten
from memedit.edits.edit import EditRequest, Finding

FoundBy = Literal["searched", "joint", "redone"]
Mode = Literal["re-solve", "on top"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LedgerEntry(_Value):
    """One edit: line n of ledger.jsonl. Row n of ledger.safetensors is its target."""

    edit: EditRequest
    digest: str
    """Digest of the request, of all that decides what the edit does."""
    found: FoundBy
    """searched: the target serves this edit alone; joint: all edits of its subject; redone: found again in a retry."""
    on: str
    """Digest of the model that the target was found on."""
    group: str
    """Digest of the edits that the target serves; it can be reused while exactly these are active."""
    loss: float
    steps: int
    took: bool | None = None
    """Whether the model said the object right after the edit was made; of a removal, no longer the old object."""
    holds: bool | None = None
    """The same when this ledger was written."""
    superseded_by: int | None = None
    """Line of the edit that replaced it, counted from 1."""


class BaseIdentity(_Value):
    """The model before all edits."""

    path: str
    revision: str | None = None
    digest: str


class Provenance(_Value):
    """What all edits of a ledger share, and a solve depends on."""

    base: BaseIdentity
    contexts: tuple[str, ...]
    knobs: dict[str, Any]
    """The deciding settings of the recipe, by dotted name."""
    layers: tuple[int, ...]
    moments: str
    """Digest of the text that the second moments were measured on."""


@dataclass(frozen=True)
class Ledger:
    """The provenance of the edits, the edits in order, and their targets: (E, D) float32, one row for each entry."""

    about: Provenance
    entries: tuple[LedgerEntry, ...]
    targets: Tensor
    file: str = ""
    """The file that the targets were read from, for messages; empty for a ledger made by this run."""

    @property
    def active(self) -> list[int]:
        """Numbers of the entries that no other entry replaced."""
        return [n for n, entry in enumerate(self.entries) if entry.superseded_by is None]

    def without(self, ids: Collection[str]) -> Ledger:
        """The ledger as if the edits of these ids had never been made."""
        left = [n for n, entry in enumerate(self.entries) if entry.edit.id not in ids]
        return replace(self, entries=mark_superseded([self.entries[n] for n in left]), targets=self.targets[left])


@dataclass(frozen=True)
class History:
    """The ledger of earlier runs, and how this run continues from it; empty if the model was not edited before."""

    ledger: Ledger | None = None
    mode: Mode | None = None
    earlier: tuple[int, ...] = ()
    """Entries of the ledger that are active and stay active, by number."""
    conflicts: tuple[Finding, ...] = ()
    duplicates: tuple[EditRequest, ...] = ()
    """New edits that say the same as an active one."""
    command: str = "apply"


def find_superseded(requests: Sequence[EditRequest]) -> dict[int, int]:
    """Find the edits of a list that a later edit replaced: {number: number of the later edit}.

    An edit is replaced by the next one that answers one of its questions with another object, or that is a duplicate.
    """
    gone: dict[int, int] = {}
    asked: dict[tuple[str, ...], list[int]] = {}
    for n, request in enumerate(requests):
        for question in request.questions:
            rivals = [m for m in asked.get(question, []) if m not in gone]
            gone |= {m: n for m in rivals if request.contradicts(requests[m]) or requests[m].digest == request.digest}
            asked[question] = [*(m for m in rivals if m not in gone), n]
    return gone


def mark_superseded(entries: Sequence[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """Set `superseded_by` of each entry of a list in order; of active ones with the same id, the last one keeps it.

    Earlier versions could give the id of a replaced edit to another one: both are active once that is forgotten.
    """
    gone = find_superseded([entry.edit for entry in entries])
    marked, used, taken = list(entries), set[str](), {entry.edit.id for entry in entries}
    for n, entry in reversed(list(enumerate(entries))):
        line, edit = gone[n] + 1 if n in gone else None, entry.edit
        if line is None and edit.id in used:
            edit = edit.model_copy(update={"id": _free(edit.id, taken)})
        if line is None:
            used.add(edit.id)
        if edit is not entry.edit or line != entry.superseded_by:
            marked[n] = entry.model_copy(update={"edit": edit, "superseded_by": line})
    return tuple(marked)


@dataclass(frozen=True)
class MergedEdits:
    """New edits, compared with the active ones."""

    requests: tuple[EditRequest, ...]
    """The new edits: none is a duplicate of an active edit or has the id of one that can be active beside it."""
    replaced: tuple[tuple[EditRequest, EditRequest], ...] = ()
    """Pairs: a new edit, and the active edit that it replaces."""
    duplicates: tuple[tuple[EditRequest, EditRequest], ...] = ()
    """Pairs: a new edit, and the active edit that says the same."""
    renamed: tuple[tuple[EditRequest, EditRequest], ...] = ()
    """Pairs: a new edit with its own id, and with an id that is free."""


def merge_edits(
    old: Sequence[EditRequest], new: Sequence[EditRequest], inactive: Sequence[EditRequest] = ()
) -> MergedEdits:
    """Add new edits to the active ones: the later edit wins. Neither list may contradict itself.

    inactive: edits that were replaced earlier. Forgetting makes them active again, so a new edit may only have the id
    of one that it replaces itself.
    """
    by_digest = {request.digest: request for request in old}
    duplicates = tuple((request, by_digest[request.digest]) for request in new if request.digest in by_digest)
    fresh = [request for request in new if request.digest not in by_digest]
    both = [*old, *fresh]
    gone = {m: n for m, n in find_superseded(both).items() if m < len(old)}
    holders: dict[str, list[EditRequest]] = {}
    for request in (*inactive, *old):
        holders.setdefault(request.id, []).append(request)
    taken = holders.keys() | {request.id for request in new}
    own = [
        request.model_copy(update={"id": _free(request.id, taken)})
        if not all(find_superseded([one, request]) for one in holders.get(request.id, ()))
        else request
        for request in fresh
    ]
    return MergedEdits(
        tuple(own),
        tuple((own[n - len(old)], old[m]) for m, n in sorted(gone.items())),
        duplicates,
        tuple((was, now) for was, now in zip(fresh, own, strict=True) if was is not now),
    )


def extend_ledger(
    ledger: Ledger | None, about: Provenance, entries: Sequence[LedgerEntry], targets: Tensor, earlier: Sequence[int]
) -> Ledger:
    """Update the `earlier` entries of a ledger, and append the new ones.

    entries, and their targets (E, D) float32: all active edits, the earlier ones first.
    """
    old = list(ledger.entries) if ledger else []
    rows = ledger.targets.clone() if ledger else targets[:0]
    count = len(earlier)
    for n, entry in zip(earlier, entries[:count], strict=True):
        old[n] = entry
    rows[list(earlier)] = targets[:count]
    return Ledger(about, mark_superseded([*old, *entries[count:]]), torch.cat([rows, targets[count:]]))


def deciding_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that decide what a run does, by dotted name."""
    flat = flatten(recipe.model_dump(mode="json"))
    return {name: flat[name] for name in deciding_names()}


def _free(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    taken.add(f"{name}-{number}")
    return f"{name}-{number}"
