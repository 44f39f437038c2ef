"""The contents of the cache as a table, and a cleaning in one line."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from memedit.results.cache import CacheCleaning, CacheEntry
from memedit.results.units import bytes_text
from memedit.show.terminal import plain_table


def cache_table(entries: Sequence[CacheEntry]) -> Table:
    """One row an entry: its kind, model, layer or contents, size, and the time since its last use."""
    table = plain_table(["kind", "model", "layer", "holds", "size", "last used", "file or folder"], (0, 1, 2, 3, 6))
    for one in entries:
        layer = "" if one.layer is None else str(one.layer)
        table.add_row(
            one.kind, Text(one.model or "-"), layer, Text(one.holds), bytes_text(one.bytes),
            age_text(time.time() - one.used), Text(one.name),
        )  # fmt: skip
    return table


def cache_total(entries: Sequence[CacheEntry], folder: str) -> str:
    """Say how many entries there are, their size together, and by kind."""
    if not entries:
        return f"{folder} keeps nothing"
    by_kind: dict[str, int] = {}
    for one in entries:
        by_kind[one.kind] = by_kind.get(one.kind, 0) + one.bytes
    kinds = ", ".join(f"{kind} {bytes_text(size)}" for kind, size in sorted(by_kind.items(), key=lambda item: -item[1]))
    count = "1 entry" if len(entries) == 1 else f"{len(entries):,} entries"
    return f"{folder}: {count}, {bytes_text(sum(one.bytes for one in entries))} ({kinds})"


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
