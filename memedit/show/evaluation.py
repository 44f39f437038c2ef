"""Metrics in a terminal: before, after, the paired difference, what each measures; and the edits that failed."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.table import Table

from memedit.results.report import EditResult, Report
from memedit.results.rows import TOO_FEW, Line, beside, first_names, lines_of_model, score_lines
from memedit.results.units import printable
from memedit.show.terminal import plain_table

FIRST_FIGURES = 6
"""Rows of figures that are shown unless all are asked for: with the lines around them they fit 24 rows."""
FIRST_EDITS = 5
"""Failed edits, and skipped ones, that are named."""
LEAST_PROMPT = 16
"""Cells in which the prompt of a failed edit is still worth showing beside its id."""
WIDE, WIDEST = 100, 150
"""Columns from which the interval of the difference is shown, and what each figure means."""


def evaluation_table(report: Report, width: int = 80, *, everything: bool = False) -> Table:
    """One model: before, after, the 95 % interval of after, the paired difference, and n.

    width: columns of the terminal. everything: all figures that were measured, not the six that tell most.
    """
    lines = score_lines(report)
    if not everything:
        names = first_names((line.metric.name for line in lines), FIRST_FIGURES)
        lines = [line for line in lines if line.metric.name in names]
    paired = bool(report.difference)
    heads = ["", "before", "after", "95 %", "difference", "95 %", "n", ""] if paired else ["", "value", "95 %", "n", ""]
    cells = [_cells(line, paired=paired, narrow=width < WIDE) for line in lines]
    leave = {len(heads) - 1} if width < (WIDEST if paired else WIDE) else set[int]()
    leave |= {5} if paired and width < WIDE else set[int]()
    last = len(heads) - 1
    kept = [n for n in range(len(heads)) if n not in leave]
    table = plain_table([heads[n] for n in kept], left=[place for place, n in enumerate(kept) if n in (0, last)])
    for row in cells:
        table.add_row(*(escape(row[n]) for n in kept))
    return table


def models_table(report: Report, *, everything: bool = False) -> Table:
    """Several models, one column each."""
    heads, cells = beside(report, None if everything else FIRST_FIGURES)
    table = plain_table(list(map(escape, heads)))
    for row in cells:
        table.add_row(*map(escape, row))
    return table


def more_figures(report: Report) -> str:
    """Say how many figures the short table leaves out; empty if none."""
    lines = (line for model in report.scored for line in lines_of_model(model, report.before, {}))
    names = {line.metric.name for line in lines}
    more = len(names) - FIRST_FIGURES
    return f"{more:,} more figures: add --all" if more > 0 else ""


def unsuccessful_lines(report: Report, width: int = 80) -> list[str]:
    """Name the edits that failed, with what the model says instead, and the skipped ones: the first five of each."""
    where = f", as does {report.output}/memedit/results.jsonl" if report.output else ""
    lines: list[str] = []
    for status, tell in (("failed", _told), ("skipped", _skipped)):
        found = [one for one in report.per_edit if one.status == status]
        if not found:
            continue
        verb = "failed" if status == "failed" else "was skipped" if len(found) == 1 else "were skipped"
        lines.append(f"{len(found):,} of {len(report.per_edit):,} edits {verb}:")
        lines += [f"  {tell(one, width - 2)}" for one in found[:FIRST_EDITS]]
        if (more := len(found) - FIRST_EDITS) > 0:
            lines.append(f"  and {more:,} more: --per-edit lists them{where}")
    return lines


def removal_lines(report: Report, width: int = 80) -> list[str]:
    """Say how many facts were removed, and what the model says in their place: the first five."""
    removals = [one for one in report.per_edit if one.edit.get("remove") and one.status != "skipped"]
    gone = [one for one in removals if one.status == "ok"]
    if not removals:
        return []
    told = [one for one in gone if "after" in one.said][:FIRST_EDITS]
    line = f"{len(gone):,} of {len(removals):,} old objects are no longer said after their prompt"
    return [line + (", and instead:" if told else "."), *(f"  {_told(one, width - 2)}" for one in told)]


def short_text(text: str, cells: int) -> str:
    """A text on one line of at most `cells` terminal cells; a cut is marked.

    >>> short_text("Paris is\\n the capital", 12), short_text("東京都", 5)
    ('Paris is th…', '東京…')
    """
    line = " ".join(printable(text).split())
    return line if cell_len(line) <= cells else set_cell_size(line, max(cells - 1, 0)).rstrip() + "\u2026"


def _cells(line: Line, *, paired: bool, narrow: bool) -> list[str]:
    """The cells of a row; `narrow`: the interval of the difference is left out, and what it tells stands without it."""
    after = [line.text(line.after), line.interval(line.after)]
    if not paired:
        return [line.label, *after, line.count, line.meaning]
    change = ["", ""]
    if line.difference is not None:
        unclear = line.unclear(line.difference)
        interval = TOO_FEW if unclear else line.interval(line.difference, difference=True)
        value = line.text(line.difference, difference=True)
        change = [TOO_FEW if narrow and unclear else value, interval]
    return [line.label, line.text(line.before), *after, *change, line.count, line.meaning]


def _told(one: EditResult, cells: int) -> str:
    prompt = str(one.edit.get("prompt", "")).replace("{}", str(one.edit.get("subject", "")))
    each = cells // 5
    said = one.said.get("after", "")
    says = f'says "{short_text(said, each)}"' if said.strip() else "says nothing" if "after" in one.said else ""
    wanted, name = ("to remove", "object_old") if one.edit.get("remove") else ("wanted", "object")
    tail = f'{wanted} "{short_text(str(one.edit.get(name, "")), each)}"' + (f", {says}" if says else "")
    head = short_text(one.id, cells - cell_len(f": {tail}"))
    room = cells - cell_len(f"{head}: : {tail}")
    return f"{head}: {short_text(prompt, room)}: {tail}" if room >= LEAST_PROMPT else f"{head}: {tail}"


def _skipped(one: EditResult, cells: int) -> str:
    return short_text(f"{one.id}: {one.reason or 'skipped'}", cells)
