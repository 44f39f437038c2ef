"""Progress on stderr: a bar in a terminal, else a plain line every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from memedit.progress import Advance
from memedit.results.units import counted_unit, duration_text, printable, rate_text
from memedit.show.terminal import print_line

BAR, ELAPSED, GAPS = 10, 7, 4
"""Cells of a bar, of the time since its begin, and between the columns."""
FIRST_LINE, LINE_EVERY = 5.0, 30.0
"""Seconds before the first line of a phase, and between two lines, if stderr is no terminal."""


@dataclass
class PhaseCount:
    """How far a phase is: counted in units of work, timed from its begin."""

    name: str
    total: int | None
    unit: str
    done: int = 0
    under_way: float = 0.0
    told: str = ""
    start: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        """Seconds since the phase began."""
        return max(time.monotonic() - self.start, 1e-9)

    @property
    def worked(self) -> float:
        """Units finished, and what the work on the next ones amounts to."""
        worked = self.done + self.under_way
        return worked if self.total is None else min(worked, float(self.total))

    def line(self, room: int | None = None) -> str:
        """The count, the rate, the time left, and what is being done; without the rate if `room` cells need it."""
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.done:,}{of} {counted_unit(self.total or self.done, self.unit)}"] if self.unit else []
        rated = len(parts)
        if self.unit and self.worked:
            parts.append(rate_text(self.worked, self.seconds, self.unit))
        if self.total is not None and 0 < self.worked < self.total:
            parts.append(f"{duration_text((self.total - self.worked) * self.seconds / self.worked)} left")
        parts += [self.told] if self.told else []
        if room is not None and len(", ".join(parts)) > room and len(parts) > 2:
            del parts[rated]
        return ", ".join(parts)[:room]


class TerminalProgress:
    """Show notes and phases on a console; `log` gets every line.

    quiet: show warnings alone; verbose: show details too; bars: draw bars if the console is a terminal.
    """

    def __init__(
        self,
        console: Console,
        *,
        quiet: bool = False,
        verbose: bool = False,
        bars: bool = True,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.console, self.quiet, self.verbose, self.log = console, quiet, verbose, log
        self.bars = console.is_terminal and bars and not quiet

    def note(self, text: str) -> None:
        """Print one line; control sequences in it are removed."""
        self._line(text, shown=not self.quiet)

    def warn(self, text: str) -> None:
        """Print one line that begins with "warning:", however quiet the terminal is."""
        self._line(f"warning: {text}", shown=True)

    def detail(self, text: str) -> None:
        """Print one line if more was asked for."""
        self._line(text, shown=self.verbose and not self.quiet)

    def _line(self, text: str, *, shown: bool) -> None:
        if self.log is not None:
            self.log(printable(text))
        if shown:
            print_line(self.console, text)

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        """Show a bar or lines while a phase runs, and its rate after it."""
        count = PhaseCount(name, total, unit)
        if self.log is not None:
            self.log(f"{name}: begins")
        with ExitStack() as stack:
            show = self._bar(stack, count) if self.bars else self._lines(count)

            def advance(done: int, under_way: float = 0.0, told: str = "") -> None:
                count.done, count.under_way, count.told = count.done + done, under_way, told
                show()

            yield advance
        seconds = count.seconds
        if count.done and unit:
            done, rate = f"{count.done:,} {counted_unit(count.done, unit)}", rate_text(count.done, seconds, unit)
            self.note(f"{name}: {done} in {seconds:,.1f} s, {rate}")
        else:
            self.detail(f"{name}: {seconds:,.1f} s")

    def _bar(self, stack: ExitStack, count: PhaseCount) -> Callable[[], None]:
        bar = stack.enter_context(_drawn(self.console))
        task = bar.add_task(count.name, total=count.total, line="")
        # Cut here: where a row is too long, rich would shorten the bar and the time as well.
        room = max(self.console.width - len(count.name) - BAR - ELAPSED - GAPS, 10)
        return lambda: bar.update(task, completed=count.worked, line=count.line(room))

    def _lines(self, count: PhaseCount) -> Callable[[], None]:
        due = count.start + FIRST_LINE

        def show() -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due and count.done != count.total:  # its end has a line of its own
                due = now + LINE_EVERY
                self.note(f"{count.name}: {count.line()}")

        return show


def _drawn(console: Console) -> Progress:
    """A bar that moves, the time since its begin, and one line."""
    line = TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True))
    columns = TextColumn("{task.description}"), BarColumn(bar_width=BAR), TimeElapsedColumn(), line
    return Progress(*columns, console=console, transient=True)
