"""What a long computation says while it runs: notes and phases. The command line shows them; a library need not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Somebody who listens."""

    def note(self, text: str) -> None:
        """One line about something that people want to know."""
        ...

    def phase(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """A stretch of work of `total` units; call what it yields with the units just done."""
        ...


class NoProgress:
    """Nobody listens."""

    def note(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        """Count nothing."""
        yield lambda _done: None
