"""What a ledger tells of each edit."""

from __future__ import annotations

from memedit.editing.ledger import Ledger, LedgerEntry
from memedit.results.history import EditLog, EditState, PastEdit


def edit_log(model: str, ledger: Ledger) -> EditLog:
    """List the edits of a ledger in order, with what became of each."""
    entries = ledger.entries
    edits = [
        PastEdit(
            line=number, id=entry.edit.id, prompt=entry.edit.text, object=entry.edit.object,
            object_old=entry.edit.object_old, remove=entry.edit.remove, state=_state(entry),
            replaced_by=None if entry.superseded_by is None else entries[entry.superseded_by - 1].edit.id,
            replaced_by_line=entry.superseded_by,
        )
        for number, entry in enumerate(entries, 1)
    ]  # fmt: skip
    return EditLog(model=model, base=ledger.about.base.path, edits=tuple(edits))


def _state(entry: LedgerEntry) -> EditState:
    if entry.superseded_by is not None:
        return "replaced"
    if entry.holds is None:
        return "not measured"
    if entry.holds:
        return "holds"
    return "lost" if entry.took else "failed"
