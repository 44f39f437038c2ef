"""Progress of long computations: notes and phases. The command line shows them; the Python functions need not."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports the work inside a phase."""

    def __call__(self, done: int, under_way: float = 0.0, told: str = "") -> object:
        """Report progress.

        done: units finished since the last call; under_way: how many units the work on the next ones amounts to so far,
        such as 2.5 for ten edits in step 10 of 40; told: what is being done, in a few words.
        """
        ...


class Progress(Protocol):
    """Receives notes and phases while a computation runs."""

    def note(self, text: str) -> None:
        """Show one line of information."""
        ...

    def warn(self, text: str) -> None:
        """Show one line about something that was left out, or that did not work; it is shown to everybody."""
        ...

    def detail(self, text: str) -> None:
        """Show one line to those who asked for more: which engine, which plan, what was found in the cache."""
        ...

    def phase(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """Begin a phase of `total` units of work; call the function it yields with the units just finished."""
        ...


class NoProgress:
    """Ignores all progress."""

    def note(self, text: str) -> None:
        """Ignore the note."""

    def warn(self, text: str) -> None:
        """Ignore the warning."""

    def detail(self, text: str) -> None:
        """Ignore the detail."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        """Ignore the phase."""
        yield ignore_advance


def ignore_advance(done: int, under_way: float = 0.0, told: str = "") -> None:
    """Ignore the work inside a phase."""
