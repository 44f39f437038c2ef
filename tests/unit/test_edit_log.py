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
from memedit.show.history import TERMINAL_ROWS, earlier_line, log_line, log_table
from rich.cells import cell_len
from rich.console import Console
from tests.helpers.reports import a_log, a_past_edit


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
    assert "[Lyon]" in text and "\x1b" not in text and "replaced by 5" in text


def test_a_terminal_of_80_columns_gets_one_line_an_edit_and_the_last_ones_alone() -> None:
    words: dict[str, Any] = {
        "prompt": "The country where Gabriel García Márquez was born is",
        "object_old": "東京都" * 9,
    }
    edits = [a_past_edit(n, by=n + 1 if n == 999 else None, id=f"birthplace-{n}", **words) for n in range(1, 1001)]
    log = a_log(*edits)
    console = Console(width=80, record=True)
    console.print(log_table(log, last=TERMINAL_ROWS, cut=True))
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 2 + TERMINAL_ROWS and all(cell_len(line) <= 80 for line in lines)
    assert lines[2].split()[:2] == ["986", "birthplace-986"] and lines[-1].rstrip().endswith("holds")
    assert lines[-2].rstrip().endswith("replaced by 1,000")  # what is short is never cut
    assert earlier_line(log, TERMINAL_ROWS) == "985 earlier edits: add --all"
    assert not earlier_line(log, None) and not earlier_line(a_log(edits[0]), TERMINAL_ROWS)
    whole = Console(width=160, record=True)
    whole.print(log_table(log))
    assert whole.export_text().count("Gabriel García Márquez was born") == 1000


def test_a_model_without_a_ledger_is_refused(made_folder: Path) -> None:
    with pytest.raises(UsageError, match="has no ledger") as caught:
        log(made_folder)
    assert "apply" in caught.value.hint
