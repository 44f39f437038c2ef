"""Metrics in a terminal: before, after and the paired difference, with what each measures."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from memedit.results.report import Report
from memedit.results.rows import beside, headings, rows


def evaluation_table(report: Report, width: int = 140, *, brief: bool = False) -> Table:
    """One model: before, after and the paired difference with 95 % intervals, and n; meanings if `width` allows.

    `brief`: only the metrics that `apply` prints.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    paired = bool(report.difference)
    fits = width >= (130 if paired else 95)
    heads = headings(paired)[:-1] + ([""] if fits else [])
    for n, head in enumerate(heads):
        table.add_column(head, justify="left" if n == 0 or head == "" else "right", no_wrap=n == 0)
    for row in rows(report, brief=brief):
        table.add_row(*map(escape, row if fits else row[:-1]))
    return table


def models_table(report: Report) -> Table:
    """Several models, one column each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads, cells = beside(report)
    for n, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if n else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    return table
