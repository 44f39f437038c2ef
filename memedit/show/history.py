"""The edits of an edited model as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from memedit.results.history import EditLog
from memedit.results.units import printable
from memedit.show.terminal import plain_table


def log_table(log: EditLog) -> Table:
    """One row for each edit: its line, id, prompt, objects and state."""
    table = plain_table(["", "id", "prompt", "object", "before", "state"], left=(1, 2, 3, 4, 5))
    for edit in log.edits:
        state = f"{edit.state} by {edit.replaced_by}" if edit.replaced_by else edit.state
        words = (edit.id, edit.prompt, "(removed)" if edit.remove else edit.object, edit.object_old or "", state)
        table.add_row(f"{edit.line:,}", *(Text(" ".join(printable(word).split())) for word in words))
    return table


def states_of(log: EditLog) -> dict[str, int]:
    """How many edits there are of each state, in the order in which the states first occur."""
    counts: dict[str, int] = {}
    for edit in log.edits:
        counts[edit.state] = counts.get(edit.state, 0) + 1
    return counts


def log_line(log: EditLog) -> str:
    """How many edits there are, by state."""
    said = ", ".join(f"{state} {count:,}" for state, count in states_of(log).items())
    edits = "1 edit" if len(log.edits) == 1 else f"{len(log.edits):,} edits"
    return f"{edits} of {printable(log.base)}: {said}"
