"""Progress of long computations: notes and phases. The command line shows them; the Python functions need not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Receives notes and phases while a computation runs."""

    def note(self, text: str) -> None:
        """Show one line of information."""
        ...

    def phase(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """Begin a phase of `total` units of work; call the function it yields with the units just finished."""
        ...


class NoProgress:
    """Ignores all progress."""

    def note(self, text: str) -> None:
        """Ignore the note."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        """Ignore the phase."""
        yield lambda _done: None
