"""Progress on stderr: a bar in a terminal, else a plain line every half minute."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from memedit.progress import Advance
from memedit.results.units import printable

LINE_EVERY = 30.0
"""Seconds between two lines if stderr is no terminal."""


class TerminalProgress:
    """Show notes and phases on stderr; with `quiet`, notes only."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.bars = console.is_terminal and not quiet and not os.environ.get("MEMEDIT_NO_PROGRESS")

    def note(self, text: str) -> None:
        """Print one line; control sequences in it are removed."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        """Show a bar or lines while a phase runs, and its rate after it."""
        start, done = time.monotonic(), 0
        with ExitStack() as stack:
            show = self._shower(stack, name, total, unit)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                show(count)

            yield advance
        spent = time.monotonic() - start
        if done and unit and not self.quiet:
            self.note(f"{name}: {done:,} {unit} in {spent:,.1f} s, {done / max(spent, 1e-9):,.0f} {unit}/s")

    def _shower(self, stack: ExitStack, name: str, total: int | None, unit: str) -> Advance:
        if self.quiet:
            return lambda _count: None
        return self._bars(stack, name, total, unit) if self.bars else self._lines(name, total, unit)

    def _bars(self, stack: ExitStack, name: str, total: int | None, unit: str) -> Advance:
        bar = stack.enter_context(self._bar())
        task = bar.add_task(name, total=total, unit=unit, rate="")
        start, done = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            spent = max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=count, rate=f"{done / spent:,.0f} {unit}/s" if unit else "")

        return advance

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True,
        )  # fmt: skip

    def _lines(self, name: str, total: int | None, unit: str) -> Advance:
        start = last = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= LINE_EVERY:
                last = now
                rate = done / (now - start)
                left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
                of = f" of {total:,}" if total else ""
                self.note(f"{name}: {done:,}{of} {unit}, {rate:,.0f} {unit}/s{left}")

        return advance
