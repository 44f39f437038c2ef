"""The contents of a file: records with their lines, and findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memedit.edits.edit import Finding, escape_controls

WRAPPER = ("version", "relations", "edits")
"""The keys of a list that is written as a mapping."""


LONGEST_RECORD = 1_000_000
"""Characters in one record, and in one line of YAML: about a thousand times the longest public record."""


@dataclass(frozen=True)
class RecordRow:
    """A value from the file, and the line on which it begins."""

    line: int
    value: Any


@dataclass
class Document:
    """A file's records, the other keys of the list, and the findings so far."""

    name: str
    rows: list[RecordRow] = field(default_factory=list)
    head: dict[str, RecordRow] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def complain(self, line: int, code: str, message: str, edit: str | None = None) -> None:
        """Add a finding at a line of this file."""
        self.findings.append(
            Finding(origin=f"{escape_controls(self.name)}:{line}", code=code, message=message, edit=edit)
        )


class RefusedError(ValueError):
    """A value that cannot be read; caught where its line is known."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line


def check_length(text: str, what: str, line: int | None = None) -> None:
    """Raises RefusedError E017 for a text of more than LONGEST_RECORD characters."""
    if len(text) > LONGEST_RECORD:
        raise RefusedError("E017", f"{what} has {len(text):,} characters; the limit is {LONGEST_RECORD:,}", line)
