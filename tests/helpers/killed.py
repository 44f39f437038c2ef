"""Call a public function in a process that is killed at a moment of its progress, or at a file operation.

The process listens to the phases that the function reports; nothing in the package knows of it. SIGKILL runs no
handler and flushes nothing. As a script it takes one JSON document: `function`, `arguments`, `options`, and `at`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memedit.progress import Advance


@dataclass(frozen=True)
class Moment:
    """When to die: the `nth` time that `event` happens in the phase `phase`."""

    phase: str
    event: str
    """"begins", "advances", "ends", or an audit event of Python's, such as "os.rename" or "open"."""
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.phase} {self.event}" + (f" {self.nth}" if self.nth > 1 else "")


class KillingProgress:
    """Progress that kills its own process at a moment, or, without one, listens and does nothing."""

    def __init__(self, at: Moment | None) -> None:
        self.at, self.left, self.phases = at, at.nth if at else 0, list[str]()
        sys.addaudithook(lambda event, _args: self.happens(event))

    def happens(self, event: str) -> None:
        """Count an event of the open phases; the last of those awaited kills the process."""
        if self.at is not None and event == self.at.event and self.at.phase in self.phases:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def note(self, text: str) -> None:
        """Ignore a note."""

    def warn(self, text: str) -> None:
        """Ignore a warning."""

    def detail(self, text: str) -> None:
        """Ignore a detail."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        """Count the beginning, the steps and the end of a phase."""
        self.phases.append(name)
        try:
            self.happens("begins")
            yield lambda done, under_way=0.0, told="": self.happens("advances")
            self.happens("ends")
        finally:
            self.phases.pop()


def call(
    cache: Path,
    function: str,
    *arguments: object,
    at: Moment | None = None,
    settings: Mapping[str, object] | None = None,
    **options: object,
) -> subprocess.CompletedProcess[str]:
    """Call `memedit.FUNCTION(*arguments, ...)` in a process of its own, killed at the moment `at`."""
    from tests.helpers.program import start

    plain: Sequence[object] = [str(one) if isinstance(one, Path) else one for one in arguments]
    document = {"function": function, "arguments": plain, "options": {**options, "settings": dict(settings or {})}}
    return start(
        cache, "-m", "tests.helpers.killed", json.dumps({**document, "at": asdict(at) if at is not None else None})
    )


def main(document: str) -> None:
    """Call what the document names."""
    import memedit

    asked: dict[str, Any] = json.loads(document)
    at = Moment(**asked["at"]) if asked["at"] else None
    getattr(memedit, asked["function"])(*asked["arguments"], **asked["options"], progress=KillingProgress(at))


if __name__ == "__main__":
    main(sys.argv[1])
