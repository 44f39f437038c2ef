"""The edits of an edited model as one HTML page: the ledger from its first edit to its last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from markupsafe import Markup

from memedit.results.history import EditLog, EditState, PastEdit
from memedit.results.units import name_of_path
from memedit.show.history import states_of
from memedit.show.pages import LISTED, render_page
from memedit.show.svg import hover, rect, svg_figure, text

INKS = dict(zip(get_args(EditState), ("#0072b2", "#d55e00", "#cc79a7", "#bbbbbb", "#f0e442"), strict=True))
"""The color of each state: Okabe and Ito's, which color-blind readers can tell from each other."""
COLUMNS, LEAST, MOST, HEIGHT = 60, 12.0, 28.0, 60.0
"""Columns of the timeline at most; pixels of one at least and at most, and of its height."""


def log_page(log: EditLog) -> str:
    """Write the page: how the edits fared, their states in order, the facts edited more than once, and all edits.

    It has no script, and loads nothing from elsewhere; text of the ledger is escaped.
    """
    name, states = name_of_path(log.model), states_of(log)
    count = "1 edit" if len(log.edits) == 1 else f"{len(log.edits):,} edits"
    chains = edit_chains(log)
    return render_page(
        "log.html.j2",
        title=f"{name}: {count} in order",
        sentence=_sentence(log),
        timeline=Markup(_timeline(log.edits)),
        inks={state: INKS[state] for state in states},
        chains=[_chain(chain) for chain in chains[:LISTED]],
        outcomes=states,
        heads=["", "edit", "id", "prompt", "before", "object", "replaced by"],
        edits=[(edit.state, f"edit-{edit.line}", _cells(edit)) for edit in log.edits[:LISTED]],
        hidden=max(0, len(log.edits) - LISTED),
    )


def edit_chains(log: EditLog) -> list[list[PastEdit]]:
    """The facts that were edited more than once: for each its edits in order, the last one not replaced."""
    ends: dict[int, int] = {}
    for edit in reversed(log.edits):
        ends[edit.line] = ends.get(edit.replaced_by_line or 0, edit.line)
    chains: dict[int, list[PastEdit]] = {}
    for edit in log.edits:
        chains.setdefault(ends[edit.line], []).append(edit)
    return [chain for chain in chains.values() if len(chain) > 1]


def _sentence(log: EditLog) -> str:
    """How many edits hold, and what became of the others."""
    words = {
        "holds": ("holds", "hold"), "lost": ("was lost after it had held", "were lost after they had held"),
        "failed": ("never held", "never held"),
        "replaced": ("was replaced by a later edit", "were replaced by later edits"),
        "not measured": ("was not measured", "were not measured"),
    }  # fmt: skip
    states = states_of(log)
    said = [f"{states[state]:,} {one if states[state] == 1 else more}" for state, (one, more) in words.items()
            if state in states]  # fmt: skip
    count = "the only edit" if len(log.edits) == 1 else f"{len(log.edits):,} edits"
    return f"Of {count} of {name_of_path(log.base)}, {', '.join(said)}."


def _timeline(edits: Sequence[PastEdit]) -> str:
    """Columns from the first edit to the last: the share of each state in some neighboring edits, or in one."""
    together = -(-len(edits) // COLUMNS) or 1
    groups = [edits[n : n + together] for n in range(0, len(edits), together)]
    left, parts, wide = 2.0, list[str](), max(LEAST, min(MOST, 360 / max(len(groups), 1)))
    for n, group in enumerate(groups):
        x, y = left + n * wide, 4 + HEIGHT
        for state, ink in INKS.items():
            count = sum(edit.state == state for edit in group)
            if not count:
                continue
            high = HEIGHT * count / len(group)
            y -= high
            first, last = group[0], group[-1]
            one = f"edit {first.line:,}, {first.prompt}: {state}"
            many = f"edits {first.line:,} to {last.line:,}: {count:,} {state}"
            parts.append(hover(rect(x, y, wide - 1, high, ink), one if len(group) == 1 else many))
    for n in range(0, len(groups), 5):
        parts.append(text(left + n * wide, HEIGHT + 18, f"{groups[n][0].line:,}", kind="tick"))
    each = "one edit a column" if together == 1 else f"{together:,} edits a column"
    parts.append(text(left, HEIGHT + 32, f"edit, in order; {each}", kind="tick"))
    return svg_figure(
        max(left + len(groups) * wide + 30, 220.0),
        HEIGHT + 38,
        f"The states of {len(edits):,} edits in order, {each}",
        parts,
    )


def _chain(chain: Sequence[PastEdit]) -> dict[str, object]:
    """One fact: its prompt, what the model said before, and its edits in order."""
    steps = [(f"#edit-{edit.line}", f"edit {edit.line:,}", _object(edit)) for edit in chain]
    return {"prompt": chain[-1].prompt, "before": chain[0].object_old or "", "steps": steps, "state": chain[-1].state}


def _object(edit: PastEdit) -> str:
    return "(removed)" if edit.remove else edit.object


def _cells(edit: PastEdit) -> list[str]:
    by = "" if edit.replaced_by_line is None else f"{edit.replaced_by_line:,}: {edit.replaced_by}"
    link = Markup('<a href="#edit-{}">{}</a>').format(edit.replaced_by_line, by) if by else ""
    return [edit.state, f"{edit.line:,}", edit.id, edit.prompt, edit.object_old or "", _object(edit), link]
