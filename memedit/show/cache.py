"""The contents of the cache as a table, and a cleaning in one line."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from memedit.config.layers import layers_text
from memedit.results.cache import CacheCleaning, CacheEntry
from memedit.results.units import bytes_text, name_of_path, printable
from memedit.show.terminal import plain_table

NAME_CELLS = 30
"""Cells of a model's name that the table shows."""


def cache_table(entries: Sequence[CacheEntry]) -> Table:
    """One row for the entries of one kind, model and contents: layers, number, size, and time since the last use."""
    rows: dict[tuple[str, str, str], list[CacheEntry]] = {}
    for one in entries:
        rows.setdefault((one.kind, one.model or "", one.holds), []).append(one)
    table = plain_table(["kind", "model", "holds", "count", "size", "last used"], (0, 1, 2))
    for column in (1, 4, 5):  # contents alone take several lines
        table.columns[column].no_wrap = True
    for (kind, model, holds), alike in sorted(rows.items(), key=lambda row: -_size(row[1])):
        layers = sorted({one.layer for one in alike if one.layer is not None})
        contents = f"layers {layers_text(layers)}" if layers else holds
        name = Text(printable(name_of_path(model)) or "-")
        name.truncate(NAME_CELLS, overflow="ellipsis")
        table.add_row(
            kind, name, Text(contents), f"{len(alike):,}",
            bytes_text(_size(alike)), age_text(time.time() - max(one.used for one in alike)),
        )  # fmt: skip
    return table


def _size(entries: Sequence[CacheEntry]) -> int:
    return sum(one.bytes for one in entries)


def cache_total(entries: Sequence[CacheEntry], folder: str) -> str:
    """Say how many entries there are, their size together, and by kind."""
    if not entries:
        return f"{folder} keeps nothing"
    by_kind: dict[str, int] = {}
    for one in entries:
        by_kind[one.kind] = by_kind.get(one.kind, 0) + one.bytes
    kinds = ", ".join(f"{kind} {bytes_text(size)}" for kind, size in sorted(by_kind.items(), key=lambda item: -item[1]))
    count = "1 entry" if len(entries) == 1 else f"{len(entries):,} entries"
    return f"{folder}: {count}, {bytes_text(_size(entries))} ({kinds})"


def cleaning_text(done: CacheCleaning) -> str:
    """Say what was removed, or would be, and what is left."""
    verb = "would remove" if done.dry_run else "removed"
    held = f"; {len(done.in_use):,} in use and left" if done.in_use else ""
    return (
        f"{verb} {len(done.removed):,} of {len(done.removed) + done.kept:,} entries, {bytes_text(done.freed)}{held}; "
        f"left: {bytes_text(done.bytes)}"
    )


def age_text(seconds: float) -> str:
    """Format a time that has passed.

    >>> age_text(30), age_text(7200), age_text(200_000)
    ('1 min ago', '2 h ago', '2 d ago')
    """
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 2 * 86400 else f"{seconds / 86400:,.0f} d ago"
