"""The codes of what is wrong with edits."""

from __future__ import annotations

from memedit.edits.edit import EditRequest
from memedit.edits.lint import lint


def codes(*requests: EditRequest) -> list[str]:
    """The code of each finding, in order."""
    return [one.code for one in lint(requests)]
