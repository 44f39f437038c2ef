"""Every malformed list is refused with file, line and code, and none with anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from memedit.edits.lint import lint
from memedit.edits.read import read
from tests.malformed.cases import CASES, Case


def test_there_are_forty() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_list_is_refused_at_its_line(case: Case, tmp_path: Path) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content)
    requests, findings = read(str(file))
    findings += lint(requests)
    errors = [finding for finding in findings if finding.severity == "error"]
    assert errors, "nothing was found"
    assert errors[0].line.startswith(f"{file}:{case.line}: {case.code} "), errors[0].line
    assert case.says in errors[0].message
    assert "\n" not in errors[0].line
