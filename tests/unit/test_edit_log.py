"""The log of an edited model says what became of each edit, from its ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.api import log
from memedit.editing.edit_log import edit_log
from memedit.editing.ledger import BaseIdentity, Ledger, LedgerEntry, Provenance, mark_superseded
from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.show.history import log_line, log_table
from rich.console import Console


def entry(name: str, subject: str, said: str, **more: Any) -> LedgerEntry:
    edit = EditRequest(id=name, subject=subject, prompt="{} lives in", object=said, object_old="Rome")
    given: dict[str, Any] = {"found": "searched", "on": "m", "group": "g", "loss": 0.1, "steps": 3, **more}
    return LedgerEntry(edit=edit, digest=edit.digest, **given)


@pytest.fixture
def ledger() -> Ledger:
    entries = mark_superseded([
        entry("first", "Ada", "Oslo", took=True, holds=True),
        entry("lost", "Bo", "Oslo", took=True, holds=False),
        entry("failed", "Cy", "Oslo", took=False, holds=False),
        entry("old", "Di", "Oslo"),
        entry("later", "Ada", "[Lyon]\x1b[2J", took=True, holds=True),
    ])  # fmt: skip
    about = Provenance(base=BaseIdentity(path="base", digest="d"), contexts=("",), knobs={}, layers=(1,), moments="m")
    return Ledger(about, entries, torch.zeros(len(entries), 2))


def test_every_edit_has_its_state(ledger: Ledger) -> None:
    found = edit_log("edited", ledger)
    assert [(one.line, one.id, one.state, one.replaced_by) for one in found.edits] == [
        (1, "first", "replaced", "later"), (2, "lost", "lost", None), (3, "failed", "failed", None),
        (4, "old", "not measured", None), (5, "later", "holds", None),
    ]  # fmt: skip
    assert [one.id for one in found.active] == ["lost", "failed", "old", "later"]
    assert found.edits[0].prompt == "Ada lives in"
    assert log_line(found) == "5 edits of base: replaced 1, lost 1, failed 1, not measured 1, holds 1"


def test_the_table_shows_foreign_text_as_it_is_and_no_control_characters(ledger: Ledger) -> None:
    console = Console(width=100, record=True)
    console.print(log_table(edit_log("edited", ledger)))
    text = console.export_text()
    assert "[Lyon]" in text and "\x1b" not in text and "replaced by later" in text


def test_a_model_without_a_ledger_is_refused(made_folder: Path) -> None:
    with pytest.raises(UsageError, match="has no ledger") as caught:
        log(made_folder)
    assert "apply" in caught.value.hint
