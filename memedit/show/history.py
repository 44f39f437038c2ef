"""The edits of an edited model as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from memedit.results.history import EditLog
from memedit.results.units import name_of_path, printable
from memedit.show.terminal import plain_table

TERMINAL_ROWS = 15
"""Edits that a terminal shows unless it is asked for all: with head and last line they fit 24 rows."""
ID_CELLS = 20
"""Cells of an id that a terminal shows."""


def log_table(log: EditLog, *, last: int | None = None, cut: bool = False) -> Table:
    """One row for each edit: its line, id, prompt, objects and state.

    last: show only that many edits, the latest; cut: give each edit one line, whatever does not fit.
    """
    table = plain_table(["edit", "id", "prompt", "object", "before", "state"], left=(1, 2, 3, 4, 5))
    for column in (0, 1, 5) if cut else ():  # short, and what other commands ask for
        table.columns[column].no_wrap = True
    for edit in log.edits if last is None else log.edits[-last:]:
        state = f"{edit.state} by {edit.replaced_by_line:,}" if edit.replaced_by_line else edit.state
        words = (edit.id, edit.prompt, "(removed)" if edit.remove else edit.object, edit.object_old or "", state)
        cells = [Text(" ".join(printable(word).split())) for word in words]
        for cell in cells if cut else ():
            cell.no_wrap, cell.overflow = True, "ellipsis"
        if cut:
            cells[0].truncate(ID_CELLS, overflow="ellipsis")
        table.add_row(f"{edit.line:,}", *cells)
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
    return f"{edits} of {printable(name_of_path(log.base))}: {said}"


def earlier_line(log: EditLog, last: int | None) -> str:
    """Say how many edits a table of the last ones leaves out; empty if none."""
    more = 0 if last is None else len(log.edits) - last
    edits = "edit" if more == 1 else "edits"
    return f"{more:,} earlier {edits}: add --all" if more > 0 else ""
