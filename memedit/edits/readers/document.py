"""What a file holds once read: records with the line each begins on, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memedit.edits.edit import Finding

WRAPPER = ("version", "relations", "edits")
"""What may stand beside the records: the keys of a list that is a mapping."""


@dataclass(frozen=True)
class RecordRow:
    """A value as the file has it, and the line on which it begins."""

    line: int
    value: Any


@dataclass
class Document:
    """What stands in a file: its records, what stands around them, and what is wrong."""

    name: str
    rows: list[RecordRow] = field(default_factory=list)
    head: dict[str, RecordRow] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def complain(self, line: int, code: str, message: str, edit: str | None = None) -> None:
        """Write down a finding at a line of this file."""
        self.findings.append(Finding(origin=f"{self.name}:{line}", code=code, message=message, edit=edit))


class RefusedError(ValueError):
    """A value that cannot be taken; caught where its line is known."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line
