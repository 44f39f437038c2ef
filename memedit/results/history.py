"""The edits of an edited model in order, and what became of each: plain values that turn into JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

EditState = Literal["holds", "lost", "failed", "replaced", "not measured"]
"""holds: the model says the object, or no longer says a removed one; lost: it held right after the edit, and no longer;
failed: it never did; replaced: a later edit of the same fact took its place."""


class PastEdit(BaseModel):
    """One edit of a ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: int
    """In ledger.jsonl, counted from 1."""
    id: str
    prompt: str
    """With the subject in it."""
    object: str
    """Empty for a removal."""
    object_old: str | None = None
    remove: bool = False
    state: EditState
    replaced_by: str | None = None
    """The id of the edit that took its place."""
    replaced_by_line: int | None = None
    """The line of that edit."""


class EditLog(BaseModel):
    """All edits of a model, the earliest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    base: str
    """The model before all edits, as the ledger names it."""
    edits: tuple[PastEdit, ...]

    @property
    def active(self) -> list[PastEdit]:
        """The edits that no later one replaced."""
        return [edit for edit in self.edits if edit.state != "replaced"]
