"""The ledger of an edited model: its edits in order, and how the target of each was found. Records and set logic.

Which edits are in force follows from the list alone: of edits that contradict each other, or say the same, the latest.
An edit that is forgotten leaves the list as if it had never been made, so what it had replaced holds again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from memedit.config.recipe import Recipe
from memedit.config.resolve import flatten
from memedit.edits.edit import EditRequest, Finding

FoundBy = Literal["searched", "joint", "redone"]
Mode = Literal["re-solve", "on top"]
DECIDING = ("method.", "target.", "contexts.", "moments.", "chat", "seed", "model.dtype", "output.rounding")
"""Knobs that decide what a run does; the ledger's are those of every run after it."""
FREE = "target.redo"
"""How often targets are found again is for each run to say: the ledger keeps them, and marks them."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LedgerEntry(_Value):
    """One edit: a line of ledger.jsonl. Its target is the row of that number in ledger.safetensors."""

    edit: EditRequest
    digest: str
    """Of what the edit does, as the request has it."""
    found: FoundBy
    """searched: its target serves it alone; joint: all edits of its subject; redone: found again after a solve."""
    on: str
    """Digest of the model that the target was found on."""
    group: str
    """Digest of the edits that the target serves; a target holds as long as these are those in force."""
    loss: float
    steps: int
    took: bool | None = None
    """Whether the model said the object right after the edit was made."""
    holds: bool | None = None
    """Whether it said it when this ledger was written."""
    superseded_by: int | None = None
    """Line of the edit that took its place, counted from 1."""


class BaseIdentity(_Value):
    """The model before all edits."""

    path: str
    revision: str | None = None
    digest: str


class Provenance(_Value):
    """What all edits of a ledger have in common, and a solve depends on."""

    base: BaseIdentity
    contexts: tuple[str, ...]
    knobs: dict[str, Any]
    """Of the recipe, by dotted name: those that decide what a run does."""
    layers: tuple[int, ...]
    moments: str
    """Digest of what the moments were measured on."""


@dataclass(frozen=True)
class Ledger:
    """About the edits, the edits in order, and their targets: (E, D) float32, one row for each entry."""

    about: Provenance
    entries: tuple[LedgerEntry, ...]
    targets: Tensor

    @property
    def active(self) -> list[int]:
        """Numbers of the entries that no other has replaced."""
        return [n for n, entry in enumerate(self.entries) if entry.superseded_by is None]

    def without(self, ids: Collection[str]) -> Ledger:
        """The ledger as if the edits of these ids had never been made."""
        left = [n for n, entry in enumerate(self.entries) if entry.edit.id not in ids]
        return replace(self, entries=mark_superseded([self.entries[n] for n in left]), targets=self.targets[left])


@dataclass(frozen=True)
class History:
    """What earlier runs left, and how this one goes on from it; nothing, where the model was not edited before."""

    ledger: Ledger | None = None
    way: Mode | None = None
    earlier: tuple[int, ...] = ()
    """Entries of the ledger that are in force and stay so, by number."""
    conflicts: tuple[Finding, ...] = ()
    twins: tuple[EditRequest, ...] = ()
    """New edits that say what one in force says."""
    command: str = "apply"


def find_superseded(requests: Sequence[EditRequest]) -> dict[int, int]:
    """Of a list in order, the edits no longer in force, each with the one that took its place; both by number.

    An edit gives way to the next one that answers one of its questions with another object, or that is its twin.
    """
    gone: dict[int, int] = {}
    asked: dict[tuple[str, ...], list[int]] = {}
    for n, request in enumerate(requests):
        for question in request.questions:
            rivals = [m for m in asked.get(question, []) if m not in gone]
            gone |= {
                m: n for m in rivals if requests[m].object != request.object or requests[m].digest == request.digest
            }
            asked[question] = [*(m for m in rivals if m not in gone), n]
    return gone


def mark_superseded(entries: Sequence[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """Entries in order, each told which took its place."""
    gone = find_superseded([entry.edit for entry in entries])
    lines = [gone[n] + 1 if n in gone else None for n in range(len(entries))]
    return tuple(
        entry if entry.superseded_by == line else entry.model_copy(update={"superseded_by": line})
        for entry, line in zip(entries, lines, strict=True)
    )


@dataclass(frozen=True)
class MergedEdits:
    """New edits beside those in force."""

    requests: tuple[EditRequest, ...]
    """The new ones: no twin of one in force, no id of one that stays in force."""
    replaced: tuple[tuple[EditRequest, EditRequest], ...] = ()
    """Pairs: a new edit and one in force that gives way to it."""
    twins: tuple[tuple[EditRequest, EditRequest], ...] = ()
    """Pairs: a new edit and one in force that says the same."""
    renamed: tuple[tuple[EditRequest, EditRequest], ...] = ()
    """Pairs: a new edit under its own id, and under the one that tells it apart."""


def merge_edits(old: Sequence[EditRequest], new: Sequence[EditRequest]) -> MergedEdits:
    """New edits join those in force: the later wins. Neither list contradicts itself."""
    by_digest = {request.digest: request for request in old}
    twins = tuple((request, by_digest[request.digest]) for request in new if request.digest in by_digest)
    fresh = [request for request in new if request.digest not in by_digest]
    both = [*old, *fresh]
    gone = {m: n for m, n in find_superseded(both).items() if m < len(old)}
    taken = {request.id for n, request in enumerate(old) if n not in gone} | {request.id for request in new}
    kept = {request.id for n, request in enumerate(old) if n not in gone}
    own = [request.model_copy(update={"id": _free(request.id, taken)}) if request.id in kept else request
           for request in fresh]  # fmt: skip
    return MergedEdits(
        tuple(own),
        tuple((own[n - len(old)], old[m]) for m, n in sorted(gone.items())),
        twins,
        tuple((was, now) for was, now in zip(fresh, own, strict=True) if was is not now),
    )


def extend_ledger(
    ledger: Ledger | None, about: Provenance, entries: Sequence[LedgerEntry], targets: Tensor, earlier: Sequence[int]
) -> Ledger:
    """A ledger with its `earlier` entries as they are now, and new ones behind all others.

    entries, targets (E, D): those in force, the earlier ones first.
    """
    old = list(ledger.entries) if ledger else []
    rows = ledger.targets.clone() if ledger else targets[:0]
    count = len(earlier)
    for n, entry in zip(earlier, entries[:count], strict=True):
        old[n] = entry
    rows[list(earlier)] = targets[:count]
    return Ledger(about, mark_superseded([*old, *entries[count:]]), torch.cat([rows, targets[count:]]))


def deciding_settings(recipe: Recipe) -> dict[str, Any]:
    """The knobs of a recipe that decide what a run does, by dotted name."""
    flat = flatten(recipe.model_dump(mode="json"))
    return {name: value for name, value in flat.items() if name.startswith(DECIDING) and name != FREE}


def _free(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    taken.add(f"{name}-{number}")
    return f"{name}-{number}"
